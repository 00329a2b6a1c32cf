"""What the tests share: a small text, a way to run the command in-process, one small trained run, and promises.

The whole suite runs in as many processes as there are cores (pytest-xdist), files and tests that are named in one.
"""

import dataclasses
import functools
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the programs that tests start

import pytest
import torch
import yaml
from support import browser as browsers

import microgpt_cli.commands.train as train_command
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.cli import composing
from microgpt_cli.cli import main as cli
from microgpt_cli.config import ModelConfig, OptimConfig, TrainConfig
from microgpt_cli.config.schema import from_json
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, plots, storage
from microgpt_cli.training.optimizers import AdamW, Muon, make_optimizer
from microgpt_cli.training.trainer import State

torch.set_num_threads(1)

TEXT = "The quick brown fox jumps over the lazy dog.\nPack my box with five dozen liquor jugs!\n" * 60
TINY = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=8", "batch_size=4", "device=cpu"]
SIZES = sorted(path.stem for path in (cli.CONF / "model").glob("*.yaml"))
ARCHES = sorted(path.stem for path in (cli.CONF / "arch").glob("*.yaml"))


def instead(words: Sequence[str], *others: str) -> list[str]:
    """The words with others added, which take the place of those with the same key."""
    return list({word.partition("=")[0]: word for word in (*words, *others)}.values())


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]
Tried = Callable[..., None]
# What `make stress` tries, in the order of the table that it prints, and how often at least.
PROMISES = {
    "SIGKILL at a random instant": 200,
    "… while a checkpoint was saved": 1,
    "… while the model was evaluated": 1,
    "… while an old checkpoint was removed": 1,
    "SIGKILL at each I/O call of a save": 40,
    "ten SIGKILLs in one run": 5,
    "SIGKILL while saves go on beside, as on a GPU": 60,
    "SIGKILL, SIGTERM, SIGINT in a sweep of six jobs": 30,
    "power loss: states of the disk recovered from": 1000,
    "power loss: an fsync left out is noticed": 27,
    "power loss after a kill": 1000,
    "SIGTERM, SIGINT, SIGUSR1 at an instant": 50,
    "a second signal ends it at once": 1,
    "a call of a save fails, once or for good": 80,
    "a call of a whole command fails, once or for good": 100,
    "a run can't begin": 20,
    "a full or read-only disk, a file too large": 7,
    "a full disk in a sweep": 2,
    "a flipped bit is noticed": 1000,
    "a lost end is noticed": 100,
    "an older checkpoint is taken, never none": 2,
    "resuming refuses or tells what changed": 5,
    "a second writer is refused": 2,
    "runs begun together": 26,
    "a mutated checkpoint": 7000,
    "a mutated tokenizer": 3000,
    "a mutated YAML": 500,
    "a kept hostile file": 129,
    "no code from files: a module of the package": 50,
    "text and prompts of any bytes": 300,
    "a text of 10 GB, in memory for a fifth of it": 1,
    "no checkpoint that is not finite": 9,
    "out of memory: what it says to type works": 4,
    "equal commands, equal bytes": 1,
    "watched always or never, equal weights": 1,
    "a checkpoint of format 1 is read": 1,
    "a mistake is one line": 40,
}


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Note that a promise was tried, for the table of `make stress`: `tried("a mistake is one line")`.

    A test that fails without saying how many of its tries did counts as one failure, of the promise it named last.
    """
    counts: dict[str, list[int]] = {}
    request.node.user_properties.append(("tried", counts))  # which goes with the report, also to another process

    def note(promise: str, tries: int = 1, failures: int = 0) -> None:
        assert promise in PROMISES
        before = counts.pop(promise, [0, 0])
        counts[promise] = [before[0] + tries, before[1] + failures]

    return note


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What tries a promise is part of `make stress`, also where it is cheap."""
    for item in items:
        if "tried" in getattr(item, "fixturenames", ()):
            item.add_marker("promise")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes or more for the whole suite; for a file or two, their start would cost more than they save."""
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return min(len(os.sched_getaffinity(0)), 8) if is_whole and hasattr(os, "sched_getaffinity") else 0


def counted(reporter: pytest.TerminalReporter) -> dict[str, tuple[int, int]]:
    """Promise → tries, failures: what the tests of all processes have noted."""
    counts = dict.fromkeys(PROMISES, (0, 0))
    reports = [found for found in itertools.chain(*reporter.stats.values()) if isinstance(found, pytest.TestReport)]
    for report in reports:
        noted = dict(report.user_properties).get("tried", {}) if report.when == "call" else {}
        silent = report.failed and not any(failures for _, failures in noted.values())
        for promise, (tries, failures) in noted.items():
            failed = failures + (silent and promise == [*noted][-1])
            counts[promise] = (counts[promise][0] + tries, counts[promise][1] + failed)
    return counts


def is_whole_matrix(config: pytest.Config) -> bool:
    return "promise" in config.option.markexpr and config.args_source is not pytest.Config.ArgsSource.ARGS


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The matrix fails, too, if something of it was not tried."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and is_whole_matrix(session.config) and session.exitstatus == pytest.ExitCode.OK:
        short = [promise for promise, (tries, _) in counted(reporter).items() if tries < PROMISES[promise]]
        session.exitstatus = pytest.ExitCode.TESTS_FAILED if short else session.exitstatus


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of `make stress`: each promise, how often it was tried and is to be, and how often it failed."""
    if "promise" not in config.option.markexpr:
        return
    terminalreporter.section("promises")
    terminalreporter.write_line(f"{'promise':58}{'tries':>8}{'at least':>10}{'failures':>10}")
    for promise, (tries, failures) in counted(terminalreporter).items():
        if tries or is_whole_matrix(config):
            few = "  too few" if tries < PROMISES[promise] and is_whole_matrix(config) else ""
            terminalreporter.write_line(f"{promise:58}{tries:>8,}{PROMISES[promise]:>10,}{failures:>10}{few}")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, away from the person's cache, with the same random numbers in any order."""
    random.seed(0)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture
def microgpt(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*words: str) -> Ran:
        capfd.readouterr()
        try:
            status = cli.main(words)
        finally:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        captured = capfd.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@functools.cache
def composed_once(verb: str, words: Any, compose: Any = composing.compose) -> Any:
    """What a command's words compose to, once for the same words: it takes longer than a run of a few tiny steps."""
    return compose(cli.VERBS, verb, words)


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what costs most of a small run, where nothing of it matters: the picture, a long sample, composing."""
    monkeypatch.setattr(plots, "draw_loss", lambda path, *_: storage.replace(path, b"a picture"))
    monkeypatch.setattr(train_command, "LAST_SAMPLE_TOKENS", 20)
    monkeypatch.setattr(composing, "compose", lambda _, verb, words: composed_once(verb, words))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "my.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run: 30 steps of a tiny model on TEXT. Read only: copy it to change it."""
    home = tmp_path_factory.mktemp("trained")
    (home / "my.txt").write_text(TEXT, encoding="utf-8")
    before = Path.cwd()
    os.chdir(home)
    try:
        words = [
            "train",
            *TINY,
            f"data.path={home / 'my.txt'}",
            "max_steps=30",
            "eval_interval=10",
            f"out_dir={home}/run",
        ]
        assert cli.main([*words, "sample_interval=10", "checkpoint_interval=10"]) == 0
    finally:
        os.chdir(before)
    return home / "run"


@pytest.fixture
def step(trained: Path, tmp_path: Path) -> Path:
    """The only checkpoint of a copied run."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    newest, *others = layout.step_folders(run)
    for other in others:
        shutil.rmtree(other)
    (run / layout.CHECKPOINTS / layout.BEST).write_bytes(storage.json_bytes({"checkpoint": newest.name}))
    return newest


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare, where the environment says it lies."""
    path = os.environ.get("MICROGPT_SHAKESPEARE")
    if path is None:
        pytest.skip("set MICROGPT_SHAKESPEARE to the path of tinyshakespeare.txt")
    return Path(path)


@pytest.fixture(scope="session")
def browser() -> Iterator[browsers.Browser]:
    """A real browser without a window, see support/browser.py; started once for all tests that ask."""
    executable = browsers.find()
    if executable is None:
        pytest.skip("no browser on the PATH to open the page in; install chromium (apt-get install chromium)")
    running = browsers.Browser(executable)
    yield running
    running.close()


def meta_at(step: int) -> dict[str, object]:
    """What the trainer notes in a checkpoint."""
    texts = dict.fromkeys(("microgpt", "torch", "python", "device", "dtype"), "x")
    state = State(step=step, tokens=step, train_seconds=1.0)
    return {**texts, "threads": 1, "text_sha256": "0" * 64, "state": dataclasses.asdict(state)}


@functools.cache
def _model_of(trained_config: bytes, vocab_size: int) -> tuple[GPT, AdamW | Muon]:
    config = from_json(TrainConfig, storage.parse_json(trained_config, "config.json"), "config.json")
    model = GPT(config.model, vocab_size)
    return model, make_optimizer(model.named_parameters(), config.optim)


def save_filled(run: Path, step: int, best: int | None) -> None:
    """A checkpoint in a run's folder whose every number is its step, for tests that make many."""
    tokenizer = storage.parse_json(storage.read_bytes(run / "tokenizer.json"), "tokenizer.json")
    model, optimizer = _model_of(storage.read_bytes(run / "config.json"), len(tokenizer["chars"]))
    state = optimizer.state()
    with torch.no_grad():
        for tensor in (*model.parameters(), *state.values()):
            tensor.fill_(step)
    checkpoint.save(run, step, checkpoint.weights_of(model), state, meta_at(step), best)


def preset(size: str, arch: str, **changes: object) -> ModelConfig:
    """A model config as `model=SIZE arch=ARCH` composes it."""
    values: dict[str, object] = {}
    for group, choice in (("model", size), ("arch", arch)):
        values |= yaml.safe_load((cli.CONF / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    return ModelConfig(**(values | changes))  # type: ignore[arg-type]


def optim(**changes: float | int | str | None) -> OptimConfig:
    """An optimizer of `conf/optim/`, by default AdamW, with changes."""
    values = yaml.safe_load((cli.CONF / "optim" / f"{changes.get('kind', 'adamw')}.yaml").read_text(encoding="utf-8"))
    numbers = {
        name: float(value) if isinstance(value, str) and name not in ("schedule", "kind") else value
        for name, value in values.items()
    }
    return OptimConfig(**(numbers | changes))  # type: ignore[arg-type]
