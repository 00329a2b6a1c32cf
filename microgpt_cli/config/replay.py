"""The keys of `microgpt replay`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.schema import Node, key


@dataclass
class ReplayConfig(Node):
    """`microgpt replay`."""

    run: str = key("a run's folder, or latest")
    speed: float = key("2: twice as fast; + and - change it while it plays", above=0, at_most=1000)
