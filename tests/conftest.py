"""What the tests share: a small text, a way to run the command in-process, and one small trained run."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import browser as browsers
import pytest
import torch
import yaml

from microgpt_cli import cli
from microgpt_cli.config import ModelConfig, OptimConfig, TrainConfig, from_json
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import storage
from microgpt_cli.training import checkpoint
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
Tried = Callable[[str, int, int], None]
TRIED = pytest.StashKey[dict[str, list[int]]]()


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Note that a promise was tried so often and failed so often, for the table at the end."""
    counts = request.config.stash.setdefault(TRIED, {})

    def note(promise: str, tries: int, failures: int) -> None:
        count = counts.setdefault(promise, [0, 0])
        count[0] += tries
        count[1] += failures

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash.get(TRIED, {})
    if counts:
        terminalreporter.section("promises")
        for promise, (tries, failures) in counts.items():
            terminalreporter.write_line(f"{promise:50}{tries:>8,} tries{failures:>6} failures")


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, away from the person's cache."""
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


@pytest.fixture(scope="session")
def shakespeare() -> Path:
    """Tiny Shakespeare, where the environment says it lies."""
    path = os.environ.get("MICROGPT_SHAKESPEARE")
    if path is None:
        pytest.skip("set MICROGPT_SHAKESPEARE to the path of tinyshakespeare.txt")
    return Path(path)


@pytest.fixture(scope="session")
def browser() -> Iterator[browsers.Browser]:
    """A real browser without a window, see browser.py; started once for all tests that ask."""
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
