"""Sweeps and Hydra's own flags: call `hydra.main`, and run each job of a sweep."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from microgpt_cli.cli import composing, gc_control, overrides
from microgpt_cli.cli.verb import Verb
from microgpt_cli.config import SearchConfig, SweepConfig
from microgpt_cli.config.schema import leaves
from microgpt_cli.errors import RunStopped, UserError
from microgpt_cli.sweeps import job, record
from microgpt_cli.sweeps.job import SweepProcess

# Hydra's logging is off: the sweepers print progress, and each job writes its own log.
SWEEP_DEFAULTS = {"hydra/hydra_logging": "none", "hydra/job_logging": "none"}


@dataclass(frozen=True)
class Task:
    """The function that Hydra calls for each job, in this process or in one that a launcher started."""

    verb: str
    spec: Verb
    typed: tuple[str, ...]
    sweep_process: SweepProcess

    @property
    def makes_run_folder(self) -> bool:
        return self.spec.makes_run_folder

    def __call__(self, composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        if not self.makes_run_folder:
            print(f"# {' '.join(hydra.overrides.task)}", file=sys.stderr, flush=True)
            self.spec.run(self.check(composed), typed=self.typed)
            print(flush=True)  # the output of a job may lack a final newline
            return None
        folder = Path(hydra.runtime.output_dir)
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())  # shorter to type

        def train(resume: Path | None) -> None:
            config = self.check(composed)
            settings = dataclasses.asdict(config)
            if resume is not None:
                config.resume = str(resume)
            try:
                worker = None if self.sweep_process.is_this_process() else partial(job.worker_number, folder.parent)
                self.spec.run(config, typed=self.typed, sweep_dir=folder, worker=worker)
            except Exception:
                job.keep_config(folder, settings)
                raise

        end = job.run(folder, train, self.sweep_process, bool(hydra.sweeper.get("fail_fast", False)))
        if hydra.sweeper._target_.startswith("hydra_plugins.microgpt"):
            return end  # our sweepers read the folders
        if end.status == "failed":
            raise RunStopped(f"job {folder.name}: {end.error}; its traceback is in {folder / job.TRACEBACK}")
        return end.best_val_loss  # the objective for other sweepers

    def check(self, composed: Any) -> Any:
        """The config of a job. Raises `UserError` if it is invalid or not allowed in a sweep."""
        config = composing.to_config(self.verb, self.spec, composed)
        if self.makes_run_folder and config.out_dir is not None:
            raise UserError(f"out_dir={config.out_dir}: each job of a sweep has its own folder; use hydra.sweep.dir=")
        if self.makes_run_folder and config.lr_find:
            raise UserError("lr_find=true: not available in a sweep; run it without -m, once per model")
        if self.makes_run_folder and config.profile:
            raise UserError("profile=true: not available in a sweep; run it without -m, once per model")
        if self.makes_run_folder and config.resume is not None:
            raise UserError(
                f"resume={config.resume}: jobs of a sweep are new runs; to resume a sweep, give sweep.resume="
            )
        return config


def hydra_main(verbs: Mapping[str, Verb], verb: str, words: overrides.Words) -> None:
    """Run Hydra's own `main` for sweeps, `--cfg`, `--info` and the like, with arguments in its order."""
    import hydra

    package = composing.flag(words.flags, "--package")
    if package is not None:
        from omegaconf import OmegaConf

        if OmegaConf.select(composing.compose(verbs, verb, words), package) is None:
            raise UserError(f"--package {package}: no such node in the config")
    gc_control.resume()
    composing.register(verbs, verb)
    patch_argparse()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors with their traceback
    with tempfile.TemporaryDirectory() as scratch:
        defaults = SWEEP_DEFAULTS | {"hydra/sweeper": _sweeper(words)} if "--multirun" in words.flags else {}
        if not verbs[verb].makes_run_folder:  # writes no files, so the sweep folder is temporary
            defaults = defaults | {"hydra.sweep.dir": overrides.quote(scratch)}
        typed = {word.partition("=")[0] for word in words.overrides}
        quiet = [f"{key}={value}" for key, value in defaults.items() if key not in typed]
        sys.argv = [sys.argv[0], *words.flags, *quiet, *words.overrides]
        task = Task(verb, verbs[verb], words.typed, SweepProcess.this_process())
        hydra.main(config_path=str(composing.CONF), config_name=verb, **composing.version_base())(task)()


def _sweeper(words: overrides.Words) -> str:
    """The sweeper that a command line needs: by its keys and values, or that of the sweep it resumes."""
    grid_too = {leaf.name for leaf in leaves(SweepConfig)}
    search_only = {f"hydra.sweeper.{leaf.name}" for leaf in leaves(SearchConfig) if leaf.name not in grid_too}
    for word in words.overrides:
        key, _, value = word.partition("=")
        if key in search_only or re.search(r"\binterval\(", value):
            return "optuna"
        if key == "hydra.sweeper.resume":
            with contextlib.suppress(UserError):  # reported later
                return record.read(record.find(value.strip("'"))).sweeper
    return "grid"


def patch_argparse() -> None:
    """Let argparse of Python 3.14 accept the lazy help text of Hydra 1.3 (hydra issue #3121)."""
    check = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is not None:

        def check_strings(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
            if isinstance(action.help, str):
                check(parser, action)

        argparse.ArgumentParser._check_help = check_strings  # type: ignore[attr-defined]
