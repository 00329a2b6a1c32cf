"""Statistics of a text."""

from pathlib import Path

import pytest

from microgpt_cli.data.corpus import Corpus
from microgpt_cli.errors import UserError
from microgpt_cli.insight.text_stats import beginning, text_stats

LINE = "a line with more than the minimum number of characters\n"


def of(text: str) -> Corpus:
    return Corpus("a text", (text.encode(),))


def test_characters_lines_and_rare_characters_are_counted() -> None:
    found = text_stats(of("aaaaa\nbb\n"))
    assert (found.characters, found.distinct, found.lines, found.rare) == (9, 3, 2, 2)
    assert found.unusual == ()
    assert found.repeated == 0


@pytest.mark.parametrize(
    ("char", "what"),
    [
        ("\ufeff", "invisible"),
        ("\u200b", "invisible"),
        ("\0", "control character"),
        ("\r", "Windows line ending"),
        ("\ufffd", "replacement for undecodable bytes"),
        ("\u00a0", "unusual space"),
        ("\ue000", "private use"),
    ],
)
def test_unusual_characters_are_named(char: str, what: str) -> None:
    [unusual] = text_stats(of(f"one{char} two{char}")).unusual
    assert (unusual.kind, unusual.count) == (what, 2)
    assert unusual.name.startswith(f"U+{ord(char):04X}")


@pytest.mark.parametrize("text", ["Ein Käse für 3 €\tund „mehr“ – gut\n", "日本語\n", "👍🏽 ‘quoted’\n"])
def test_ordinary_text_has_no_unusual_characters(text: str) -> None:
    assert text_stats(of(text)).unusual == ()


def test_first_occurrence_of_a_line_is_not_a_repetition() -> None:
    assert text_stats(of(LINE * 4)).repeated == pytest.approx(3 * (len(LINE) - 1) / (4 * len(LINE)))
    assert text_stats(of("short\n" * 100)).repeated == 0


def test_lines_across_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = text_stats(of(LINE * 9))
    monkeypatch.setattr("microgpt_cli.data.corpus.CHUNK_BYTES", 7)
    assert text_stats(of(LINE * 9)) == whole


def test_beginning_of_a_large_corpus_ends_at_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 10 + "\n" + "ü" * 10 + "\n", encoding="utf-8")
    corpus = Corpus("a", (tmp_path / "a.txt",))
    assert beginning(corpus, 100) is corpus
    assert beginning(corpus, 30).text() == "é" * 10 + "\n"


def test_non_utf8_is_rejected() -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        text_stats(Corpus("bytes", (b"\xff\xfe",)))
