"""Models for tests: of every kind, with no weight at 0, and edits that a researcher might make in their code."""

import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.config import ModelConfig
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import MLP, Block, CausalSelfAttention, Rotary, TokenShift

V = 65
KINDS = [
    ("article", {}),
    ("gpt2", {}),
    ("article", {"bias": False, "head_bias": False, "activation": "gelu"}),
    ("article", {"qkv_bias": True, "tied_head": True}),
    ("modern", {}),
    ("modern", {"n_embd": 72, "n_head": 3, "bias": True, "qkv_bias": True}),  # no multiples of 16
    ("modern", {"position": "learned", "token_shift": False, "activation": "gelu", "tied_head": True}),
    ("article", {"qk_norm": True, "norm": "rmsnorm"}),
    ("gpt2", {"position": "rotary", "activation": "relu2", "n_embd": 40, "n_head": 2}),
]


def disturbed(config: ModelConfig) -> GPT:
    """A model with no weight at 0, biases and gains among them, so that every path carries something."""
    torch.manual_seed(0)
    model = GPT(config, V)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


# Edits that a researcher makes: the loss and every gradient must be those of the edited code.


def doubled_residual(self: Block, x: Tensor) -> Tensor:
    x = x + 2 * self.attention(self.ln1(x))
    return x + self.mlp(self.ln2(x))


def parallel_block(self: Block, x: Tensor) -> Tensor:
    return x + self.attention(self.ln1(x)) + self.mlp(self.ln2(x))


def without_mlp(self: Block, x: Tensor) -> Tensor:
    return x + self.attention(self.ln1(x))


def exact_gelu(self: MLP, x: Tensor) -> Tensor:
    return self.proj(F.gelu(self.fc(x)))


def gated_mlp(self: MLP, x: Tensor) -> Tensor:
    h = self.fc(x)
    return self.proj(F.relu(h) * torch.sigmoid(h))


def sharper_attention(self: CausalSelfAttention, x: Tensor) -> Tensor:
    q, k, v = self.project(x)
    return self.merge(F.scaled_dot_product_attention(2 * q, k, v, is_causal=True))


def written_out_attention(self: CausalSelfAttention, x: Tensor) -> Tensor:
    q, k, v = self.project(x)
    ahead = torch.ones(x.size(1), x.size(1), dtype=torch.bool).triu(1)
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(ahead, float("-inf"))
    return self.merge(scores.softmax(-1) @ v)


def unscaled_norm(self: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def other_eps(self: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, 0.1)


def shift_by_two(self: TokenShift, x: Tensor) -> Tensor:
    return x + self.share * F.pad(x, (0, 0, 2, -2))


def scaled_embedding(self: GPT, idx: Tensor, start: int = 0) -> Tensor:
    return 3 * self.token_embedding_table(idx)


def turned_back(self: Rotary, x: Tensor, start: int = 0) -> Tensor:
    cos, sin = self.angles(start, x.size(-2), x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)


def swapped_halves(self: Rotary, x: Tensor, start: int = 0) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((b, a), dim=-1)


EDITS = [
    ("gpt2", Block, doubled_residual),
    ("gpt2", Block, parallel_block),
    ("article", Block, without_mlp),
    ("gpt2", MLP, exact_gelu),
    ("gpt2", MLP, gated_mlp),
    ("modern", CausalSelfAttention, sharper_attention),
    ("gpt2", CausalSelfAttention, written_out_attention),
    ("gpt2", torch.nn.LayerNorm, unscaled_norm),
    ("article", torch.nn.LayerNorm, other_eps),
    ("modern", TokenShift, shift_by_two),
    ("gpt2", GPT, scaled_embedding),
    ("modern", Rotary, turned_back),
    ("modern", Rotary, swapped_halves),
]


def apply_edit(monkeypatch: pytest.MonkeyPatch, model: GPT, owner: type[Any], edit: Any, how: str) -> None:
    """Replace a method of a class, or of the model's own modules: by a subclass, or in each instance."""
    name = "embed" if owner is GPT else "forward"
    if how == "monkeypatch":
        monkeypatch.setattr(owner, name, edit)
    for module in [module for module in model.modules() if isinstance(module, owner)]:
        if how == "subclass":
            module.__class__ = type("Edited", (type(module),), {name: edit})
        if how == "instance":
            monkeypatch.setattr(module, name, types.MethodType(edit, module))


def in_place(self: Block, x: Tensor) -> Tensor:
    x += self.attention(self.ln1(x))
    return x
