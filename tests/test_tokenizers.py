"""Text ↔ ids: exact, strict about what it reads, clear about what it can't."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.config import TokenizerConfig
from microgpt_cli.data.tokenizers import REPLACEMENT, ByteTokenizer, CharTokenizer, build, from_json, unpack
from microgpt_cli.errors import UserError

TEXTS = st.text(st.characters(codec="utf-8"))


@given(TEXTS)
def test_characters_come_back(text: str) -> None:
    tokenizer = build(TokenizerConfig("char", "error"), text + "a")
    ids = unpack(tokenizer.encode(text), tokenizer.itemsize)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(TEXTS)
def test_bytes_come_back_whole_character_by_whole_character(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = list(tokenizer.encode(text))
    assert tokenizer.decode(ids) == text
    stream = tokenizer.text_stream()
    pieces = [stream([i], False) for i in ids] + [stream([], True)]
    assert "".join(pieces) == text
    assert REPLACEMENT not in "".join(pieces) or REPLACEMENT in text


@pytest.mark.parametrize(("size", "itemsize"), [(256, 1), (257, 2), (65_536, 2), (65_537, 4)])
def test_ids_are_as_narrow_as_the_vocabulary_allows(size: int, itemsize: int) -> None:
    chars = "".join(chr(0x10000 + i) for i in range(size))
    tokenizer = CharTokenizer(chars)
    assert tokenizer.itemsize == itemsize
    assert unpack(tokenizer.encode(chars), itemsize) == list(range(size))


def test_an_unknown_character_is_named_with_its_place() -> None:
    tokenizer = CharTokenizer("abc")
    for text, place in (("ab李c", 2), ("é", 0)):
        with pytest.raises(UserError, match=rf"{text[place]}.*position {place + 1000:,} "):
            tokenizer.encode(text, 1000)


def test_an_unknown_character_can_be_replaced() -> None:
    tokenizer = build(TokenizerConfig("char", "replace"), "abc")
    assert tokenizer.vocab_size == 4
    assert tokenizer.decode(unpack(tokenizer.encode("aéc"), 1)) == f"a{REPLACEMENT}c"


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), CharTokenizer("\nab"), CharTokenizer(f"a{REPLACEMENT}", "replace")]
)
def test_json_comes_back(tokenizer) -> None:
    again = from_json(tokenizer.to_json(), "f")
    assert again.to_json() == tokenizer.to_json()
    assert again.start_id == tokenizer.start_id


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"format": 2, "kind": "byte"},
        {"format": 1, "kind": "bpe"},
        {"format": 1, "kind": "byte", "extra": 1},
        {"format": 1, "kind": "char", "unknown": "error", "chars": ""},
        {"format": 1, "kind": "char", "unknown": "error", "chars": "ba"},
        {"format": 1, "kind": "char", "unknown": "error", "chars": "aa"},
        {"format": 1, "kind": "char", "unknown": "error", "chars": ["a", "b"]},
        {"format": 1, "kind": "char", "unknown": "replace", "chars": "ab"},
        {"format": 1, "kind": "char", "unknown": "x", "chars": "ab"},
    ],
)
def test_json_that_is_no_tokenizer_is_refused(bad: object) -> None:
    with pytest.raises(UserError, match="f: "):
        from_json(bad, "f")


def test_encoding_is_one_pass_in_c() -> None:
    """No Python code runs per character: a megabyte costs no more calls than a word."""
    import cProfile
    import pstats

    tokenizer = CharTokenizer("".join(sorted(set("hello world\n"))))
    profile = cProfile.Profile()
    profile.runcall(tokenizer.encode, "hello world\n" * 100_000)
    assert pstats.Stats(profile).total_calls < 20  # type: ignore[attr-defined]
