"""Splits, batches and windows of token ids, in memory and mapped."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from microgpt_cli.config import TokenizerConfig
from microgpt_cli.data import dataset
from microgpt_cli.data.baselines import count_baselines
from microgpt_cli.data.corpus import Corpus
from microgpt_cli.data.dataset import build_tokenizer, encode, gather_windows, sample_starts, split, windows
from microgpt_cli.data.tokenizers import ByteTokenizer
from microgpt_cli.errors import UserError

CHAR = TokenizerConfig("char", "error")


def batch(ids: torch.Tensor, batch_size: int, block_size: int, seed: int, step: int):
    """The windows of a step, as training draws them."""
    return gather_windows(
        ids, sample_starts(len(ids), batch_size, block_size, seed, step), block_size, torch.device("cpu")
    )


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    ids = torch.arange(1000)
    idx, targets = batch(ids, 4, 8, seed=1, step=7)
    assert torch.equal(targets[:, :-1], idx[:, 1:])
    assert torch.equal(targets, idx + 1)
    batch(ids, 3, 5, seed=9, step=9)  # draws between change nothing
    torch.rand(3)
    assert torch.equal(batch(ids, 4, 8, seed=1, step=7)[0], idx)
    others = [batch(ids, 4, 8, seed=s, step=t)[0] for s, t in ((2, 7), (1, 8))]
    assert not any(torch.equal(other, idx) for other in others)


@given(st.integers(2, 300), st.integers(1, 9), st.integers(1, 7), st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_takes_each_of_its_windows_once(count: int, block_size: int, batch_size: int, seed: int) -> None:
    assume(count > block_size)
    in_epoch = max(1, (count - 1) // block_size - 1)
    steps = -(-3 * in_epoch // batch_size)
    starts = [
        s for step in range(steps) for s in sample_starts(count, batch_size, block_size, seed, step)[:, 0].tolist()
    ]
    assert all(0 <= start < count - block_size for start in starts)
    for epoch in range(3):
        windows_of_it = sorted(starts[epoch * in_epoch : (epoch + 1) * in_epoch])
        assert [b - a for a, b in pairwise(windows_of_it)] == [block_size] * (in_epoch - 1)


def test_every_window_of_the_split_can_be_drawn() -> None:
    ids = torch.arange(12)
    starts = {int(batch(ids, 1, 8, seed=0, step=step)[0][0, 0]) for step in range(200)}
    assert starts == {0, 1, 2, 3}


@given(st.integers(2, 200), st.integers(1, 9), st.integers(1, 5))
@settings(deadline=None)
def test_windows_predict_every_token_but_the_first_once(count: int, block_size: int, batch_size: int) -> None:
    ids = torch.arange(count)
    pairs = list(windows(ids, batch_size, block_size))
    assert torch.cat([targets.flatten() for _, targets in pairs]).tolist() == list(range(1, count))
    for idx, targets in pairs:
        assert torch.equal(targets, idx + 1)
        assert idx.size(0) <= batch_size
        assert idx.size(1) <= block_size


def test_the_split_is_from_the_end_and_nothing_is_in_both() -> None:
    parts = split(torch.arange(100), 0.1, 4)
    assert parts.train.tolist() == list(range(90))
    assert parts.val.tolist() == list(range(90, 100))


def test_a_text_shorter_than_a_context_says_the_least_that_would_do() -> None:
    T, fraction = 8, 0.1
    for count in range(200):
        ids = torch.arange(count)
        try:
            parts = split(ids, fraction, T)
        except UserError as error:
            least = int(str(error).partition("at least ")[2].partition(" ")[0])
            assert least > count
            split(torch.arange(least), fraction, T)
        else:
            assert min(len(parts.train), len(parts.val)) >= T + 1


def test_on_its_way_to_a_gpu_a_batch_is_pinned_and_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    original = torch.Tensor.to

    def to(self: torch.Tensor, *args: object, **named: object) -> torch.Tensor:
        asked.append((*args, named))
        return original(self, "meta") if args == (torch.device("cuda"),) else original(self, *args, **named)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    ids, starts = torch.arange(100, dtype=torch.uint8), torch.tensor([[3], [50]])
    idx, targets = gather_windows(ids, starts, 8, torch.device("cuda"))
    assert asked == ["pinned", (torch.device("cuda"), {"non_blocking": True})]
    assert idx.shape == targets.shape == (2, 8)
    asked.clear()
    assert gather_windows(ids, starts, 8, torch.device("cpu"))[0][:, 0].tolist() == [3, 50]
    assert "pinned" not in asked


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every corpus for one that does not fit into memory."""
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)


@pytest.mark.parametrize("text", ["hello world\n" * 50, "".join(map(chr, range(0x4E00, 0x4E00 + 900)))])
def test_a_mapped_corpus_is_the_one_in_memory(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text, encoding="utf-8")
    corpus = Corpus("t", (path,))
    tokenizer = build_tokenizer(CHAR, corpus, tmp_path)
    small, small_sha = encode(corpus, tokenizer, tmp_path)
    monkeypatch.setattr(dataset, "IN_MEMORY_BYTES", 0)
    again = build_tokenizer(CHAR, corpus, tmp_path)
    large, large_sha = encode(corpus, again, tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert (small.dtype, small_sha) == (large.dtype, large_sha)
    assert small.tolist() == large.tolist()
    assert torch.equal(batch(small, 2, 8, 0, 0)[0], batch(large, 2, 8, 0, 0)[0])


@pytest.mark.usefixtures("on_disk")
def test_a_mapped_corpus_is_encoded_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one two three\n" * 20)
    corpus = Corpus("t", (path,))
    encode(corpus, ByteTokenizer(), tmp_path)
    [made] = (tmp_path / "tokens").glob("*.bin")
    written = made.stat().st_mtime_ns
    encode(corpus, ByteTokenizer(), tmp_path)
    assert made.stat().st_mtime_ns == written
    path.write_text("one two THREE\n" * 20)  # as long as before
    ids, _ = encode(corpus, ByteTokenizer(), tmp_path)
    assert bytes(ids.tolist()) == path.read_bytes()


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"X" + data[1:]])
def test_a_damaged_token_file_is_made_anew(damage, tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one two three\n" * 20)
    encode(Corpus("t", (path,)), ByteTokenizer(), tmp_path)
    [made] = (tmp_path / "tokens").glob("*.bin")
    made.write_bytes(damage(made.read_bytes()))
    ids, _ = encode(Corpus("t", (path,)), ByteTokenizer(), tmp_path)
    assert bytes(ids.tolist()) == path.read_bytes()


@pytest.mark.usefixtures("on_disk")
def test_an_encoding_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("abc\n" * 20)
    tokenizer = build_tokenizer(CHAR, Corpus("t", (path,)), tmp_path)
    path.write_text("abc\n" * 20 + "é")
    with pytest.raises(UserError, match="position 80"):
        encode(Corpus("t", (path,)), tokenizer, tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_bytes_that_are_no_text_can_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "t.bin"
    path.write_bytes(bytes(range(256)) * 4)
    ids, _ = encode(Corpus("t", (path,)), ByteTokenizer(), tmp_path)
    assert bytes(ids.tolist()) == path.read_bytes()


def test_baselines_are_what_counting_by_hand_gives() -> None:
    train, val, V = [0, 1, 0, 1, 2, 0], [1, 2, 2], 3
    found = count_baselines(torch.tensor(train), torch.tensor(val), V)
    assert found.uniform == pytest.approx(math.log(3))
    assert found.unigram == pytest.approx(-math.log((1 + 1) / (6 + 3)))  # 2 stands once among six
    after_1 = (1 + 1) / (2 + 3)  # of two that follow a 1, one is a 2
    after_2 = (0 + 1) / (1 + 3)
    assert found.bigram == pytest.approx(-(math.log(after_1) + math.log(after_2)) / 2)


def test_baselines_of_tiny_shakespeare(shakespeare: Path, tmp_path: Path) -> None:
    corpus = Corpus("t", (shakespeare,))
    tokenizer = build_tokenizer(CHAR, corpus, tmp_path)
    parts = split(encode(corpus, tokenizer, tmp_path)[0], 0.1, 32)
    found = count_baselines(parts.train, parts.val, tokenizer.vocab_size)
    assert (round(found.uniform, 3), round(found.unigram, 3), round(found.bigram, 3)) == (4.174, 3.347, 2.482)
