"""Texts and prompts of any bytes and any length: exact, or one line that says what is wrong and where."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import TINY, Ran, Run, Tried
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from microgpt_cli.commands import prompts
from microgpt_cli.config import TokenizerConfig
from microgpt_cli.data import dataset
from microgpt_cli.data.corpus import Corpus
from microgpt_cli.data.dataset import build_tokenizer, encode
from microgpt_cli.data.tokenizers import ByteTokenizer, unpack
from microgpt_cli.errors import UserError

T = 8  # the context of TINY
MEMORY_BYTES = 2 * 10**9  # for torch and all else
NASTY = [
    *(b"\0", b"a\0b", b"\xef\xbb\xbfBOM", b"\xff\xfeU\0T\0F\0", b"a\r\nb\rc\n", b"\r", b"\n", b"\x1b[2J", b"\x85"),
    *("é".encode(), "李😀".encode(), "e\u0301".encode(), "\u2028\u2029".encode(), "\ufffd".encode(), b"\x7f", b" "),
    *("\U0010ffff".encode(), "\ufeff\ufeff".encode(), "\u202e".encode(), b"<|endoftext|>", b"${HOME} \\ ' \""),
]
BROKEN = [
    b"\xff",
    b"caf\xe9",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"ok\xe6\x9d",
    b"\xf8\x88\x80\x80\x80",
]


def through(path: Path, kind: str, mapped: bool) -> bytes:
    """A file's text after it went to ids, in memory or on the disk, and back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "IN_MEMORY_BYTES", 0 if mapped else 1 << 20)
        corpus, cache = Corpus("t", (path,)), path.parent / "cache"
        tokenizer = build_tokenizer(TokenizerConfig(kind, "error"), corpus, cache)
        ids, _ = encode(corpus, tokenizer, cache)
        shutil.rmtree(cache, ignore_errors=True)
    return bytes(ids.tolist()) if kind == "byte" else tokenizer.decode(ids.tolist()).encode()


@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "disk"])
def test_any_bytes_come_back_or_are_located(mapped: bool, tmp_path: Path, tried: Tried) -> None:
    path = tmp_path / "t.txt"

    def check(data: bytes) -> None:
        tried("text and prompts of any bytes")
        path.write_bytes(data)
        assert through(path, "byte", mapped) == data
        try:
            data.decode()
        except UnicodeDecodeError as error:
            with pytest.raises(UserError, match=f"not UTF-8 text: .* at byte {error.start};"):
                through(path, "char", mapped)
        else:
            assert through(path, "char", mapped) == data

    for data in (*NASTY, *BROKEN):
        check(data)
    texts = st.text(st.characters(codec="utf-8"), min_size=1).map(str.encode)
    some = settings(max_examples=60, deadline=None, database=None)
    some(given(st.binary(min_size=1) | texts | st.sampled_from(NASTY).flatmap(lambda a: st.just(a * 3)))(check))()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> dict[str, Path]:
    """A run of each tokenizer."""
    from microgpt_cli.cli import main as cli

    home = tmp_path_factory.mktemp("runs")
    words = ["train", *TINY, "tokenizer=byte", f"data.path={trained.parent / 'my.txt'}", "max_steps=1"]
    assert cli.main([*words, f"out_dir={home / 'byte'}"]) == 0
    return {"char": trained, "byte": home / "byte"}


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
@example("\ud800")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_prompt_has_ids_or_a_line(tried: Tried, prompt: str) -> None:
    """Words of the command line that are not UTF-8 come as lone surrogates, and go to a byte tokenizer as they were."""
    tried("text and prompts of any bytes")
    try:
        expected = os.fsencode(prompt)
    except UnicodeEncodeError:
        with pytest.raises(UserError, match="half a surrogate pair"):
            ByteTokenizer().encode(prompt)
    else:
        assert ByteTokenizer().encode(prompt) == expected


@pytest.mark.parametrize("data", [*NASTY, *BROKEN])
def test_a_prompt_of_any_bytes_comes_back_from_a_byte_model(
    data: bytes, runs: dict[str, Path], microgpt: Run, tmp_path: Path, tried: Tried
) -> None:
    tried("text and prompts of any bytes")
    (tmp_path / "p").write_bytes(data)
    out = ["max_new_tokens=0", "out=made"]
    assert microgpt("sample", str(runs["byte"]), "prompt_file=p", *out).status == 0
    assert (tmp_path / "made").read_bytes() == data
    if b"\0" not in data:
        assert microgpt("sample", str(runs["byte"]), f"prompt={os.fsdecode(data)}", *out).status == 0
        assert (tmp_path / "made").read_bytes() == data


@pytest.mark.parametrize("prompt", ["\0", "\r\n", "\ufeff", "\udcff", "李", "\x1b[2J", "a\u0301"])
def test_a_character_that_a_model_lacks_is_named_and_not_shown(
    prompt: str, runs: dict[str, Path], microgpt: Run, tmp_path: Path, tried: Tried
) -> None:
    tried("text and prompts of any bytes")
    (tmp_path / "p").write_bytes(os.fsencode(f"The {prompt}"))
    ran = microgpt("sample", str(runs["char"]), "prompt_file=p")
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    missing = next(char for char in f"The {prompt}" if char not in "The quick brown fox jumps over the lazy dog.")
    assert f"(U+{ord(missing):04X}) at position {f'The {prompt}'.index(missing)} " in ran.err
    assert "\x1b" not in ran.err


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("length", [0, 1, T - 1, T, T + 1, 10 * T])
def test_prompts_of_any_length(kind: str, length: int, runs: dict[str, Path], microgpt: Run, tried: Tried) -> None:
    tried("text and prompts of any bytes")
    prompt = ("The quick brown fox " * T)[:length]
    ran = microgpt("sample", str(runs[kind]), f"prompt={prompt}", "max_new_tokens=3", "temperature=0")
    assert ran.status == 0
    assert ran.out.startswith(prompt)
    assert ran.err == (f"the prompt has {length} tokens; the model uses the last {T}\n" if length > T else "")
    if length > T:  # and it does go on from these
        last = microgpt("sample", str(runs[kind]), f"prompt={prompt[-T:]}", "max_new_tokens=3", "temperature=0")
        assert last.out[T:] == ran.out[length:]


def test_a_prompt_of_megabytes_costs_no_more_than_reading_it(
    runs: dict[str, Path], microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[int] = []
    monkeypatch.setattr(prompts, "unpack", lambda ids, size: unpacked.append(len(ids)) or unpack(ids, size))
    (tmp_path / "p").write_text("The fox " * (1 << 20))
    ran = microgpt("sample", str(runs["char"]), "prompt_file=p", "max_new_tokens=1", "out=made")
    assert "the prompt has 8,388,608 tokens" in ran.err
    assert unpacked == [T]
    (tmp_path / "p").write_text("The fox " * (1 << 22))
    assert "larger than the limit of 16,777,216 bytes" in microgpt("sample", str(runs["char"]), "prompt_file=p").err


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("length", [0, 1, T, T + 1, 2 * T + 2])
def test_texts_of_any_length(kind: str, length: int, microgpt: Run, tmp_path: Path, tried: Tried) -> None:
    tried("text and prompts of any bytes")
    (tmp_path / "t.txt").write_text(("abc" * T)[:length])

    def train(fraction: float) -> Ran:
        words = [*TINY, f"tokenizer={kind}", f"data.val_fraction={fraction}", "max_steps=1", "out_dir=run"]
        return microgpt("train", "data.path=t.txt", *words)

    ran = train(0.5)
    if length == 2 * T + 2:  # both splits hold a context and the token after it
        assert ran.status == 0
        return
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ("the file is empty" if length == 0 else f"of the text's {length} tokens") in ran.err
    assert not (tmp_path / "run").exists()


def test_a_folder_may_have_any_name(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    """Its name is the title of a picture, where dollars would begin a formula."""
    for name in ("$\\frac$ ", 'a\'b "c"', "${HOME}", "{x}", "-m"):
        assert microgpt("train", *TINY, f"data.path={text_file}", "max_steps=1", f"out_dir={name}").status == 0
        assert (tmp_path / name / "loss.png").is_file()


def test_a_text_of_one_character_trains(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"\0" * 500)
    assert microgpt("train", *TINY, "data.path=t.txt", "max_steps=2", "out_dir=run").status == 0
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())["chars"] == "\0"


# More text than memory or disk

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("kind", "free", "fits"), [("byte", 5, False), ("byte", 6, True), ("char", 7, False), ("char", 8, True)]
)
def test_a_disk_without_room_is_seen_before_a_byte_is_written(
    kind: str, free: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 kinds of characters take two bytes each, whatever they take in UTF-8."""
    path, chars = tmp_path / "t.txt", "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    path.write_text(chars if kind == "char" else "abcdef" * 150, encoding="utf-8")
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free * 150 if kind == "byte" else free * 75))
    tokenizer = build_tokenizer(TokenizerConfig(kind, "error"), Corpus("t", (path,)), tmp_path)
    if fits:
        assert len(encode(Corpus("t", (path,)), tokenizer, tmp_path)[0]) == (900 if kind == "byte" else 300)
        return
    with pytest.raises(UserError, match=r"tokens: the encoded text needs [69]00 bytes, and \d+ are free; choose"):
        encode(Corpus("t", (path,)), tokenizer, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_cache_that_is_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("abc")
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    with pytest.raises(UserError, match=r"choose another folder with data\.cache_dir"):
        encode(Corpus("t", (tmp_path / "t.txt",)), ByteTokenizer(), tmp_path / "t.txt")


def test_a_record_that_is_damaged_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.txt").write_text("abc")
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    for _ in range(2):
        assert unpack(bytes(encode(Corpus("t", (tmp_path / "t.txt",)), ByteTokenizer(), tmp_path)[0].tolist()), 1)
        [record] = (tmp_path / "tokens").glob("*.json")
        record.write_text("[")


def test_a_mapped_text_asks_for_no_memory(tmp_path: Path) -> None:
    """A terabyte of nothing can be mapped where memory is a fraction of that."""
    with (tmp_path / "ids").open("wb") as file:
        file.truncate(1 << 40)
    ids = dataset._mapped(tmp_path / "ids", torch.uint8)
    assert ids.numel() == 1 << 40
    starts = dataset.sample_starts(len(ids), 4, 8, seed=0, step=0)
    assert not dataset.gather_windows(ids, starts, 8, torch.device("cpu"))[0].any()


@pytest.mark.stress
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory without what is mapped")
@pytest.mark.parametrize(("kind", "size_bytes"), [("byte", 10**10), ("char", 3 * 10**9)])
def test_gigabytes_are_trained_on_in_less_memory(kind: str, size_bytes: int, tmp_path: Path, tried: Tried) -> None:
    """The text is sparse, which costs nothing to make; its ids take as much on the disk for a while."""
    if shutil.disk_usage(tmp_path).free < 2 * size_bytes:
        pytest.skip(f"no room for the ids of {size_bytes:,} bytes")
    if size_bytes == 10**10:
        tried("a text of 10 GB, in memory for a fifth of it")
    with (tmp_path / "t.txt").open("wb") as file:
        file.truncate(size_bytes)
    words = ["train", *TINY, f"tokenizer={kind}", "data.path=t.txt", "max_steps=2", "out_dir=run", "eval_tokens=1000"]
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, ({MEMORY_BYTES}, {MEMORY_BYTES}))
from microgpt_cli.cli import main as cli
sys.exit(cli.main({[*words, "data.cache_dir=cache"]!r}))
"""
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    finally:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert f"{size_bytes:,}" in done.stdout
