"""A verb of the command line: its schema and its function, whose module is imported when it runs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from microgpt_cli.cli import gc_control


@dataclass(frozen=True)
class Verb:
    """A row of the table: `microgpt NAME` calls `function(config, invocation)` with a config of type `schema`."""

    help: str
    example: str
    function: str  # "module:function", imported when it runs
    schema: type[Any]
    positional: tuple[str, ...] = ()
    makes_run_folder: bool = False

    def run(self, config: Any, **invocation: Any) -> None:
        """Import the verb's module, and torch if the verb needs it, and call its function."""
        from microgpt_cli.commands import Invocation
        from microgpt_cli.runs.layout import refuse_if_in_use

        if self.makes_run_folder and config.resume is not None:
            refuse_if_in_use(config.resume)  # before torch is imported, which takes seconds
        module, _, function = self.function.partition(":")
        call = getattr(importlib.import_module(module), function)
        gc_control.resume()
        call(config, Invocation(**invocation))
