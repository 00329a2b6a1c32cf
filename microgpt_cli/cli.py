"""The front door: `microgpt VERB key=value …` → a checked config → `commands/VERB.py`.

The table of verbs, the one place that imports Hydra, and the one place where an error becomes a line and an exit
status. Neither Hydra nor torch is imported before it is needed: `microgpt --help` imports neither.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import importlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import microgpt_cli
from microgpt_cli import overrides
from microgpt_cli.config import (
    CompareConfig,
    DiagramConfig,
    EvalConfig,
    InspectConfig,
    Leaf,
    ParamsConfig,
    ReplayConfig,
    ReportConfig,
    RunsConfig,
    SampleConfig,
    SearchConfig,
    ShapesConfig,
    SweepConfig,
    TrainConfig,
    VerifyConfig,
    leaves,
)
from microgpt_cli.errors import Interrupted, RunStopped, UserError

if TYPE_CHECKING:
    from microgpt_cli.sweeps.job import Driver

HERE = Path(__file__).resolve().parent
LONGEST_LINE = 2000  # characters of an error that are shown
# Our own sweepers say what there is to say: Hydra's lines are not for people, and a job's log is its own.
SWEEP_DEFAULTS = {"hydra/hydra_logging": "none", "hydra/job_logging": "none"}
# In a wheel conf/ lies inside the package, in a checkout beside it.
CONF = next((path for path in (HERE / "conf", HERE.parent / "conf") if (path / "train.yaml").is_file()), HERE / "conf")


@dataclass(frozen=True)
class Verb:
    """A row of the table: `microgpt NAME` calls `function(config, invocation)` with a config of type `schema`."""

    help: str
    example: str
    function: str  # "module:function", imported when it runs
    schema: type[Any]
    positional: tuple[str, ...] = ()
    makes_run_folder: bool = False


VERBS = {
    "train": Verb(
        "train a GPT on a text",
        "microgpt train model=small data.path=my.txt",
        "microgpt_cli.commands.train:run",
        TrainConfig,
        makes_run_folder=True,
    ),
    "doctor": Verb(
        "look before a run: machine, text, memory and time; writes nothing",
        "microgpt doctor model=small data.path=my.txt",
        "microgpt_cli.commands.doctor:run",
        TrainConfig,
    ),
    "sample": Verb(
        "write text with a trained model",
        "microgpt sample ckpt=outputs/latest prompt='The '",
        "microgpt_cli.commands.sample:run",
        SampleConfig,
        positional=("ckpt",),
    ),
    "eval": Verb(
        "measure a trained model on a whole text",
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
        "look inside a model as it reads: attention, what each layer expects, losses",
        "microgpt inspect ckpt=outputs/latest prompt='The function '",
        "microgpt_cli.commands.inspect:run",
        InspectConfig,
        positional=("ckpt",),
    ),
    "report": Verb(
        "one HTML page of a run or a sweep: curves, verdict, samples, settings",
        "microgpt report outputs/latest",
        "microgpt_cli.commands.report:run",
        ReportConfig,
        positional=("run",),
    ),
    "shapes": Verb(
        "follow one forward pass: every operation, its shapes, parameters and FLOPs",
        "microgpt shapes model=micro batch=4",
        "microgpt_cli.commands.shapes:run",
        ShapesConfig,
        positional=("ckpt",),
    ),
    "diagram": Verb(
        "draw the architecture of a model, as it runs",
        "microgpt diagram arch=modern out=modern.png",
        "microgpt_cli.commands.diagram:run",
        DiagramConfig,
        positional=("ckpt",),
    ),
    "replay": Verb(
        "play what a model wrote as it learnt, from gibberish to text",
        "microgpt replay outputs/latest speed=2",
        "microgpt_cli.commands.replay:run",
        ReplayConfig,
        positional=("run",),
    ),
    "verify": Verb(
        "check every byte of a run's checkpoints, and that training repeats to the bit",
        "microgpt verify ckpt=outputs/latest replay=100",
        "microgpt_cli.commands.verify:run",
        VerifyConfig,
        positional=("ckpt",),
    ),
    "runs": Verb(
        "list the runs, the best first, with the settings in which they differ",
        "microgpt runs outputs filter='status=finished'",
        "microgpt_cli.commands.runs:run",
        RunsConfig,
        positional=("paths",),
    ),
    "compare": Verb(
        "two runs or more side by side: settings, curves, losses, samples",
        "microgpt compare outputs/train/A outputs/train/B",
        "microgpt_cli.commands.compare:run",
        CompareConfig,
        positional=("paths",),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0, 1 for a run that failed, 2 for bad input, 128 + signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if hasattr(sys.stdout, "reconfigure"):  # a path need not be UTF-8, nor can every terminal show an ellipsis
        sys.stdout.reconfigure(errors="surrogateescape" if sys.stdout.encoding.lower() == "utf-8" else "replace")
    try:
        if verb in ("--help", "-h"):
            from microgpt_cli import help as help_pages

            print(help_pages.tool(VERBS))
        elif verb == "--version":
            print(f"microgpt {microgpt_cli.__version__}")
        elif verb in ("-sc", "--shell-completion", "--shell_completion"):
            _complete(words[1:])
        elif verb in VERBS:
            _run_verb(verb, words[1:])
        else:
            raise UserError(f"unknown verb {verb!r}; {_verb_hint(verb, words)}")
        sys.stdout.flush()
    except UserError as error:
        where = f"microgpt {verb}" if verb in VERBS else "microgpt"
        print(f"{where}: {_one_line(error)}", file=sys.stderr)
        return error.exit_status
    except Interrupted as stop:
        print(f"microgpt {verb}: {stop}", file=sys.stderr)
        return stop.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `microgpt params | head` has read enough
        _drop_stdout()
    except OSError as error:
        path = error.filename or "standard output"  # the errors of our files have a name
        print(f"microgpt {verb}: {path}: {error.strerror or error}; see to the disk it is on", file=sys.stderr)
        _drop_stdout()
        return 1
    return 0


def _drop_stdout() -> None:
    """Let what is still unwritten go nowhere, or Python would try to write it once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verb_hint(verb: str, words: list[str]) -> str:
    if "=" in verb or verb.startswith("-"):
        return f"the verb comes first: microgpt train {' '.join(words)}"
    best = overrides.nearest(verb, VERBS)
    return (f"did you mean {best!r}? " if best else "") + f"verbs: {', '.join(VERBS)}"


def _one_line(error: BaseException) -> str:
    """An error as one line, with nothing in it that a terminal would obey: a hostile file may have chosen the words."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(str(error).split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …"


def _run_verb(verb: str, words: list[str]) -> None:
    """Sort the words out, then compose and run once, or let Hydra sweep, or print what was asked for."""
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
            from microgpt_cli import help as help_pages

            defaults = _compose(verb, sorted_words)
            print(
                help_pages.verb(verb, spec, schema_leaves.values(), groups, CONF, _select(defaults), _sweep_keys(spec))
            )
        elif any(not flag.startswith("--config-") and flag != "--run" for flag in _names(sorted_words.flags)):
            _hydra_main(verb, sorted_words)
        else:
            composed = _compose(verb, sorted_words)
            config = _to_config(verb, composed)
            files = _hydra_files(composed)
            _call(spec, config, typed=sorted_words.typed, hydra_files=files, compose=_composed)
    except UserError:
        raise
    except Exception as error:
        raise _explained(error, verb, sorted_words, schema_leaves) from error


def load_config(verb: str, words: Sequence[str]) -> Any:
    """The config that a command line would run with, for programs: `load_config("train", ["model=mini"])`."""
    schema_leaves = {leaf.name: leaf for leaf in leaves(VERBS[verb].schema)}
    return _to_config(verb, _compose(verb, overrides.sort_words(words, schema_leaves, group_choices(verb), ())))


def _sweep_keys(spec: Verb) -> dict[str, Leaf]:
    """The keys of a sweep itself, for verbs whose jobs have folders."""
    return {leaf.name: leaf for leaf in leaves(SearchConfig, "sweep.")} if spec.makes_run_folder else {}


def _composed(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Dotted key → value of a verb's config where these words are typed, for those that compare with it."""
    try:
        return _select(_compose(verb, overrides.Words((), tuple(words), ())))
    except Exception as error:  # of words that a file has brought
        raise UserError(_one_line(error)) from error


def _names(flags: Sequence[str]) -> list[str]:
    """The flags without their values."""
    return [flag for flag in flags if flag.startswith("-")]


def _check_flags(flags: Sequence[str], groups: Iterable[str]) -> None:
    """Raises `UserError` for flags that don't go together, and for a config folder that can't be read."""
    names = set(_names(flags))
    ways = sorted(names & {"--multirun", "--run", "--cfg", "--info"})
    if len(ways) > 1:
        raise UserError(f"{' and '.join(ways)} don't go together: give one of them")
    for name in ("--resolve", "--package"):
        if name in names and "--cfg" not in names:
            raise UserError(f"{name} goes with --cfg job")
    for name in ("--config-dir", "--config-path"):
        folder = _flag(flags, name)
        if folder is not None and not os.path.isdir(folder):
            raise UserError(f"{name} {folder}: no such folder")
        if folder is not None:
            from microgpt_cli import own_configs

            own_configs.check(Path(folder), groups)


def _call(spec: Verb, config: Any, **invocation: Any) -> None:
    """Import the verb's module, and with it torch where the verb needs it, and run it."""
    from microgpt_cli.commands import Invocation
    from microgpt_cli.runs.folder import refuse_if_in_use

    if spec.makes_run_folder and config.resume is not None:
        refuse_if_in_use(config.resume)  # before torch is imported, which takes seconds
    module, _, function = spec.function.partition(":")
    getattr(importlib.import_module(module), function)(config, Invocation(**invocation))


def group_choices(verb: str) -> dict[str, list[str]]:
    """The config groups of a verb, from its own defaults list, each with the choices in `conf/`."""
    import yaml

    defaults = yaml.safe_load((CONF / f"{verb}.yaml").read_text(encoding="utf-8"))["defaults"]
    bases = [entry for entry in defaults if isinstance(entry, str) and not entry.startswith("_")]  # doctor: train
    if bases:
        return group_choices(bases[0])
    names = [name for entry in defaults if isinstance(entry, dict) for name in entry]
    return {name: sorted(path.stem for path in (CONF / name).glob("[!_]*.yaml")) for name in names}


def _version_base() -> str | None:
    """Hydra 1.3 wants to be told how to behave; 1.4 warns when it is."""
    import hydra

    return "1.3" if hydra.__version__.startswith("1.3") else None


def _register() -> None:
    from hydra.core.config_store import ConfigStore

    for name, verb in VERBS.items():
        ConfigStore.instance().store(name=f"_{name}", node=verb.schema)


def _flag(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag, if it was given."""
    return flags[flags.index(name) + 1] if name in flags else None


def _compose(verb: str, words: overrides.Words) -> Any:
    """The composed config with its `hydra` node, types checked by the schema."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    _register()
    conf = Path(_flag(words.flags, "--config-path") or CONF).absolute()
    extra = _flag(words.flags, "--config-dir")
    search = [f"hydra.searchpath=[{overrides.quote('file://' + os.path.abspath(extra))}]"] if extra else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base=_version_base(), job_name=verb):
        name = _flag(words.flags, "--config-name") or verb
        composed = compose(name, [*words.overrides, *search], return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    return composed


def _select(composed: Any) -> dict[str, Any]:
    """Dotted key → value of everything in a composed config but its `hydra` node."""
    from omegaconf import OmegaConf

    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[prefix + name] = value

    walk(OmegaConf.to_container(_without_hydra(composed), resolve=True), "")  # type: ignore[arg-type]
    return flat


def _without_hydra(composed: Any) -> Any:
    """The verb's own config, still typed by its schema."""
    from omegaconf import open_dict

    plain = copy.deepcopy(composed)
    with open_dict(plain):
        plain.pop("hydra", None)
    return plain


def _to_config(verb: str, composed: Any) -> Any:
    """The verb's dataclass, ranges checked. Raises `UserError` if a key has no value."""
    from omegaconf import OmegaConf

    plain = _without_hydra(composed)
    missing = sorted(OmegaConf.missing_keys(plain))
    if missing:
        raise UserError(f"{missing[0]} is required, for example: {VERBS[verb].example}")
    config = OmegaConf.to_object(plain)
    if not isinstance(config, VERBS[verb].schema):
        raise UserError(f"not a config of microgpt {verb}: its defaults must begin with _{verb}")
    return config


def _hydra_files(composed: Any) -> dict[str, str]:
    """What Hydra itself would write to `.hydra/`."""
    from omegaconf import OmegaConf

    return {
        "config.yaml": OmegaConf.to_yaml(_without_hydra(composed)),
        "hydra.yaml": OmegaConf.to_yaml(OmegaConf.masked_copy(composed, "hydra")),
        "overrides.yaml": OmegaConf.to_yaml(composed.hydra.overrides.task),
    }


@dataclass(frozen=True)
class Task:
    """What Hydra calls for each job of a sweep: in this process, or in one that a launcher has started somewhere."""

    verb: str
    typed: tuple[str, ...]
    driver: Driver

    @property
    def makes_run_folder(self) -> bool:
        return VERBS[self.verb].makes_run_folder

    def __call__(self, composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        hydra, spec = HydraConfig.get(), VERBS[self.verb]
        if not spec.makes_run_folder:
            print(f"# {' '.join(hydra.overrides.task)}", file=sys.stderr, flush=True)
            _call(spec, self.check(composed), typed=self.typed)
            print(flush=True)  # a text that a job wrote need not end its line
            return None
        from microgpt_cli.sweeps import job

        folder = Path(hydra.runtime.output_dir)
        if folder.is_relative_to(Path.cwd()):
            folder = folder.relative_to(Path.cwd())  # shorter to read and to type

        def train(resume: Path | None) -> None:
            config = self.check(composed)
            settings = dataclasses.asdict(config)
            if resume is not None:
                config.resume = str(resume)
            try:
                worker = None if self.driver.is_here() else partial(job.worker_number, folder.parent)
                _call(spec, config, typed=self.typed, sweep_dir=folder, worker=worker)
            except Exception:
                job.keep_config(folder, settings)
                raise

        end = job.run(folder, train, self.driver, bool(hydra.sweeper.get("fail_fast", False)))
        if hydra.sweeper._target_.startswith("hydra_plugins.microgpt"):
            return end  # whoever drives the sweep reads the folders
        if end.status == "failed":
            raise RunStopped(f"job {folder.name}: {end.error}; its traceback is in {folder / job.TRACEBACK}")
        return end.best_val_loss  # what sweepers of others minimise

    def check(self, composed: Any) -> Any:
        """The config of a job. Raises `UserError` for what is wrong with it, or can't be in a job of a sweep."""
        config = _to_config(self.verb, composed)
        if self.makes_run_folder and config.out_dir is not None:
            raise UserError(f"out_dir={config.out_dir}: each job of a sweep has its own folder; use hydra.sweep.dir=")
        if self.makes_run_folder and config.lr_find:
            raise UserError("lr_find=true: leaves no run to compare; find a rate without -m, one command a model")
        if self.makes_run_folder and config.profile:
            raise UserError("profile=true: leaves no run to compare; profile without -m, one command a model")
        if self.makes_run_folder and config.resume is not None:
            raise UserError(
                f"resume={config.resume}: jobs of a sweep are new runs; to go on with a sweep: sweep.resume="
            )
        return config


def _hydra_main(verb: str, words: overrides.Words) -> None:
    """Sweeps, `--cfg`, `--info` and the like: Hydra's own `main`, with the words in the order that it takes."""
    import hydra

    from microgpt_cli.sweeps.job import Driver

    package = _flag(words.flags, "--package")
    if package is not None:
        from omegaconf import OmegaConf

        if OmegaConf.select(_compose(verb, words), package) is None:
            raise UserError(f"--package {package}: no such node in the config")
    _register()
    _mend_argparse()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, whole
    with tempfile.TemporaryDirectory() as scratch:
        defaults = SWEEP_DEFAULTS | {"hydra/sweeper": _sweeper(words)} if "--multirun" in words.flags else {}
        if not VERBS[verb].makes_run_folder:  # leaves nothing behind, so it sweeps in a folder that goes away
            defaults = defaults | {"hydra.sweep.dir": overrides.quote(scratch)}
        typed = {word.partition("=")[0] for word in words.overrides}
        quiet = [f"{key}={value}" for key, value in defaults.items() if key not in typed]
        sys.argv = [sys.argv[0], *words.flags, *quiet, *words.overrides]
        task = Task(verb, words.typed, Driver.this_process())
        hydra.main(config_path=str(CONF), config_name=verb, version_base=_version_base())(task)()


def _sweeper(words: overrides.Words) -> str:
    """The sweeper of ours that a command line means: what it typed tells, or the sweep that it goes on with."""
    from microgpt_cli.sweeps import record

    grid_too = {leaf.name for leaf in leaves(SweepConfig)}
    search_only = {f"hydra.sweeper.{leaf.name}" for leaf in leaves(SearchConfig) if leaf.name not in grid_too}
    for word in words.overrides:
        key, _, value = word.partition("=")
        if key in search_only or re.search(r"\binterval\(", value):
            return "optuna"
        if key == "hydra.sweeper.resume":
            with contextlib.suppress(UserError):  # told later
                return record.read(record.find(value.strip("'"))).sweeper
    return "grid"


def _mend_argparse() -> None:
    """Python 3.14 checks that help texts are strings, and Hydra 1.3 passes a lazy one (hydra issue #3121)."""
    check = getattr(argparse.ArgumentParser, "_check_help", None)
    if check is not None:

        def check_strings(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
            if isinstance(action.help, str):
                check(parser, action)

        argparse.ArgumentParser._check_help = check_strings  # type: ignore[attr-defined]


def _complete(words: list[str]) -> None:
    """Shell completion: our verbs, then Hydra's completion of the verb's keys, groups and choices."""
    request = words[0] if words else ""
    if request.partition("=")[0] not in ("install", "uninstall", "query"):
        raise UserError('to switch it on: eval "$(microgpt -sc install=bash)" (or zsh, fish)')
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


def _explained(error: Exception, verb: str, words: overrides.Words, schema: dict[str, Leaf]) -> Exception:
    """Hydra's and OmegaConf's errors as one line for a person; any other error as it is."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    frames = traceback.extract_tb(error.__traceback__)
    plugin = next((frame for frame in frames if re.search("hydra_plugins(?!.microgpt)", frame.filename)), None)
    if plugin and not isinstance(error, HydraException | OmegaConfBaseException):
        return UserError(f"a Hydra plugin is broken, uninstall it: {plugin.filename}: {_one_line(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = [name for name in error.options or [] if not name.startswith("_")]
        best = overrides.nearest(choice, options)
        hint = (f"did you mean {best!r}? " if best else "") + (f"choices: {', '.join(options)}" if options else "")
        return UserError(f"{group}={choice}: no such choice; {hint}" if group else f"no config named {choice!r}")
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    if isinstance(cause, OmegaConfBaseException):
        key = str(cause.full_key or "")
        value = next((word.partition("=")[2] for word in words.overrides if word.partition("=")[0] == key), None)
        if key in schema and value is not None:
            leaf = schema[key]
            return UserError(f"{key}={value}: must be of type {leaf.type_name}{' or null' if leaf.optional else ''}")
        return UserError(f"{str(cause).splitlines()[0]}{f' ({key})' if key else ''}")
    composing = any(Path(frame.filename).name == "config_loader_impl.py" for frame in frames)
    if isinstance(error, HydraException) or composing:  # of syntax, of encoding, of types that Hydra takes for granted
        return UserError(_one_line(error))
    return error
