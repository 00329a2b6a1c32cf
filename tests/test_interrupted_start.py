"""What a start leaves behind that was killed, and texts that change while they are read."""

import hashlib
import os
from pathlib import Path

import pytest
from conftest import TINY, Run

from microgpt_cli.commands import dataset_cache
from microgpt_cli.data import dataset
from microgpt_cli.data.corpus import Corpus, writing_in
from microgpt_cli.data.tokenizers import CharTokenizer

WORDS = ["train", *TINY, "data.path=my.txt", "data.cache_dir=cache", "max_steps=1", "out_dir=run"]


def left_behind() -> Path:
    """A file that a killed process was writing."""
    left = Path("cache/tokens/.0123.bin.abcd")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    return left


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_the_next_start_removes_what_a_killed_one_left_unless_another_writes(
    microgpt: Run, text_file: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    left = left_behind()
    with writing_in(left.parent, "none"):
        assert microgpt(*WORDS).status == 0
        assert left.exists()
    for path in left.parent.glob("*.bin"):
        path.unlink()
    dataset_cache._encoded.cache_clear()  # of this process
    assert microgpt(*WORDS[:-1], "out_dir=other").status == 0
    assert sorted(path.suffix for path in left.parent.iterdir()) == [".bin", ".json"]


@pytest.mark.parametrize("added", ["the", "\N{SNOWMAN}"])
@pytest.mark.parametrize(
    ("pass_over_it", "limit"),
    [("chunks", 1 << 20), ("text_chunks", 1 << 20), ("sha256", 0), ("chunks", 0), ("text_chunks", 0)],
)
def test_a_text_that_changes_while_it_is_read_is_refused(
    pass_over_it: str, added: str, limit: int, microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", limit)
    original, changed = getattr(Corpus, pass_over_it), []

    def change(corpus: Corpus, *args: object) -> object:
        found = original(corpus, *args)
        if not changed:
            changed.append(True)
            with text_file.open("a", encoding="utf-8") as file:
                file.write(added)
            os.utime(text_file, ns=(0, 0))
        return found

    monkeypatch.setattr(Corpus, pass_over_it, change)
    ran = microgpt(*WORDS)
    assert (ran.status, ran.err) == (
        2,
        "microgpt train: my.txt: it changed while it was read; begin again when it is whole\n",
    )
    assert not Path("run").exists()
    now = hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert all(
        path.name.startswith(now[:32]) for path in Path("cache/tokens").glob("*")
    )  # no text under another's name
    assert not list(Path("cache/tokens").glob(".*"))


def test_a_text_that_goes_while_it_is_read_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus("my.txt", (text_file,))
    tokenizer = CharTokenizer("".join(sorted(set(text_file.read_text()))))
    encode = dataset._encoded
    monkeypatch.setattr(dataset, "_encoded", lambda *args: (list(encode(*args)), text_file.unlink())[0])
    with pytest.raises(dataset.UserError, match="it changed while it was read"):
        dataset.encode(corpus, tokenizer, Path("cache"))
