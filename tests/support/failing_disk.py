"""A disk whose calls fail, and what must be left of a command that met one."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, TINY, Ran, Run

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.runs import layout, storage

NAMELESS = ("write", "fsync", "ftruncate")  # the kernel's error does not say which file
CALLS = (*NAMELESS, "open", "replace", "mkdir", "symlink", "unlink", "rmdir")
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


def failing_train(microgpt: Run) -> Callable[..., Ran]:
    """A function that trains on a disk that fails; its `calls` are those of the last time."""
    Path("my.txt").write_text(TEXT, encoding="utf-8")

    def run(*words: str, **fault: Any) -> Ran:
        with failing(**fault) as failing_os:
            ran = microgpt("train", *words)
        run.calls = failing_os.made  # type: ignore[attr-defined]
        return ran

    return run


KEPT = ("metrics.jsonl", "samples.txt", "ckpt/best.json", *(f"ckpt/step-00000004/{n}" for n in checkpoint.FILES))


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
    assert f"go on with: microgpt train resume={run}" in ran.err
    again = train(f"resume={run}")
    if again.status != 0:  # it was whole, but for the fsync of the name of its result
        assert broken
        assert "finished already" in again.err
    assert json.loads((run / layout.RESULT).read_bytes())["status"] == "finished"
    for file in KEPT:
        ours, theirs = (folder / file for folder in (run, whole))
        assert ours.read_bytes() == theirs.read_bytes() or file.endswith((layout.CONFIG, checkpoint.META)), file
    return 1
