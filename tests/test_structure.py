"""Cached decoding follows the model's code: it serves a GPT as it is, and an edited one samples by its own forward."""

from typing import Any

import pytest
import torch
from conftest import preset
from support.models import EDITS, KINDS, V, apply_edit, disturbed, exact_gelu, in_place, written_out_attention
from torch import Tensor

from microgpt_cli.engines import structure
from microgpt_cli.engines.cpu import decode
from microgpt_cli.engines.cpu.build import Unavailable
from microgpt_cli.engines.structure import difference
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import Block


@pytest.mark.parametrize(("arch", "changes"), [*KINDS, ("gpt2", {"dropout": 0.2}), ("modern", {"block_size": 300})])
def test_the_decoders_serve_every_kind_of_model(arch: str, changes: dict[str, object]) -> None:
    model = disturbed(preset("micro", arch, **changes))
    was_training = model.training
    assert difference(model) is None
    assert model.training == was_training


def test_a_frozen_model_is_served_and_stays_frozen() -> None:
    model = GPT(preset("micro", "gpt2"), V).requires_grad_(False)
    assert difference(model) is None
    assert not any(p.requires_grad for p in model.parameters())


def first_probabilities(monkeypatch: pytest.MonkeyPatch, model: GPT, native: bool) -> list[Tensor]:
    """What each of the first tokens of a sample is drawn from."""
    if native:
        try:
            decode.load(torch.float32)
        except Unavailable as why:
            pytest.skip(str(why))
    seen: list[Tensor] = []
    sample_token = Sampler.sample_token

    def watched(self: Sampler, logits: Tensor, uniforms: Tensor) -> Tensor:
        seen.append(self.probabilities(logits.clone()))
        return sample_token(self, logits, uniforms)

    monkeypatch.setattr(Sampler, "sample_token", watched)
    sampler = Sampler(top_k=V - 1)  # with top_k the C decoder hands its logits back
    list(generate(model, [1, 2, 3], 3, sampler, UniformStream(0, 1), native=native))
    monkeypatch.setattr(Sampler, "sample_token", sample_token)
    return seen


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("how", ["monkeypatch", "subclass", "instance"])
@pytest.mark.parametrize(("arch", "owner", "edit"), EDITS)
def test_an_edit_changes_the_next_logits(
    monkeypatch: pytest.MonkeyPatch, arch: str, owner: type[Any], edit: Any, how: str, native: bool
) -> None:
    model = disturbed(preset("micro", arch)).eval()
    before = first_probabilities(monkeypatch, model, native)
    apply_edit(monkeypatch, model, owner, edit, how)
    found = first_probabilities(monkeypatch, model, native)
    with torch.no_grad():
        logits, _ = model(torch.tensor([[1, 2, 3]]))
    assert logits is not None
    expected = Sampler(top_k=V - 1).probabilities(logits[:, -1])
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-4)
    if edit not in (exact_gelu, written_out_attention):
        assert not torch.allclose(found[0], before[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("arch", "owner", "edit"), EDITS)
def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch, arch: str, owner: type[Any], edit: Any) -> None:
    model = disturbed(preset("micro", arch))
    monkeypatch.setattr(owner, "embed" if owner is GPT else "forward", edit)
    found = difference(model)
    assert found is not None
    assert structure.FALLBACK in found
    part = {"MLP": "blocks.0.mlp", "CausalSelfAttention": "blocks.0.attention", "Rotary": "blocks.0.attention"}
    part |= {"TokenShift": "GPT.embed", "GPT": "GPT.embed"}
    assert part.get(owner.__name__, "blocks.0") in found


def test_a_forward_pass_that_cannot_be_recorded_samples_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "forward", in_place)
    model = disturbed(preset("micro", "gpt2")).eval()
    found = difference(model)
    assert found is not None
    assert "modifies a tensor in place" in found
    assert len(list(generate(model, [1], 2, Sampler(), UniformStream(0, 1), native=True))) == 2
