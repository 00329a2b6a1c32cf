"""A disk that is full, broken or read-only costs one line and no checkpoint, whichever call it is that fails."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Ran, Run, Tried, save_filled
from support.failing_disk import CALLS, WORDS, calls_of, check_command, failing, failing_train

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

ERRORS = (errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS)
PARTS = 4  # of what takes long, so that several processes share it


# A save


def save(run: Path, step: int) -> None:
    save_filled(run, step, best=step)


def test_a_save_that_fails_at_any_call_loses_nothing_and_the_next_one_succeeds(
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
def test_a_run_that_cannot_begin_leaves_nothing(out_dir: str | None, tmp_path: Path, tried: Tried) -> None:
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
def train(microgpt: Run, cheap: None) -> Callable[..., Ran]:
    """Train on a disk that fails."""
    return failing_train(microgpt)


def test_a_command_that_fails_at_a_call_of_each_kind_says_so_in_a_line_and_is_resumed(
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
def test_a_command_that_fails_at_any_call_says_so_in_a_line_and_is_resumed(
    part: int, number: int, broken: bool, train: Callable[..., Ran], tried: Tried
) -> None:
    assert train(*WORDS, "out_dir=whole").status == 0
    for fail_at in range(part, len(train.calls), PARTS):  # type: ignore[attr-defined]
        tried("a call of a whole command fails, once or for good")
        check_command(train, Path("whole"), fail_at, number, broken)


# What the system itself says


def test_a_file_that_may_not_be_so_large(
    microgpt: Run, text_file: Path, trained: Path, tmp_path: Path, tried: Tried
) -> None:
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
    assert ran.err.endswith(f"then go on with: microgpt train resume={run} max_steps=40\n")
    assert checkpoint.newest(run)[0].step == 30
    assert microgpt("train", f"resume={run}", "max_steps=40", f"data.path={text_file}").status == 0
    assert checkpoint.newest(run)[0].step == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_errors_of_a_descriptor_name_the_file_and_a_full_standard_output_is_told_in_a_line() -> None:
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
def test_a_disk_that_is_full(
    size_kib: int, text_file: Path, trained: Path, tmp_path: Path, microgpt: Run, tried: Tried
) -> None:
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
        assert "No space left on device; make room" in ran.stderr
    steps = layout.step_folders(kept / "run")
    assert all(checkpoint.load(path) for path in steps)
    assert steps[0].name >= "step-00000030"
    if ran.returncode:
        again = microgpt("train", f"resume={kept / 'run'}", "max_steps=40", f"data.path={text_file}")
        assert again.status == 0, again.err
    assert checkpoint.newest(kept / "run")[0].step == 40


@pytest.mark.stress
def test_a_read_only_disk(text_file: Path, trained: Path, tmp_path: Path, tried: Tried) -> None:
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
