"""What is said of a text before it is trained on."""

from pathlib import Path

import pytest

from microgpt_cli.data.corpus import Corpus
from microgpt_cli.errors import UserError
from microgpt_cli.insight.text_stats import beginning, survey

LINE = "a line that is long enough to be told from any other\n"


def of(text: str) -> Corpus:
    return Corpus("a text", (text.encode(),))


def test_it_counts_characters_lines_and_rare_ones() -> None:
    found = survey(of("aaaaa\nbb\n"))
    assert (found.characters, found.different, found.lines, found.rare) == (9, 3, 2, 2)
    assert found.odd == ()
    assert found.repeated == 0


@pytest.mark.parametrize(
    ("char", "what"),
    [
        ("\ufeff", "invisible"),
        ("\u200b", "invisible"),
        ("\0", "control character"),
        ("\r", "end of a line as Windows writes it"),
        ("\ufffd", "stands for what could not be read"),
        ("\u00a0", "unusual space"),
        ("\ue000", "private use"),
    ],
)
def test_it_names_what_is_seldom_meant(char: str, what: str) -> None:
    [odd] = survey(of(f"one{char} two{char}")).odd
    assert (odd.what, odd.count) == (what, 2)
    assert odd.name.startswith(f"U+{ord(char):04X}")


@pytest.mark.parametrize("text", ["Ein Käse für 3 €\tund „mehr“ – gut\n", "日本語\n", "👍🏽 ‘quoted’\n"])
def test_writing_is_not_odd(text: str) -> None:
    assert survey(of(text)).odd == ()


def test_repeated_lines_are_counted_once_less_than_they_stand_there() -> None:
    assert survey(of(LINE * 4)).repeated == pytest.approx(3 * (len(LINE) - 1) / (4 * len(LINE)))
    assert survey(of("short\n" * 100)).repeated == 0


def test_lines_across_pieces_of_a_corpus_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = survey(of(LINE * 9))
    monkeypatch.setattr("microgpt_cli.data.corpus.CHUNK_BYTES", 7)
    assert survey(of(LINE * 9)) == whole


def test_the_beginning_of_a_large_corpus_is_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 10 + "\n" + "ü" * 10 + "\n", encoding="utf-8")
    corpus = Corpus("a", (tmp_path / "a.txt",))
    assert beginning(corpus, 100) is corpus
    assert beginning(corpus, 30).text() == "é" * 10 + "\n"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        survey(Corpus("bytes", (b"\xff\xfe",)))
