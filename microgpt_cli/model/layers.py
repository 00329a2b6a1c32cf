"""The layers of a GPT: norm, rotary position embedding, causal self-attention, MLP, block, head.

B batch, T time (positions), C n_embd, H heads, D head size (C / H).

Sources: Vaswani et al. 2017 (attention), Radford et al. 2019 (pre-LayerNorm blocks), Su et al. 2021 (rotary),
Zhang and Sennrich 2019 (RMSNorm), Henry et al. 2020 (QK-norm), So et al. 2021 (squared ReLU), Peng et al. 2023 (token
shift).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.config import ModelConfig

ROTARY_BASE, QK_NORM_EPS = 10_000.0, 1e-6
HEAD_MULTIPLE, HEAD_PADDED_FROM = 64, 1024


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², as in Primer."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "relu2": squared_relu,
}


def make_norm(config: ModelConfig) -> nn.Module:
    """The normalisation before each sublayer and before `lm_head`."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.n_embd, eps=1e-6)
    return nn.LayerNorm(config.n_embd, bias=config.bias)


def padding(x: Tensor, vocab_size: int) -> int:
    """How many outputs a head is padded by for its product with x."""
    return -vocab_size % HEAD_MULTIPLE if x.is_cuda and vocab_size >= HEAD_PADDED_FROM else 0


class Head(nn.Linear):
    """A linear layer to a vocabulary. On a GPU a large one is padded to a multiple of 64 for the matrix product.

    Matrix units need such sizes: with GPT-2's 50,257 the head is half as fast.
    """

    def forward(self, x: Tensor) -> Tensor:
        extra = padding(x, self.out_features)
        if extra == 0:
            return super().forward(x)
        bias = None if self.bias is None else F.pad(self.bias, (0, extra))
        return F.linear(x, F.pad(self.weight, (0, 0, 0, extra)), bias)[..., : self.out_features]


class TokenShift(nn.Module):
    """Add to each token a learned share, per channel, of the previous one (token shift: Peng et al., 2023).

    Bigram information is then available from the first block on, without a previous-token head.
    """

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((n_embd,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.share * F.pad(x, (0, 0, 1, -1))  # (B, T, C); zeros before the first token


class Rotary(nn.Module):
    """Rotary position embedding: rotate pairs of channels by angles proportional to the position.

    The dot product of a rotated query and a rotated key depends only on their distance.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, block_size: int) -> None:
        super().__init__()
        # computed on the CPU, so that the bits are equal on every device
        frequency = ROTARY_BASE ** -(
            torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size
        )  # (D/2)
        angle = torch.outer(torch.arange(block_size, dtype=torch.float32, device="cpu"), frequency)  # (T, D/2)
        device = torch.empty(0).device  # torch 2.7: get_default_device ignores `with torch.device("meta")`
        self.register_buffer("cos", angle.cos().to(device), persistent=False)
        self.register_buffer("sin", angle.sin().to(device), persistent=False)

    def angles(self, start: int, T: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (T, D/2) for T tokens, the first at position `start`."""
        return self.cos[start : start + T].to(dtype), self.sin[start : start + T].to(dtype)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate x (B, H, T, D), whose first token is at position `start`."""
        cos, sin = self.angles(start, x.size(-2), x.dtype)
        a, b = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # (B, H, T, D)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention: each token attends to itself and to earlier tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.qkv = nn.Linear(C, 3 * C, bias=config.qkv_bias)  # the article's query, key and value of all heads
        self.proj = nn.Linear(C, C, bias=config.bias)
        self.rotary = Rotary(C // config.n_head, config.block_size) if config.position == "rotary" else None
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout

    def project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, T, D) of x (B, T, C), whose first token is at position `start`."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, D) each
        if self.qk_norm:
            q, k = F.rms_norm(q, q.shape[-1:], eps=QK_NORM_EPS), F.rms_norm(k, k.shape[-1:], eps=QK_NORM_EPS)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Concatenate the outputs of the heads (B, H, T, D) and project to (B, T, C)."""
        y = self.proj(heads.transpose(1, 2).flatten(2))  # (B, T, C)
        return F.dropout(y, self.dropout, self.training)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        dropout = self.dropout if self.training else 0.0
        return self.merge(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True))


class MLP(nn.Module):
    """Feed-forward network of each token: expand to 4 C, nonlinearity, project back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.fc = nn.Linear(C, 4 * C, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.proj = nn.Linear(4 * C, C, bias=config.bias)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.proj(self.activation(self.fc(x))), self.dropout, self.training)  # (B, T, C)


class Block(nn.Module):
    """Transformer block: attention (communication), then MLP (computation), with residual connections."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = make_norm(config)
        self.attention = CausalSelfAttention(config)
        self.ln2 = make_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))  # (B, T, C)
        x = x + self.mlp(self.ln2(x))  # (B, T, C)
        return x
