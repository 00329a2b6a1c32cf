"""From logits to tokens, and from tokens to text."""

import pytest
import torch
from conftest import preset

from microgpt_cli.data.tokenizers import ByteTokenizer, CharTokenizer
from microgpt_cli.generation.generate import decode_stream, generate, truncate_at
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0]])


def pick(sampler: Sampler, number: float) -> int:
    [token] = sampler.sample_token(LOGITS, torch.tensor([[number]], dtype=torch.float64)).tolist()
    return int(token)


def test_temperature_0_is_the_likeliest_token() -> None:
    assert pick(Sampler(temperature=0), 0.99) == 1
    assert Sampler(temperature=0).probabilities(LOGITS).tolist() == [[0, 1, 0, 0]]


def test_temperature_1_is_the_softmax_and_others_sharpen_or_flatten() -> None:
    plain = Sampler().probabilities(LOGITS)
    torch.testing.assert_close(plain.float(), LOGITS.softmax(-1))
    assert Sampler(temperature=0.5).probabilities(LOGITS)[0, 1] > plain[0, 1] > Sampler(2.0).probabilities(LOGITS)[0, 1]


def test_top_k_keeps_the_k_likeliest_and_more_than_all_is_all() -> None:
    assert (Sampler(top_k=2).probabilities(LOGITS) > 0).tolist() == [[False, True, True, False]]
    assert torch.equal(Sampler(top_k=99).probabilities(LOGITS), Sampler().probabilities(LOGITS))


@pytest.mark.parametrize(("top_p", "kept"), [(1e-9, 1), (0.6, 1), (0.7, 2), (0.95, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_hold_the_share(top_p: float, kept: int) -> None:
    probs = Sampler(top_p=top_p).probabilities(LOGITS)
    assert int((probs > 0).sum()) == kept
    assert probs.sum().item() == pytest.approx(1)


def test_draws_follow_the_probabilities() -> None:
    draws = UniformStream(0, 1)
    sampler = Sampler()
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[pick(sampler, draws.next()[0])] += 1
    torch.testing.assert_close(counts / 4000, LOGITS.softmax(-1)[0], atol=0.03, rtol=0)


def test_a_draw_at_either_end_is_a_token_that_may_be_drawn() -> None:
    for draw in (0.0, 1 - 2**-53):
        assert pick(Sampler(top_k=2), draw) in (1, 2)
        assert pick(Sampler(top_p=0.7), draw) in (1, 2)


def test_the_draws_of_a_sample_do_not_depend_on_how_many_there_are() -> None:
    one, three = UniformStream(5, 1), UniformStream(5, 3)
    for _ in range(10):
        [only] = one.next()
        first, second, third = three.next()
        assert first == only
        assert len({first, second, third}) == 3


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(preset("micro", "article"), 30).eval()


def test_without_the_cache_the_context_is_cropped_as_in_the_article(model: GPT) -> None:
    made = [tokens[0] for tokens in generate(model, [1, 2, 3], 50, Sampler(0), UniformStream(0, 1), cache=False)]
    assert len(made) == 50
    idx = torch.tensor([[1, 2, 3]])
    for token in made:
        logits, _ = model(idx[:, -32:])
        assert token == int(logits[0, -1].argmax())
        idx = torch.cat((idx, torch.tensor([[token]])), dim=1)


def test_same_seed_same_tokens_and_other_seeds_others(model: GPT) -> None:
    def tokens(seed: int, samples: int = 1) -> list[list[int]]:
        return list(generate(model, [1], 20, Sampler(), UniformStream(seed, samples), samples))

    assert tokens(3) == tokens(3) != tokens(4)
    assert [column[0] for column in tokens(3, 2)] == [column[0] for column in tokens(3)]
    assert [column[0] for column in tokens(3, 2)] != [column[1] for column in tokens(3, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", None, "hello world"),
        ("hello world", "lo w", "hel"),
        ("hello world", "xyz", "hello world"),
        ("aaab", "aab", "a"),
        ("hello wor", "world", "hello wor"),
        ("abc", "a", ""),
    ],
)
def test_text_ends_before_the_stop(text: str, stop: str | None, expected: str, size: int) -> None:
    pieces = iter([text[i : i + size] for i in range(0, len(text), size)])
    assert "".join(truncate_at(pieces, stop)) == expected


def test_what_can_no_longer_be_the_stop_is_passed_on_at_once() -> None:
    assert list(truncate_at(iter("abcd"), "zz")) == ["a", "b", "c", "d", ""]


def test_text_comes_in_whole_characters() -> None:
    steps = [[b] for b in "é李".encode()]
    assert [p for p in decode_stream(iter(steps), 0, ByteTokenizer().text_stream()) if p] == ["é", "李"]
    assert "".join(decode_stream(iter([[0], [1]]), 0, CharTokenizer("ab").text_stream())) == "ab"
