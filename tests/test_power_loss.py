"""Power may fail at any instant: whatever the disk then holds, a whole checkpoint is found, and no promise is broken.

The calls that change the disk are recorded (support/forgetful_disk.py), the states that a crash can leave after any of
them are built as real folders, and recovered from by the code that resumes a run.
"""

import contextlib
import copy
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Tried, save_filled
from support.forgetful_disk import (
    Killed,
    Promise,
    Recording,
    Tree,
    build,
    contents,
    crash_states,
    now,
    perform,
    read,
    recording,
    visible,
)

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.cli import main as cli
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage


class Recovery:
    """Recovers from crash states.

    Args:
        recorded: what led to them.
        scratch: a folder to build them in.
        each: build also those that differ in nothing that is ever read.
    """

    def __init__(self, recorded: Recording, scratch: Path, each: bool = False) -> None:
        self.recorded, self.scratch, self.each = recorded, scratch, each
        self.states: set[Tree] = set()
        self.checked: set[tuple[Tree, int]] = set()
        self.went_on: set[tuple[str, ...]] = set()
        (scratch / "store").mkdir(parents=True)

    def check(self, state: Tree, promise: Promise) -> None:
        """Raises `AssertionError` or an error of the program if a promise is broken."""
        self.states.add(state)
        key = (state if self.each else visible(state), id(promise))
        if key in self.checked:
            return
        self.checked.add(key)
        root = self.scratch / "state"
        build(state, root, self.scratch / "store")
        try:
            self._check(root, promise)
        finally:
            shutil.rmtree(root)

    def _check(self, root: Path, promise: Promise) -> None:
        recorded, run = self.recorded, root / self.recorded.run
        for name, versions in recorded.versions.items():
            path = root / name
            if name in promise.replaced:
                assert path.is_file(), f"{name} is gone"
                assert path.read_bytes() in versions[versions.index(promise.replaced[name]) :], f"{name} was lost"
            elif promise.step is not None and path.exists():
                assert path.read_bytes() in versions, f"{name} is neither old nor new"
        steps = layout.step_folders(run)
        for path in steps:
            same = (
                contents(path) == recorded.saved[path.name]
            )  # apart, for pytest takes minutes to tell how bytes differ
            assert same, f"{path.name} is not whole"
        if promise.step is None and not steps:
            return
        found, problems = checkpoint.newest(run)
        assert not problems
        assert promise.step is None or found.step >= promise.step, "the newest checkpoint was lost"
        best = run / layout.CHECKPOINTS / layout.BEST
        if best.exists():
            named = json.loads(best.read_bytes())["checkpoint"]
            assert layout.find_checkpoint(str(run)).name == named, "best.json names what is not there"
        assert promise.best is None or best.exists()
        for log, lines in recorded.logs[found.path.name].items():
            assert (run / log).is_file(), f"{log} is gone"
            assert (run / log).read_bytes().startswith(lines), f"{log} lost lines"
        self._go_on(run, found)

    def _go_on(self, run: Path, found: checkpoint.Checkpoint) -> None:
        """The next save succeeds and leaves nothing of what a crash had left; once for every set of names."""
        names = (*sorted(os.listdir(run)), *sorted(os.listdir(run / layout.CHECKPOINTS)))
        if names in self.went_on:
            return
        self.went_on.add(names)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "fsync", lambda *_: None)
            save_filled(run, 90, best=None)
        assert checkpoint.newest(run)[0].step == 90
        assert not [path for path in (run / layout.CHECKPOINTS).glob(".*") if path.is_dir()]


# What is recorded


RENAMED, TRASHED = 21, 29  # operations of the save of `better` when a new folder, an old one, has its new name


def save(run: Path, step: int, best: int) -> None:
    save_filled(run, step, best)


def older(recorded: Recording, trained: Path) -> Path:
    """A run with the checkpoints 10, 20 and 30, the first of them the best, and all of it durable."""
    run = recorded.root / "run"
    run.mkdir()
    for name in (layout.CONFIG, layout.TOKENIZER):
        shutil.copy(trained / name, run)
    before = Recording(recorded.root)
    with recording(before):
        for step in (10, 20, 30):
            save(run, step, best=10)
    recorded.saved, recorded.logs = before.saved, before.logs
    recorded.promise(step=30, best="step-00000010")
    return run


def new_run(recorded: Recording, trained: Path, sweep_dir: Path | None = None) -> None:
    files = {name: (trained / name).read_bytes() for name in (layout.CONFIG, layout.TOKENIZER)}
    with recording(recorded), layout.new(None, sweep_dir, files, {}) as run:
        save(run, 10, best=10)


def swept(recorded: Recording, trained: Path) -> None:
    """In a folder that Hydra has made, and not synced."""
    folder = Path("outputs", "sweeps", "2026-01-01", "0").absolute()
    with recording(recorded):
        for made in (*reversed(folder.parents[:3]), folder):
            storage.mkdir(made)
    new_run(recorded, trained, folder)


def better(recorded: Recording, trained: Path) -> None:
    """The new one is the best, so the best one of before goes."""
    run = older(recorded, trained)
    with recording(recorded):
        save(run, 40, best=40)


def worse(recorded: Recording, trained: Path) -> None:
    """The best one stays, and an old one goes."""
    run = older(recorded, trained)
    with recording(recorded):
        save(run, 40, best=10)


def killed_at(kill_at: int, then: int) -> Callable[[Recording, Path], None]:
    """A save that is killed, a next one that is not; and then the power fails."""

    def killed(recorded: Recording, trained: Path) -> None:
        run = older(recorded, trained)
        recorded.kill_at = kill_at
        with recording(recorded):
            with contextlib.suppress(Killed):
                save(run, 40, best=40)
            recorded.kill_at = None
            if then > 40:
                found, _ = checkpoint.newest(run)
                checkpoint.finish_save(run, 40 if found.step == 40 else 10)
            save(run, then, best=then)

    return killed


def command(recorded: Recording, trained: Path) -> None:
    """The whole of `microgpt train`, and `resume`."""
    (recorded.root / "my.txt").write_text(TEXT, encoding="utf-8")
    words = [*TINY, f"data.path={recorded.root / 'my.txt'}", "max_steps=2", "log_interval=1", "checkpoint_interval=1"]
    with recording(recorded):
        assert cli.main(["train", *words, "out_dir=run", "eval_interval=2"]) == 0
        assert cli.main(["train", "resume=run", "max_steps=3"]) == 0


SCENARIOS = {
    "a new run": new_run,
    "a new run in a sweep": swept,
    "the best so far": better,
    "not the best": worse,
    "the whole command": command,
    "killed before fsync of a rename to step-…, saved again": killed_at(RENAMED, 40),
    "killed before fsync of a rename to .trash-…, saved again": killed_at(TRASHED, 40),
    "killed before fsync of a rename to step-…, taken over": killed_at(RENAMED, 50),
    "killed before fsync of a rename to .trash-…, taken over": killed_at(TRASHED, 50),
}
FILES = (*layout.STEP_FILES, layout.MANIFEST)
# Every fsync of the code (the functions it is called through, and what it is for), and where leaving it out does harm.
FSYNCS = {
    "sync_folder < make_folder < make_folders home": "a new run",
    "sync_folder < make_folder < make_folders outputs": "a new run",
    "sync_folder < make_folder train": "a new run",
    "sync_folder < create home": "a new run in a sweep",
    "sync_folder < create outputs": "a new run in a sweep",
    "sync_folder < create sweeps": "a new run in a sweep",
    "sync_folder < create N": "a new run in a sweep",
    "write_new config.json": "a new run",
    "write_new tokenizer.json": "a new run",
    "metrics.jsonl": "the whole command",
    "timings.jsonl": "the whole command",
    "sync_folder < make_folder run": "the whole command",
    "sync_folder < make_folder N": "a new run",
    **{f"write_new < publish_folder {name}": "not the best" for name in FILES},
    "sync_folder < publish_folder .tmp-step-N": "not the best",
    "sync_folder < publish_folder ckpt": "the best so far",
    "sync_folder < save ckpt": "killed before fsync of a rename to step-…, saved again",
    "sync_folder < finish_save ckpt": "killed before fsync of a rename to step-…, taken over",
    "write_new < replace": "the best so far",
    "sync_folder < replace": "the best so far",
    "sync_folder < remove_stale_folders < remove_folders ckpt": "not the best",
    "sync_folder < remove_stale_folders ckpt": "killed before fsync of a rename to .trash-…, saved again",
}


@pytest.fixture(scope="module")
def recorded(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recording]:
    """What a scenario does to the disk."""

    @functools.cache
    def record(name: str) -> Recording:
        recording = Recording(tmp_path_factory.mktemp("home") / "home")
        recording.root.mkdir()
        before = Path.cwd()
        os.chdir(recording.root)
        try:
            SCENARIOS[name](recording, trained)
        finally:
            os.chdir(before)
        return recording

    return record


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Where states are built: in memory, where there is a disk of it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)


def explore(recorded: Recording, scratch: Path, without: str | None = None, each: bool = False) -> int:
    """Recover from every crash state; how many different ones there were."""
    recovery = Recovery(recorded, scratch, each)
    for state, promise in crash_states(recorded, without):
        recovery.check(state, promise)
    return len(recovery.states)


def test_every_write_is_recorded_and_the_disk_model_matches_the_disk(recorded: Callable[[str], Recording]) -> None:
    """Nothing a run writes goes past `storage`, and the modelled disk holds the bytes of the real one."""
    for name in SCENARIOS:
        recording = recorded(name)
        root = copy.deepcopy(recording.start)
        for operation in recording.operations:
            perform(root, operation)
        assert now(root) == now(read(recording.root)), name


def test_power_loss_at_any_instant_loses_nothing_durable(
    recorded: Callable[[str], Recording], scratch: Path, tried: Tried
) -> None:
    counts = {name: explore(recorded(name), scratch / str(i)) for i, name in enumerate(SCENARIOS)}
    tried("power loss: states of the disk recovered from", sum(counts.values()))
    assert sum(counts.values()) >= 1000, counts


def test_every_fsync_is_listed(recorded: Callable[[str], Recording]) -> None:
    places = {place for name in SCENARIOS for call, _, _, place in recorded(name).operations if call == "fsync"}
    assert places == set(FSYNCS)


@pytest.mark.parametrize("fsync", FSYNCS)
def test_each_fsync_is_necessary(fsync: str, recorded: Callable[[str], Recording], scratch: Path, tried: Tried) -> None:
    tried("power loss: an fsync left out is noticed")
    with pytest.raises((AssertionError, UserError)):
        explore(recorded(FSYNCS[fsync]), scratch / "run", without=fsync)


@pytest.mark.stress
@pytest.mark.parametrize("kill_at", range(45))
def test_kill_followed_by_power_loss(kill_at: int, trained: Path, tmp_path: Path, scratch: Path, tried: Tried) -> None:
    recording = Recording(tmp_path / "home")
    recording.root.mkdir()
    killed_at(kill_at, 50)(recording, trained)
    tried("power loss after a kill", explore(recording, scratch / "run"))


@pytest.mark.stress
@pytest.mark.parametrize("name", ["a new run", "the best so far", "not the best"])
def test_every_crash_state_recovers_even_if_only_unread_files_differ(
    name: str, recorded: Callable[[str], Recording], scratch: Path, tried: Tried
) -> None:
    states = explore(recorded(name), scratch / "run", each=True)
    tried("power loss: states of the disk recovered from", states)
    assert states >= 300
