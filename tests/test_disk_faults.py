"""A full, failing or read-only disk gives a one-line error and loses no checkpoint, whichever call fails."""

import contextlib
import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, TINY, Ran, Run, Tried, save_filled

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS)
NAMELESS = ("write", "fsync", "ftruncate")  # the kernel's error does not say which file
CALLS = (*NAMELESS, "open", "replace", "mkdir", "symlink", "unlink", "rmdir")
PARTS = 4  # of what takes long, so that several processes share it
WORDS = [*TINY, "data.path=my.txt", "max_steps=4", "checkpoint_interval=2", "eval_interval=2", "log_interval=1"]


class FailingOs:
    """`os` for `storage`: one call that touches the disk fails, or all from one on.

    Args:
        fail_at: which call, counted from 0; None: none of them.
        number: the error.
        broken: whether the calls after it fail as well.
    """

    def __init__(self, fail_at: int | None = None, number: int = errno.EIO, broken: bool = False) -> None:
        self.fail_at, self.number, self.broken = fail_at, number, broken
        self.made: list[str] = []
        self.fsync_failed = False
        self.failed_fsyncs: set[tuple[int, int]] = set()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            index = len(self.made)
            self.made.append(name)
            fails = self.fail_at is not None and (index >= self.fail_at if self.broken else index == self.fail_at)
            if name == "fsync":
                self.never_again(arguments[0], fails)
            if self.fsync_failed and name == "replace":
                assert not layout.STEP_NAME.fullmatch(arguments[1].name), "published after a failed fsync"
            if fails:
                path = () if name in NAMELESS else (str(arguments[0]),)
                raise OSError(self.number, os.strerror(self.number), *path)
            if name in ("unlink", "rmdir"):
                self.failed_fsyncs.discard(identity(os.lstat(arguments[0])))  # the number may go to another file
            return real(*arguments, **named)

        return call

    def never_again(self, descriptor: int, fails: bool) -> None:
        """A second fsync would report success for bytes that are gone."""
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):  # a folder is synced again for another file
            assert identity(found) not in self.failed_fsyncs, "a failed fsync was retried"
        if fails:
            shared = [identity(os.stat(path)) for path in (".", "outputs") if os.path.exists(path)]
            self.fsync_failed |= identity(found) not in shared  # `outputs/latest` can be done without
            self.failed_fsyncs.add(identity(found))


def identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def failing(fail_at: int | None = None, number: int = errno.EIO, broken: bool = False) -> Iterator[FailingOs]:
    failing_os = FailingOs(fail_at, number, broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "os", failing_os)
        yield failing_os


def calls_of(work: Callable[[], object]) -> list[str]:
    with failing() as counted:
        work()
    return counted.made


# A save


def save(run: Path, step: int) -> None:
    save_filled(run, step, best=step)


def test_save_failing_at_any_call_loses_nothing_and_the_next_one_succeeds(
    trained: Path, tmp_path: Path, tried: Tried
) -> None:
    """Every call of a save, with what it removes, and every error, and a disk that works or not after that."""
    old = tmp_path / "old"
    old.mkdir()
    for name in (layout.CONFIG, layout.TOKENIZER):
        shutil.copy(trained / name, old)
    for step in (10, 20, 30):
        save(old, step)
    steps = {path.name for path in layout.step_folders(old)}
    calls = len(calls_of(lambda: save(Path(shutil.copytree(old, tmp_path / "counted")), 40)))
    assert calls >= 40
    for fail_at in range(calls):
        for broken in (False, True):
            tried("a call of a save fails, once or for good")
            run = Path(shutil.copytree(old, tmp_path / f"run-{fail_at}-{broken}"))
            number = ERRORS[fail_at % len(ERRORS)]
            with failing(fail_at, number, broken), pytest.raises(OSError, match=os.strerror(number)) as raised:
                save(run, 40)
            assert str(run) in raised.value.filename
            found = layout.step_folders(run)
            assert all(checkpoint.load(path) for path in found)
            published = layout.step_name(40) in {path.name for path in found}
            assert published or steps <= {path.name for path in found}
            assert broken or not list((run / layout.CHECKPOINTS).glob(".tmp-*"))  # it would fill a full disk
            save(run, 50)
            assert checkpoint.newest(run)[0].step == 50
            assert not [path for path in (run / layout.CHECKPOINTS).glob(".*") if path.is_dir()]
            shutil.rmtree(run)


# The start of a run


@pytest.mark.parametrize("out_dir", [None, "mine"])
def test_run_that_cannot_start_leaves_nothing(out_dir: str | None, tmp_path: Path, tried: Tried) -> None:
    files = {layout.TOKENIZER: b"{}", layout.CONFIG: b"{}"}

    def begin() -> None:
        with layout.new(out_dir, None, files, {"config.yaml": "a: 1"}):
            pass

    calls = len(calls_of(begin))
    for number in ERRORS:
        for fail_at in range(calls):
            tried("a run can't begin")
            for name in ("outputs", "mine"):
                shutil.rmtree(tmp_path / name, ignore_errors=True)
            with failing(fail_at, number), pytest.raises(UserError, match=os.strerror(number)) as raised:
                begin()
            assert raised.value.exit_status == 2
            assert "choose another folder with out_dir" in str(raised.value) or layout.LOCK in str(raised.value)
            left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
            assert left <= {layout.LOCK}, fail_at
            if out_dir is not None:
                begin()  # into the same folder, now that the disk works


# A whole command


@pytest.fixture
def train(microgpt: Run, cheap: None, tmp_path: Path) -> Callable[..., Ran]:
    """Train on a disk that fails."""
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")

    def run(*words: str, **fault: Any) -> Ran:
        with failing(**fault) as failing_os:
            ran = microgpt("train", *words)
        run.calls = failing_os.made  # type: ignore[attr-defined]
        return ran

    return run


KEPT = ("metrics.jsonl", "samples.txt", "ckpt/best.json", *(f"ckpt/step-00000004/{n}" for n in layout.STEP_FILES))


def check_command(train: Callable[..., Ran], whole: Path, fail_at: int, number: int, broken: bool) -> int:
    """Train on a failing disk, look at what is left, and go on; the exit status of the failure."""
    run = Path("run")
    for left in ("run", "outputs"):  # so that the calls are the same ones
        shutil.rmtree(left, ignore_errors=True)
    ran = train(*WORDS, f"out_dir={run}", fail_at=fail_at, number=number, broken=broken)
    assert "Traceback" not in ran.err
    if ran.status == 0:  # `outputs/latest` could not be a link; it is a file, or it is done without
        if "resume=latest will not find this run" not in ran.out:
            assert layout.find_run("latest", "resume").resolve() == run.resolve()
        return 0
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("microgpt train: ")
    assert os.strerror(number) in ran.err
    assert run.name in ran.err or "train: .: " in ran.err  # the folder that a new folder's name is in
    steps = layout.step_folders(run)
    assert all(checkpoint.load(path) for path in steps)
    if ran.status == 2:
        left = {path.name for path in run.rglob("*") if path.is_file()}
        assert left <= {layout.LOCK} or broken  # on such a disk nothing can be removed either
        return 2
    assert ran.status == 1
    if not broken:
        assert json.loads((run / layout.RESULT).read_bytes())["status"] == "failed"
    if not steps:
        assert "start again: nothing was saved" in ran.err
        return 1
    assert f"resume with: microgpt train resume={run}" in ran.err
    again = train(f"resume={run}")
    if again.status != 0:  # it was whole, but for the fsync of the name of its result
        assert broken
        assert "already finished" in again.err
    assert json.loads((run / layout.RESULT).read_bytes())["status"] == "finished"
    for file in KEPT:
        ours, theirs = (folder / file for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes() or file.endswith((layout.CONFIG, layout.META)), file
    return 1


def test_command_failing_at_each_kind_of_call_prints_one_line_and_resumes(
    train: Callable[..., Ran], tried: Tried
) -> None:
    whole = train(*WORDS, "out_dir=whole")
    assert whole.status == 0
    calls = train.calls  # type: ignore[attr-defined]
    first_of_a_kind = {name: calls.index(name) for name in CALLS if name in calls}
    last_of_a_kind = {name: len(calls) - 1 - calls[::-1].index(name) for name in ("write", "fsync", "replace")}
    statuses = set()
    for i, fail_at in enumerate(sorted({*first_of_a_kind.values(), *last_of_a_kind.values(), len(calls) // 2})):
        tried("a call of a whole command fails, once or for good")
        number, broken = ERRORS[i % len(ERRORS)], i % 3 == 2
        statuses.add(check_command(train, Path("whole"), fail_at, number, broken))
    assert statuses == {0, 1, 2}


@pytest.mark.stress
@pytest.mark.parametrize(("number", "broken"), [(errno.ENOSPC, False), (errno.EIO, True)], ids=["once", "from then on"])
@pytest.mark.parametrize("part", range(PARTS))
def test_command_failing_at_any_call_prints_one_line_and_resumes(
    part: int, number: int, broken: bool, train: Callable[..., Ran], tried: Tried
) -> None:
    assert train(*WORDS, "out_dir=whole").status == 0
    for fail_at in range(part, len(train.calls), PARTS):  # type: ignore[attr-defined]
        tried("a call of a whole command fails, once or for good")
        check_command(train, Path("whole"), fail_at, number, broken)


# What the system itself says


def test_file_size_limit(microgpt: Run, text_file: Path, trained: Path, tmp_path: Path, tried: Tried) -> None:
    tried("a full or read-only disk, a file too large")
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))  # the weights take 18,000 bytes
    try:
        ran = microgpt("train", f"resume={run}", "max_steps=40", f"data.path={text_file}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert f"{run}/ckpt/.tmp-" in ran.err
    assert "model.safetensors: File too large; allow larger files" in ran.err
    assert ran.err.endswith(f"then resume with: microgpt train resume={run} max_steps=40\n")
    assert checkpoint.newest(run)[0].step == 30
    assert microgpt("train", f"resume={run}", "max_steps=40", f"data.path={text_file}").status == 0
    assert checkpoint.newest(run)[0].step == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_descriptor_errors_name_the_file_and_full_stdout_prints_one_line() -> None:
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        storage.append(full, b"x")
    with full.open("wb") as file:
        ran = subprocess.run(
            [sys.executable, "-m", "microgpt_cli", "--help"], stdout=file, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "standard output: No space left on device" in ran.stderr


def on_a_disk(disk: str, words: list[str], kept: Path, before: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Train on a disk that is there for this alone, seen by no other process, and copy what it holds to `kept`."""
    mount = kept.with_name("disk")
    mount.mkdir()
    script = f"""
        {disk.format(mount=mount, before=before)}
        "$@"
        status=$?
        cp -r {mount}/. {kept}
        exit $status
    """
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if not shutil.which("unshare") or subprocess.run([*command[:3], "mount", "-t", "tmpfs", "none", mount]).returncode:
        pytest.skip("this system does not let us mount a disk of our own")
    training = [sys.executable, "-m", "microgpt_cli", "train", *words]
    return subprocess.run([*command, *training], capture_output=True, text=True, timeout=120)


@pytest.mark.stress
@pytest.mark.parametrize("size_kib", range(60, 300, 60))
def test_full_disk(size_kib: int, text_file: Path, trained: Path, tmp_path: Path, microgpt: Run, tried: Tried) -> None:
    """Large enough for the run that is there; the next checkpoints are more than it holds."""
    tried("a full or read-only disk, a file too large")
    kept = tmp_path / "kept"
    kept.mkdir()
    size = sum(-(-path.stat().st_size // 4096) * 4 for path in trained.rglob("*") if path.is_file()) + size_kib
    words = [f"resume={tmp_path / 'disk' / 'run'}", "max_steps=40", f"data.path={text_file}", "checkpoint_interval=2"]
    disk = f"mount -t tmpfs -o size={size}k none {{mount}} && cp -r {{before}} {{mount}}/run"
    ran = on_a_disk(disk, words, kept, trained)
    assert ran.returncode in (0, 1), ran.stderr
    if ran.returncode:
        assert ran.stderr.count("\n") == 1, ran.stderr
        assert "No space left on device; free some space" in ran.stderr
    steps = layout.step_folders(kept / "run")
    assert all(checkpoint.load(path) for path in steps)
    assert steps[0].name >= "step-00000030"
    if ran.returncode:
        again = microgpt("train", f"resume={kept / 'run'}", "max_steps=40", f"data.path={text_file}")
        assert again.status == 0, again.err
    assert checkpoint.newest(kept / "run")[0].step == 40


@pytest.mark.stress
def test_read_only_disk(text_file: Path, trained: Path, tmp_path: Path, tried: Tried) -> None:
    """For root too, whom file modes don't stop."""
    words = [*TINY, f"data.path={text_file}", "max_steps=2"]
    disk = "mount -t tmpfs none {mount} && cp -r {before} {mount}/run && mount -o remount,ro {mount}"
    for name, more in (("new", "out_dir={}/new"), ("old", "resume={}/run")):
        tried("a full or read-only disk, a file too large")
        kept = tmp_path / name / "kept"
        kept.mkdir(parents=True)
        ran = on_a_disk(disk, [*words, more.format(kept.with_name("disk"))], kept, trained)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1, ran.stderr
        assert "Read-only file system" in ran.stderr
        assert [path.name for path in kept.iterdir()] == ["run"]
        assert checkpoint.newest(kept / "run")[0].step == 30
