"""Which files a text is made of: links are followed, each file is read once, the rest is told, pipes are read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Run
from test_corpus import data

from microgpt_cli.data import corpus
from microgpt_cli.data.corpus import open_corpus
from microgpt_cli.errors import UserError


@pytest.mark.parametrize("path", ["lp", "lp/**/*.txt"])
def test_each_file_is_read_once(tmp_path: Path, path: str) -> None:
    (tmp_path / "lp" / "sub").mkdir(parents=True)
    (tmp_path / "lp" / "t.txt").write_text("one\n")
    (tmp_path / "lp" / "sub" / "u.txt").write_text("two\n")
    (tmp_path / "lp" / "me").symlink_to(".")
    (tmp_path / "lp" / "again.txt").symlink_to("t.txt")
    os.link(tmp_path / "lp" / "t.txt", tmp_path / "lp" / "hard.txt")
    assert sorted(open_corpus(data(path)).text().split()) == ["one", "two"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("linked")
    (tmp_path / "d1").mkdir()
    (tmp_path / "d1" / "b.txt").write_text("here")
    (tmp_path / "d1" / "sub").symlink_to("../real")
    (tmp_path / "d1" / "nowhere").symlink_to("../gone")
    assert open_corpus(data("d1")).text() == "here\nlinked"


def test_what_is_left_out_is_told(microgpt: Run, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT)
    (folder / "README.md").write_text("about them")
    (folder / ".hidden").write_text("x")
    for n in range(4):
        (folder / f"{n}.py").write_text("x")
    (folder / "data.csv").write_text("1,2")
    note = open_corpus(data("texts")).note
    assert note == (
        "2 files, 5 others left out (.py 4, .csv 1): data.path='texts/**/*.py' takes those; "
        "README.md is among the texts"
    )
    for verb in ("train", "doctor"):
        assert note in microgpt(verb, *TINY, "data.path=texts", "max_steps=1").out
    assert len(open_corpus(data("texts/**/*.py")).sources) == 4
    (folder / "a.txt").unlink()
    (folder / "README.md").unlink()
    with pytest.raises(UserError, match=r"no \.txt or \.md file in this folder: 0 files, 5 others left out"):
        open_corpus(data("texts"))


def test_a_folder_of_texts_alone_has_no_note(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "README.md").write_text("the only text")
    assert open_corpus(data("texts")).note == ""


@pytest.mark.parametrize("path", ["/dev/stdin", "-"])
def test_a_piped_text_is_trained_on(path: str) -> None:
    command = [sys.executable, "-m", "microgpt_cli", "train", *TINY, f"data.path={path}", "max_steps=1"]
    ran = subprocess.run(command, input=TEXT, capture_output=True, text=True, check=False, timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert f"{len(TEXT):,} characters" in ran.stdout
    empty = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=200)
    assert "a pipe can be read only once" in empty.stderr


def test_pipes_and_files_without_a_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end, writer = os.pipe()  # as a shell's <(command) makes it
    os.write(writer, b"from a pipe")
    os.close(writer)
    found = open_corpus(data(f"/dev/fd/{end}"))
    os.close(end)
    assert [found.text(), found.text()] == ["from a pipe"] * 2
    if Path("/proc/version").exists():
        assert open_corpus(data("/proc/version")).text() == Path("/proc/version").read_text()
    monkeypatch.setattr(corpus, "MAX_PIPE_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1,000 bytes come out of it; save it to a file"):
        open_corpus(data("/dev/zero"))


@pytest.mark.parametrize("name", ["/dev/stdin", "-"])
def test_a_prompt_can_be_piped_in(trained: Path, name: str) -> None:
    words = ["sample", f"ckpt={trained}", f"prompt_file={name}", "max_new_tokens=3"]
    command = [sys.executable, "-m", "microgpt_cli", *words]
    ran = subprocess.run(command, input="The quick", capture_output=True, text=True, check=False, timeout=200)
    assert ran.stdout.startswith("The quick"), ran.stderr
