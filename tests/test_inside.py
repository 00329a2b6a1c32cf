"""What is shown of a forward pass is the forward pass: attention, guesses, losses."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHES, preset
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.generation.sampling import Sampler
from microgpt_cli.insight.logit_lens import attention_output, attention_weights, focus, look, packed
from microgpt_cli.model.gpt import GPT

V, T = 11, 12


def model_of(arch: str) -> GPT:
    """A small model whose heads and MLPs matter: new ones look everywhere alike, and zero projections hide them."""
    torch.manual_seed(0)
    model = GPT(preset("micro", arch, n_layer=3, n_head=2, n_embd=16, block_size=16), V).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


IDS = torch.arange(T) * 7 % V


@pytest.mark.parametrize("arch", ARCHES)
def test_the_weights_are_those_that_the_attention_uses(arch: str) -> None:
    model = model_of(arch)
    x = model.embed(IDS[None])
    with torch.no_grad():
        for block in model.blocks:
            normed = block.ln1(x)
            torch.testing.assert_close(attention_output(block.attention, normed), block.attention(normed))
            x = block(x)


def test_the_weights_are_exact_where_the_model_computes_in_half_precision() -> None:
    q, k = torch.randn(2, 1, 2, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = attention_weights(q, k)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, attention_weights(q.float(), k.float()))


@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 100.0]))
def test_rows_sum_to_1_and_the_future_is_0(time: int, seed: int, scale: float) -> None:
    q, k = torch.randn(2, 3, 2, time, 4, generator=torch.Generator().manual_seed(seed)) * scale
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, time))
    assert (weights.triu(1) == 0).all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("arch", ARCHES)
def test_the_last_guess_is_the_distribution_that_sample_draws_from(arch: str) -> None:
    model = model_of(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = look(model, IDS, V)
    with torch.no_grad():
        logits, _ = model(IDS[None])
    own = seen.guesses[-1]
    assert len(seen.guesses) == 4
    for t in range(T):
        probs = torch.zeros(V, dtype=torch.double).scatter(0, own.tokens[t], own.probs[t])
        torch.testing.assert_close(probs, Sampler().probabilities(logits[:, t])[0], atol=1e-12, rtol=0)
    assert (own.probs[:, :-1] >= own.probs[:, 1:]).all()
    losses = F.cross_entropy(logits[0, :-1].double(), IDS[1:], reduction="none")
    torch.testing.assert_close(own.losses, losses)
    torch.testing.assert_close(own.entropy, torch.distributions.Categorical(logits=logits[0].double()).entropy())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_earlier_layer_says_what_a_model_cut_off_there_would_say() -> None:
    model = model_of("modern")
    seen = look(model, IDS, 3)
    model.blocks = model.blocks[:1]
    with torch.no_grad():
        logits, _ = model(IDS[None])
    torch.testing.assert_close(seen.guesses[1].probs, logits[0].double().softmax(-1).topk(3).values)
    model.blocks = model.blocks[:0]
    with torch.no_grad():
        logits, _ = model(IDS[None])
    assert torch.equal(seen.guesses[0].tokens, logits[0].topk(3).indices)


def test_one_token_can_be_looked_at() -> None:
    seen = look(model_of("article"), IDS[:1], 5)
    assert torch.equal(seen.attention, torch.ones(3, 2, 1, 1))
    assert seen.guesses[-1].losses.shape == (0,)
    assert focus(seen.attention[0, 0]) is None


def test_a_heads_focus_has_the_name_of_where_it_looks() -> None:
    eye, back = torch.eye(6), torch.eye(6).roll(1, 0)
    first = torch.zeros(6, 6)
    first[:, 0] = 1
    spread = torch.ones(6, 6).tril()
    named = {"itself": eye, "previous": back, "first": first, "spread": spread / spread.sum(-1, keepdim=True)}
    for name, weights in named.items():
        found = focus(weights)
        assert found is not None
        assert found.name() == name
    found = focus(back)
    assert found is not None
    assert (found.previous, found.distance) == (1, 1)


def test_packed_attention_is_the_lower_triangle_row_by_row() -> None:
    weights = torch.zeros(2, 2, 3, 3)
    weights[1, 0] = torch.tensor([[1, 0, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6]])
    data = packed(weights)
    assert len(data) == 2 * 2 * 6
    assert list(data[12:18]) == [255, 114, 228, 81, 140, 198]
