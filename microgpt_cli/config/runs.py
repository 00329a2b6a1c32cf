"""The keys of `microgpt runs`."""

from __future__ import annotations

from dataclasses import dataclass

from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class RunsConfig(Node):
    """`microgpt runs`."""

    paths: list[str] = key("folders to look for runs in; bare words")
    sort: str = key("column or setting to sort by; prefix with - for descending")
    filter: str | None = key("which runs, as in model.n_layer>4 and status=finished")
    format: str = key("how to print", choices=("table", "csv", "json", "md"))
    plot: bool = key("draw val_loss against the step, and the best one against each setting that differs")
    out: str | None = key("folder for the plots (null: the one that the runs lie in)")

    def check(self) -> None:
        if not self.paths:
            raise UserError("paths=[]: give a folder to look for runs in, such as outputs")
