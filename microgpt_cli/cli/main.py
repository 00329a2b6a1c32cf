"""Entry point: `microgpt VERB key=value …` → a checked config → `commands/VERB.py`.

Holds the table of verbs, and turns errors into one line and an exit status. Hydra and torch are imported only when
needed: `microgpt --help` imports neither.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import microgpt_cli
from microgpt_cli import signals, threads
from microgpt_cli.cli import composing, gc_control, overrides
from microgpt_cli.cli.composing import CONF
from microgpt_cli.cli.verb import Verb
from microgpt_cli.config import (
    CompareConfig,
    DiagramConfig,
    EvalConfig,
    InspectConfig,
    ParamsConfig,
    ReplayConfig,
    ReportConfig,
    RunsConfig,
    SampleConfig,
    SearchConfig,
    ShapesConfig,
    TrainConfig,
    VerifyConfig,
)
from microgpt_cli.config.schema import Leaf, leaves
from microgpt_cli.errors import Interrupted, UserError

VERBS = {
    "train": Verb(
        "train a GPT on a text",
        "microgpt train model=small data.path=my.txt",
        "microgpt_cli.commands.train:run",
        TrainConfig,
        makes_run_folder=True,
    ),
    "doctor": Verb(
        "check machine, text, memory and time before a run; writes nothing",
        "microgpt doctor model=small data.path=my.txt",
        "microgpt_cli.commands.doctor:run",
        TrainConfig,
    ),
    "sample": Verb(
        "generate text with a trained model",
        "microgpt sample ckpt=outputs/latest prompt='The '",
        "microgpt_cli.commands.sample:run",
        SampleConfig,
        positional=("ckpt",),
    ),
    "eval": Verb(
        "evaluate a trained model on a whole text",
        "microgpt eval ckpt=outputs/latest",
        "microgpt_cli.commands.eval:run",
        EvalConfig,
        positional=("ckpt",),
    ),
    "params": Verb(
        "count a model's parameters, FLOPs and bytes, part by part",
        "microgpt params model=gpt2 arch=gpt2 vocab_size=50257",
        "microgpt_cli.commands.params:run",
        ParamsConfig,
        positional=("ckpt",),
    ),
    "inspect": Verb(
        "look inside a model: attention, logit lens and loss of each token",
        "microgpt inspect ckpt=outputs/latest prompt='The function '",
        "microgpt_cli.commands.inspect:run",
        InspectConfig,
        positional=("ckpt",),
    ),
    "report": Verb(
        "write an HTML page of a run or a sweep: curves, diagnosis, samples, settings",
        "microgpt report outputs/latest",
        "microgpt_cli.commands.report:run",
        ReportConfig,
        positional=("run",),
    ),
    "shapes": Verb(
        "trace one forward pass: every operation, its shapes, parameters and FLOPs",
        "microgpt shapes model=micro batch=4",
        "microgpt_cli.commands.shapes:run",
        ShapesConfig,
        positional=("ckpt",),
    ),
    "diagram": Verb(
        "draw the architecture of a model from a traced forward pass",
        "microgpt diagram arch=modern out=modern.png",
        "microgpt_cli.commands.diagram:run",
        DiagramConfig,
        positional=("ckpt",),
    ),
    "replay": Verb(
        "replay the samples that a model wrote during training",
        "microgpt replay outputs/latest speed=2",
        "microgpt_cli.commands.replay:run",
        ReplayConfig,
        positional=("run",),
    ),
    "verify": Verb(
        "verify the checksums of a run's checkpoints, and that training is reproducible bit for bit",
        "microgpt verify ckpt=outputs/latest replay=100",
        "microgpt_cli.commands.verify:run",
        VerifyConfig,
        positional=("ckpt",),
    ),
    "runs": Verb(
        "list runs, best first, with the settings that differ",
        "microgpt runs outputs filter='status=finished'",
        "microgpt_cli.commands.runs:run",
        RunsConfig,
        positional=("paths",),
    ),
    "compare": Verb(
        "compare two or more runs: settings, curves, losses, samples",
        "microgpt compare outputs/train/A outputs/train/B",
        "microgpt_cli.commands.compare:run",
        CompareConfig,
        positional=("paths",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 1 for a run that failed, 2 for bad input, 128 + signal."""
    if argv is None:  # this process is the command
        gc_control.pause()
    if "torch" not in sys.modules:
        threads.limit_spinning(os.environ)
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if hasattr(sys.stdout, "reconfigure"):  # paths may not be UTF-8, and some terminals lack an ellipsis
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding.lower() == "utf-8" else "replace")
    try:
        if verb in ("--help", "-h"):
            from microgpt_cli.cli import help as help_pages

            print(help_pages.tool(VERBS))
        elif verb == "--version":
            print(f"microgpt {microgpt_cli.__version__}")
        elif verb in ("-sc", "--shell-completion", "--shell_completion"):
            _complete(words[1:])
        elif verb in VERBS:
            with signals.interrupting():
                _run_verb(verb, words[1:])
        else:
            raise UserError(f"unknown verb {verb!r}; {_verb_hint(verb, words)}")
        sys.stdout.flush()
    except UserError as error:
        where = f"microgpt {verb}" if verb in VERBS else "microgpt"
        _print_error(f"{where}: {composing.one_line(error)}")
        return error.exit_status
    except Interrupted as stop:
        _print_error(f"microgpt {verb}: {stop}")
        return stop.exit_status
    except KeyboardInterrupt:
        _print_error("interrupted")
        return 130
    except BrokenPipeError:  # as in `microgpt params | head`
        _drop_stdout()
    except OSError as error:
        path = error.filename or "standard output"  # errors of our own files have a name
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the disk"
        print(f"microgpt {verb}: {path}: {error.strerror or error}; {remedy}", file=sys.stderr)
        _drop_stdout()
        return 1
    return 0


def _print_error(line: str) -> None:
    """Print to standard error, if it is still open: a closed terminal also ends the command."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # replaced streams without descriptors
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in (sys.stdout, sys.stderr):
                os.dup2(nowhere, stream.fileno())


def _drop_stdout() -> None:
    """Discard unwritten output, which Python would otherwise flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verb_hint(verb: str, words: list[str]) -> str:
    if "=" in verb or verb.startswith("-"):
        return f"the verb comes first: microgpt train {' '.join(words)}"
    best = overrides.nearest(verb, VERBS)
    return (f"did you mean {best!r}? " if best else "") + f"verbs: {', '.join(VERBS)}"


def _run_verb(verb: str, words: list[str]) -> None:
    """Parse the arguments, then run the verb, start a sweep or print help."""
    spec = VERBS[verb]
    schema_leaves = {leaf.name: leaf for leaf in leaves(spec.schema)}
    groups = group_choices(verb)
    asks_help = any(word in ("--help", "-h") for word in words)
    sorted_words = overrides.sort_words(
        [word for word in words if word not in ("--help", "-h")],
        schema_leaves,
        groups,
        spec.positional,
        _sweep_keys(spec),
    )
    _check_flags(sorted_words.flags, groups)
    try:
        if asks_help:
            from microgpt_cli.cli import help as help_pages

            defaults = composing.select(composing.compose(VERBS, verb, sorted_words))
            print(help_pages.verb(verb, spec, schema_leaves.values(), groups, CONF, defaults, _sweep_keys(spec)))
        elif any(not flag.startswith("--config-") and flag != "--run" for flag in _names(sorted_words.flags)):
            _hydra_main(verb, sorted_words)
        else:
            composed = composing.compose(VERBS, verb, sorted_words)
            config = composing.to_config(verb, spec, composed)
            files = composing.hydra_files(composed)
            spec.run(config, typed=sorted_words.typed, hydra_files=files, compose=_composed)
    except UserError:
        raise
    except Exception as error:
        interrupt = composing.interrupt_in_context(error)
        raise interrupt or composing.explain(error, verb, sorted_words, schema_leaves) from error


def _hydra_main(verb: str, words: overrides.Words) -> None:
    from microgpt_cli.cli import multirun  # imports take half of the time of `microgpt --help`

    multirun.hydra_main(VERBS, verb, words)


def load_config(verb: str, words: Sequence[str]) -> Any:
    """The config that a command line would run with, for programs: `load_config("train", ["model=mini"])`.

    If a key is given twice, the last value counts; a command line would be refused.
    """
    spec = VERBS[verb]
    words = list({word.partition("=")[0]: word for word in words}.values())
    schema_leaves = {leaf.name: leaf for leaf in leaves(spec.schema)}
    sorted_words = overrides.sort_words(words, schema_leaves, group_choices(verb), ())
    return composing.to_config(verb, spec, composing.compose(VERBS, verb, sorted_words))


def group_choices(verb: str) -> dict[str, list[str]]:
    """The config groups of a verb, each with its choices."""
    return composing.group_choices(VERBS[verb].schema)


def _sweep_keys(spec: Verb) -> dict[str, Leaf]:
    """The keys of the sweep itself, for verbs whose jobs have folders."""
    return {leaf.name: leaf for leaf in leaves(SearchConfig, "sweep.")} if spec.makes_run_folder else {}


def _composed(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Dotted key → value of a verb's config for these overrides."""
    try:
        return composing.select(composing.compose(VERBS, verb, overrides.Words((), tuple(words), ())))
    except Exception as error:  # the overrides may come from a file
        raise UserError(composing.one_line(error)) from error


def _names(flags: Sequence[str]) -> list[str]:
    """The flags without their values."""
    return [flag for flag in flags if flag.startswith("-")]


def _check_flags(flags: Sequence[str], groups: Iterable[str]) -> None:
    """Raises `UserError` for flags that exclude each other and for a bad config folder."""
    names = set(_names(flags))
    ways = sorted(names & {"--multirun", "--run", "--cfg", "--info"})
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)} exclude each other; give one of them")
    for name in ("--resolve", "--package"):
        if name in names and "--cfg" not in names:
            raise UserError(f"{name} requires --cfg job")
    for name in ("--config-dir", "--config-path"):
        folder = composing.flag(flags, name)
        if folder is not None and not os.path.isdir(folder):
            raise UserError(f"{name} {folder}: no such folder")
        if folder is not None:
            from microgpt_cli.cli import own_configs

            own_configs.check(Path(folder), groups)


def _complete(words: list[str]) -> None:
    """Shell completion: verbs here, a verb's keys, groups and choices by Hydra."""
    request = words[0] if words else ""
    if request.partition("=")[0] not in ("install", "uninstall", "query"):
        raise UserError('enable shell completion with: eval "$(microgpt -sc install=bash)" (or zsh, fish)')
    verb = "train"
    if request.startswith("query="):
        line = os.environ.get("COMP_LINE", "")
        typed = line.split()[1:]
        if not typed or (len(typed) == 1 and not line.endswith(" ")):
            print(" ".join(name for name in VERBS if name.startswith(typed[0] if typed else "")))
            return
        if typed[0] not in VERBS:
            return
        verb = typed[0]
        os.environ["COMP_LINE"] = " ".join(["microgpt", *typed[1:]]) + (" " if line.endswith(" ") else "")
    _hydra_main(verb, overrides.Words(("-sc",), (request,), ()))
