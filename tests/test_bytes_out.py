"""What a model of bytes writes comes out as it is: into files, pipes and samples; a person sees U+FFFD."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

from microgpt_cli.cli import main as cli
from microgpt_cli.commands import sample, train
from microgpt_cli.runs.samples import read_samples

WRITTEN = b"d\xe9j\xe0 vu \xe6\x9d\x8e\xff\xe2\x82"  # Latin-1, a whole character, half a one
SHOWN = WRITTEN.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bytes")
    (home / "l1.txt").write_bytes(b"d\xe9j\xe0 vu. " * 100)
    words = ["train", *TINY, "tokenizer=byte", f"data.path={home / 'l1.txt'}", "max_steps=1", f"out_dir={home / 'run'}"]
    assert cli.main(words) == 0
    return home / "run"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(model: Any, ids: Any, count: int, sampler: Any, draws: Any, rows: int = 1, **_: Any) -> Iterator[Any]:
        return ([byte] * rows for byte in WRITTEN)

    for module in (sample, train):
        monkeypatch.setattr(module, "generate", generate)
    monkeypatch.setattr("microgpt_cli.generation.generate.generate", generate)


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("words", [[], ["stream=false"], ["num_samples=2"], ["stop=\udcff"]])
def test_sample_writes_the_bytes(
    run: Path, words: list[str], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    expected = WRITTEN[: WRITTEN.index(b"\xff")] if words == ["stop=\udcff"] else WRITTEN
    expected = b"\xe9" + expected + (b"\n\xe9" + expected if words == ["num_samples=2"] else b"")
    capfdbinary.readouterr()
    assert cli.main(["sample", f"ckpt={run}", "prompt=\udce9", *words]) == 0
    assert capfdbinary.readouterr().out == expected
    assert cli.main(["sample", f"ckpt={run}", "prompt=\udce9", "out=made", *words]) == 0
    assert (tmp_path / "made").read_bytes() == expected


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("words", [[], ["num_samples=2"]])
def test_a_terminal_shows_the_replacement_character(
    run: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.BytesIO()
    stream = io.TextIOWrapper(screen, encoding="utf-8", write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["sample", f"ckpt={run}", "prompt=a", *words]) == 0
    assert screen.getvalue().decode() == "\n".join(["a" + SHOWN] * (len(words) + 1)) + "\n"


@pytest.mark.usefixtures("written")
def test_samples_of_a_run_keep_the_bytes_and_are_shown_readable(
    run: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    words = [*TINY, "tokenizer=byte", f"data.path={run.parent / 'l1.txt'}", "max_steps=2", "sample_interval=1"]
    assert cli.main(["train", *words, "out_dir=run"]) == 0
    assert b"\xef\xbf\xbd" in capfdbinary.readouterr().out
    assert (tmp_path / "run" / "samples.txt").read_bytes().count(WRITTEN) == 2
    assert [sample.text for sample in read_samples(tmp_path / "run")] == [SHOWN] * 2
    for verb in (["report", "run"], ["replay", "run"], ["compare", "run", "run", "sample=true"]):
        assert cli.main(verb) == 0
    capfdbinary.readouterr().out.decode()
