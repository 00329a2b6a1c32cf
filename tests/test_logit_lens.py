"""Attention weights, predictions and losses of the logit lens equal those of the model."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHES, preset
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.generation.sampling import Sampler
from microgpt_cli.insight.logit_lens import (
    attention_weights,
    head_pattern,
    pack_attention,
    probe_layers,
)
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import CausalSelfAttention

V, T = 11, 12


def model_of(arch: str) -> GPT:
    """A small model with random weights: newly initialised attention is uniform, and zero projections hide it."""
    torch.manual_seed(0)
    model = GPT(preset("micro", arch, n_layer=3, n_head=2, n_embd=16, block_size=16), V).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return model


IDS = torch.arange(T) * 7 % V


def attention_output(attention: CausalSelfAttention, x: torch.Tensor) -> torch.Tensor:
    """The output (B, T, C) of `attention`, computed from `attention_weights`."""
    q, k, v = attention.project(x)
    return attention.merge((attention_weights(q, k) @ v.float()).to(v.dtype))


@pytest.mark.parametrize("arch", ARCHES)
def test_attention_weights_times_values_equal_the_attention_output(arch: str) -> None:
    model = model_of(arch)
    x = model.embed(IDS[None])
    with torch.no_grad():
        for block in model.blocks:
            normed = block.ln1(x)
            torch.testing.assert_close(attention_output(block.attention, normed), block.attention(normed))
            x = block(x)


def test_attention_weights_are_float32_under_autocast() -> None:
    q, k = torch.randn(2, 1, 2, 9, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        weights = attention_weights(q, k)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, attention_weights(q.float(), k.float()))


@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 100.0]))
def test_attention_rows_sum_to_1_and_later_positions_are_0(time: int, seed: int, scale: float) -> None:
    q, k = torch.randn(2, 3, 2, time, 4, generator=torch.Generator().manual_seed(seed)) * scale
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, time))
    assert (weights.triu(1) == 0).all()
    assert (weights >= 0).all()


@pytest.mark.parametrize("arch", ARCHES)
def test_last_layer_predictions_are_the_sampling_distribution(arch: str) -> None:
    model = model_of(arch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = probe_layers(model, IDS, V)
    with torch.no_grad():
        logits, _ = model(IDS[None])
    own = seen.predictions[-1]
    assert len(seen.predictions) == 4
    for t in range(T):
        probs = torch.zeros(V, dtype=torch.double).scatter(0, own.tokens[t], own.probs[t])
        torch.testing.assert_close(probs, Sampler().probabilities(logits[:, t])[0], atol=1e-12, rtol=0)
    assert (own.probs[:, :-1] >= own.probs[:, 1:]).all()
    losses = F.cross_entropy(logits[0, :-1].double(), IDS[1:], reduction="none")
    torch.testing.assert_close(own.losses, losses)
    torch.testing.assert_close(own.entropy, torch.distributions.Categorical(logits=logits[0].double()).entropy())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_of_a_layer_equal_a_model_truncated_there() -> None:
    model = model_of("modern")
    seen = probe_layers(model, IDS, 3)
    model.blocks = model.blocks[:1]
    with torch.no_grad():
        logits, _ = model(IDS[None])
    torch.testing.assert_close(seen.predictions[1].probs, logits[0].double().softmax(-1).topk(3).values)
    model.blocks = model.blocks[:0]
    with torch.no_grad():
        logits, _ = model(IDS[None])
    assert torch.equal(seen.predictions[0].tokens, logits[0].topk(3).indices)


def test_single_token_can_be_probed() -> None:
    seen = probe_layers(model_of("article"), IDS[:1], 5)
    assert torch.equal(seen.attention, torch.ones(3, 2, 1, 1))
    assert seen.predictions[-1].losses.shape == (0,)
    assert head_pattern(seen.attention[0, 0]) is None


def test_head_pattern_is_named_after_the_largest_fraction() -> None:
    eye, back = torch.eye(6), torch.eye(6).roll(1, 0)
    first = torch.zeros(6, 6)
    first[:, 0] = 1
    spread = torch.ones(6, 6).tril()
    named = {"itself": eye, "previous": back, "first": first, "spread": spread / spread.sum(-1, keepdim=True)}
    for name, weights in named.items():
        found = head_pattern(weights)
        assert found is not None
        assert found.name() == name
    found = head_pattern(back)
    assert found is not None
    assert (found.previous, found.distance) == (1, 1)


def test_packed_attention_is_the_lower_triangle_by_rows() -> None:
    weights = torch.zeros(2, 2, 3, 3)
    weights[1, 0] = torch.tensor([[1, 0, 0], [0.2, 0.8, 0], [0.1, 0.3, 0.6]])
    data = pack_attention(weights)
    assert len(data) == 2 * 2 * 6
    assert list(data[12:18]) == [255, 114, 228, 81, 140, 198]
