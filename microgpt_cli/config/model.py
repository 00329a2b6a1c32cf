"""The nodes `model` and `arch`: how large a GPT is and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from microgpt_cli.config.schema import Node, key
from microgpt_cli.errors import UserError


@dataclass
class ModelConfig(Node):
    """A GPT: how big (group `model`) and of what kind (group `arch`)."""

    NODE: ClassVar[str] = "model."
    GROUPS: ClassVar[tuple[str, ...]] = ("model", "arch")

    n_layer: int = key("transformer blocks", at_least=1, at_most=1000, default=4)
    n_head: int = key("attention heads in a block", at_least=1, default=4)
    n_embd: int = key("width of the model: dimension of embeddings", at_least=1, at_most=1 << 16, default=64)
    block_size: int = key("context length in tokens", at_least=1, at_most=1 << 24, default=32)
    dropout: float = key("dropout probability", at_least=0, below=1, default=0.0)
    position: str = key("positional encoding", choices=("learned", "rotary"), default="learned")
    token_shift: bool = key("add a learned fraction of the previous token's embedding", absent=False, default=False)
    norm: str = key("normalization before each sublayer", choices=("layernorm", "rmsnorm"), default="layernorm")
    activation: str = key("activation of the MLP", choices=("relu", "gelu", "relu2"), default="relu")
    qk_norm: bool = key("normalize queries and keys", default=False)
    qkv_bias: bool = key("bias in the query, key and value projections", default=False)
    bias: bool = key("bias in the other projections, the MLP and LayerNorm", default=True)
    tied_head: bool = key("lm_head shares the weights of token_embedding_table", default=False)
    head_bias: bool = key("bias in lm_head", default=True)
    residual_init: str = key(
        "start of the projections that write to the residual", choices=("scaled", "zero"), default="scaled"
    )

    def check(self) -> None:
        n_embd, n_head = self.n_embd, self.n_head
        if n_embd % n_head:
            near = sorted({max(n_head, n_embd - n_embd % n_head), n_embd - n_embd % n_head + n_head})
            raise UserError(
                f"model.n_embd={n_embd}: cannot be split over model.n_head={n_head} heads; "
                f"try model.n_embd={' or '.join(map(str, near))}"
            )
        if self.position == "rotary" and (n_embd // n_head) % 2:
            raise UserError(
                f"model.n_embd={n_embd}: model.position=rotary turns pairs, so n_embd / n_head must be even, "
                f"not {n_embd // n_head}; try model.n_embd={n_embd + n_head}"
            )
