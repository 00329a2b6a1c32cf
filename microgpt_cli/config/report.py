"""The keys of `microgpt report`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.schema import Node, key


@dataclass
class ReportConfig(Node):
    """`microgpt report`."""

    run: str = key("a run's folder, a sweep's or any that holds runs, or latest")
    out: str | None = key("the HTML page to write, in place of an older one (null: report.html in that folder)")
