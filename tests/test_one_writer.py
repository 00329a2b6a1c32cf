"""A run has one writer: whoever comes second hears of it at once and changes nothing; a lock dies with its holder."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY, Tried

from microgpt_cli.cli import main as cli
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout

HOLD = """
import sys, time
from pathlib import Path
from microgpt_cli.runs import layout
with layout.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""
# The second writer: `microgpt` in a process of its own that says whether it had to import torch to find out.
SECOND = """
import sys
from microgpt_cli.cli import main as cli
status = cli.main(sys.argv[1:])
assert "torch" not in sys.modules, "seconds went by before it looked"
sys.exit(status)
"""

# `microgpt` in so many processes, which all wait until the last of them is there.
TOGETHER = """
import os, sys
import torch
import microgpt_cli.commands.train
from support.killing import in_child, status_of
from microgpt_cli.cli import main as cli
torch.set_num_threads(1)
waiting, begin = os.pipe()
def train():
    os.close(begin)
    os.read(waiting, 1)
    return cli.main(sys.argv[2:])
processes = [in_child(train) for _ in range(int(sys.argv[1]))]
os.close(begin)
print(*map(status_of, processes))
"""
HERE = Path(__file__).parent


@pytest.fixture
def held(trained: Path, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A copy of a run that another process is writing to, and that process."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    with subprocess.Popen([sys.executable, "-c", HOLD, run], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        yield run, holder
        holder.kill()


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Each file's bytes and when it was written."""
    return {
        str(path): (path.read_bytes() if path.is_file() else b"", path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


def test_a_second_writer_is_refused_before_torch_is_imported_and_changes_nothing(
    held: tuple[Path, subprocess.Popen[str]], tmp_path: Path, tried: Tried
) -> None:
    tried("a second writer is refused")
    run, _ = held
    before = everything(tmp_path)
    second = [sys.executable, "-c", SECOND, "train", f"resume={run}", "max_steps=40"]
    ran = subprocess.run(second, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr == f"microgpt train: {run}: another process is writing to this run; wait for it or stop it\n"
    assert everything(tmp_path) == before


def test_a_new_run_takes_no_folder_that_has_one(trained: Path, tmp_path: Path) -> None:
    before = everything(trained)
    with pytest.raises(UserError, match="holds a run"), layout.new(str(trained), None, {}, {}):
        pass
    assert everything(trained) == before


def test_a_folder_that_was_empty_until_it_was_locked_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs begin in one folder, and the first is done before the second has the lock."""
    original = layout.locked

    def late(folder: Path):
        (folder / layout.CONFIG).write_text("of the first")
        return original(folder)

    monkeypatch.setattr(layout, "locked", late)
    with pytest.raises(UserError, match="not empty"), layout.new("one", None, {layout.CONFIG: b"of the second"}, {}):
        pass
    assert Path("one", layout.CONFIG).read_text() == "of the first"


def test_a_lock_dies_with_its_holder(held: tuple[Path, subprocess.Popen[str]], tried: Tried) -> None:
    tried("a second writer is refused")
    run, holder = held
    with pytest.raises(UserError, match="another process is writing"), layout.locked(run):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with layout.locked(run):
        pass


def test_a_name_left_by_a_process_that_died_does_not_stop_the_next(tmp_path: Path) -> None:
    """Its `.latest-PID` points somewhere, and our process has the same number."""
    Path("outputs").mkdir()
    Path("somewhere").mkdir()
    Path("somewhere", "of another").touch()
    Path("outputs", f".latest-{os.getpid()}").symlink_to("../somewhere")
    layout.point_latest(tmp_path / "run")
    assert os.readlink("outputs/latest") == "../run"
    assert os.listdir("somewhere") == ["of another"]


def begin_together(count: int, *words: str) -> list[int]:
    """Let so many processes train at once, forked from one that has imported torch; their exit statuses."""
    command = [sys.executable, "-c", TOGETHER, str(count), "train", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return sorted(map(int, done.stdout.split()))


@pytest.mark.stress
def test_20_runs_begun_together_have_20_folders(text_file: Path, tmp_path: Path, tried: Tried) -> None:
    tried("runs begun together", 20)
    assert begin_together(20, *TINY, f"data.path={text_file}", "max_steps=1") == [0] * 20
    runs = list((tmp_path / "outputs" / "train").iterdir())
    assert len(runs) == 20
    assert all([path.name for path in layout.step_folders(run)] == ["step-00000001"] for run in runs)
    assert layout.find_run("latest", "resume").resolve() in [run.resolve() for run in runs]


@pytest.mark.stress
def test_of_6_runs_begun_together_in_one_folder_one_goes_on(text_file: Path, tmp_path: Path, tried: Tried) -> None:
    tried("runs begun together", 6)
    statuses = begin_together(6, *TINY, f"data.path={text_file}", "max_steps=100", "out_dir=one")
    assert statuses == [0, *[2] * 5]
    assert cli.main(["train", "resume=one", f"data.path={text_file}", "max_steps=101"]) == 0
