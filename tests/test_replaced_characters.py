"""Figures of a text with characters that the vocabulary lacks are those of the text, not of U+FFFD."""

import re
import shutil
from pathlib import Path

import pytest
from conftest import TEXT, TINY, Ran, Run

from microgpt_cli.cli import main as cli
from microgpt_cli.data import corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("replacing")
    (home / "my.txt").write_text(TEXT)
    words = ["train", *TINY, "tokenizer.unknown=replace", f"data.path={home / 'my.txt'}", "max_steps=1"]
    assert cli.main([*words, f"out_dir={home / 'run'}"]) == 0
    return home / "run"


def figures(ran: Ran) -> dict[str, float]:
    assert ran.status == 0, ran.err
    return {name: float(value) for name, value in re.findall(r"^(loss|bits per \w+) +([\d.]+)", ran.out, re.MULTILINE)}


@pytest.mark.parametrize(
    ("text", "bytes_per_character", "says"),
    [
        ("#" * 999, 1, "998 characters (100.00%)"),
        ("é" * 999, 2, "998 characters (100.00%)"),
        ("李" * 999, 3, "998 characters (100.00%)"),
        ("\U0001f600" * 999, 4, "998 characters (100.00%)"),
        ("\ufffd" * 999, 3, None),
        ("T" * 999, 1, None),
        ("T" + "é" + "a" * 999, 1001 / 1000, "1 characters (0.10%)"),
    ],
)
@pytest.mark.parametrize("per_token", ["false", "true"])
def test_bits_a_byte_are_of_the_text_that_was_read(
    microgpt: Run, run: Path, text: str, bytes_per_character: float, says: str | None, per_token: str
) -> None:
    Path("other.txt").write_text(text, encoding="utf-8")
    ran = microgpt("eval", f"ckpt={run}", "data.path=other.txt", f"per_token={per_token}", "out=page.html")
    found = figures(ran)
    assert found["bits per byte"] == pytest.approx(found["bits per character"] / bytes_per_character, abs=1e-4)
    line = f"{says} are not in the vocabulary, counted as U+FFFD"
    assert line in ran.out if says else "not in the vocabulary" not in ran.out


@pytest.mark.parametrize(("split", "expected"), [("train", 1.0), ("val", 2.0), ("all", None)])
def test_the_bytes_are_those_of_the_split(
    microgpt: Run, run: Path, split: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last tenth is of another kind, and the text is read in small pieces that end within characters."""
    monkeypatch.setattr(corpus, "CHUNK_BYTES", 7)
    Path("other.txt").write_text("#" * 901 + "é" * 100, encoding="utf-8")
    found = figures(microgpt("eval", f"ckpt={run}", "data.path=other.txt", f"split={split}"))
    per_byte = found["bits per character"] / found["bits per byte"]
    assert per_byte == pytest.approx(expected or 1100 / 1000, abs=1e-3)


def test_a_run_on_its_own_text_says_nothing_of_it(microgpt: Run, run: Path) -> None:
    copied = Path(shutil.copytree(run, "run"))
    ran = microgpt("eval", f"ckpt={copied}")
    assert "vocabulary" not in ran.out
    assert figures(ran)["bits per byte"] == figures(ran)["bits per character"]
