"""`out=` writes into what is no regular file, follows links, and replaces a regular file only as a whole."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.errors import UserError
from microgpt_cli.runs import outputs, storage

BEGINNING = {
    "sample": b"The quick",
    "eval": b"<!doctype html>",
    "inspect": b"<!doctype html>",
    "report": b"<!doctype html>",
    "diagram": b"<svg",
}


def words_of(verb: str, trained: Path, out: str) -> list[str]:
    words = {
        "sample": [f"ckpt={trained}", "prompt=The quick", "max_new_tokens=3"],
        "eval": [f"ckpt={trained}", "per_token=true"],
        "inspect": [f"ckpt={trained}", "prompt=The quick"],
        "report": [f"run={trained}"],
        "diagram": [f"ckpt={trained}"],
    }
    return [verb, *words[verb], f"out={out}"]


@pytest.mark.parametrize("verb", BEGINNING)
def test_a_pipe_is_written_into(microgpt: Run, trained: Path, tmp_path: Path, verb: str) -> None:
    pipe = tmp_path / "pipe.svg"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert microgpt(*words_of(verb, trained, str(pipe))).status == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    reader.join(timeout=60)
    assert read[0].startswith(BEGINNING[verb])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".pipe")] == []


@pytest.mark.parametrize("verb", BEGINNING)
@pytest.mark.parametrize("out", ["-", "/dev/stdout", "/dev/fd/1", "linked.svg"])
def test_standard_output_has_the_file_alone(microgpt: Run, trained: Path, verb: str, out: str) -> None:
    if out == "linked.svg":
        Path(out).symlink_to("/dev/stdout")
    ran = microgpt(*words_of(verb, trained, out))
    assert (ran.status, ran.out.encode()[: len(BEGINNING[verb])]) == (0, BEGINNING[verb]), ran.err
    assert ran.out.encode().rstrip().endswith((b">", b"</html>")) or verb == "sample"
    assert Path("/dev/stdout").is_symlink()
    assert not os.path.lexists("-")


@pytest.mark.parametrize("verb", BEGINNING)
def test_a_device_stays_a_device(microgpt: Run, trained: Path, tmp_path: Path, verb: str) -> None:
    device = tmp_path / "null.svg"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")  # refused where the file system has no devices
    except OSError as error:
        pytest.skip(f"no device can be made here: {error}")
    assert microgpt(*words_of(verb, trained, str(device))).status == 0
    assert stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("verb", BEGINNING)
def test_a_link_is_followed(microgpt: Run, trained: Path, tmp_path: Path, verb: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real.svg").write_text("old")
    (tmp_path / "link.svg").symlink_to("folder/real.svg")
    assert microgpt(*words_of(verb, trained, "link.svg")).status == 0
    assert (tmp_path / "link.svg").is_symlink()
    assert (tmp_path / "folder" / "real.svg").read_bytes().startswith(BEGINNING[verb])


def test_plots_follow_links(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name in ("runs.png", "compare.png"):
        (tmp_path / name).symlink_to(f"real-{name}")
    assert microgpt("runs", str(trained), "plot=true", "out=.").status == 0
    assert microgpt("compare", str(trained), str(trained), "sample=false", "out=.").status == 0
    for name in ("runs.png", "compare.png"):
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / f"real-{name}").read_bytes().startswith(b"\x89PNG")


def test_a_link_to_nothing_makes_its_file_and_one_to_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new").symlink_to("made")
    outputs.write(outputs.file_to_write("new"), b"text")
    assert (tmp_path / "made").read_bytes() == b"text"
    (tmp_path / "lost").symlink_to("nowhere/made")
    with pytest.raises(UserError, match="out=lost: no such folder"):
        outputs.file_to_write("lost")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        outputs.write(outputs.file_to_write("loop"), b"text")
    assert (tmp_path / "loop").is_symlink()


def test_a_regular_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something longer than what comes")
    before = (tmp_path / "file").stat().st_ino
    outputs.write(outputs.file_to_write("file"), b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
    assert (tmp_path / "file").stat().st_ino != before
    outputs.write(outputs.file_to_write("./-"), b"a file of that name")
    assert (tmp_path / "-").read_bytes() == b"a file of that name"


def test_a_file_that_cannot_be_replaced_is_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is mounted by itself into a container."""

    def refuse(path: Path, data: bytes) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    monkeypatch.setattr(storage, "replace", refuse)
    (tmp_path / "file").write_text("something longer than what comes")
    outputs.write(outputs.file_to_write("file"), b"text")
    assert (tmp_path / "file").read_bytes() == b"text"
    with pytest.raises(OSError, match="busy"):
        outputs.write(outputs.file_to_write("new"), b"text")


def test_an_open_descriptor_is_written_to(trained: Path) -> None:
    """As `out=>(gzip > file)` gives one, and as a shell's `3> file`."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "microgpt_cli", *words_of("sample", trained, f"/dev/fd/{writing}")]
    subprocess.run(command, pass_fds=[writing], check=True, capture_output=True, timeout=100)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read().startswith(b"The quick")


def test_closed_standard_output_is_one_line(trained: Path) -> None:
    command = f"{sys.executable} -m microgpt_cli {' '.join(words_of('report', trained, '-'))} >&-"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, timeout=100)
    assert ran.returncode in (1, 2)
    assert "Bad file descriptor" in ran.stderr
