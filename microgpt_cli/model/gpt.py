"""The article's GPT: `token_embedding_table`, `position_embedding_table`, `blocks`, `ln_f`, `lm_head`.

From Andrej Karpathy's ng-video-lecture (gpt.py), with the names of the article's listing.

Shapes: B batch, T time (positions), C n_embd, V vocabulary; inside a block also H heads, D head size (C / H).

Initialisation, drawn from torch's global generator (`torch.manual_seed` before making a model fixes it):

    what                                   how
    embeddings, matrices                   normal, standard deviation 0.02 (Radford et al., 2019)
    projections that write to the residual as above, over sqrt(2 · n_layer); 0 with residual_init=zero
    biases                                 0
    gains of LayerNorm and RMSNorm         1
    shares of the previous token           0.5
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microgpt_cli.config import ModelConfig
from microgpt_cli.model.layers import Block, Head, TokenShift, make_norm
from microgpt_cli.model.loss import chunked_cross_entropy, needs_chunks

INIT_STD = 0.02


class GPT(nn.Module):
    """A decoder-only transformer that predicts the next token at each position.

    Args:
        config: size and kind.
        vocab_size: V; by default that of the article's text.
    """

    def __init__(self, config: ModelConfig, vocab_size: int = 65) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        # each token directly reads off a vector of its own; so does each position
        self.token_embedding_table = nn.Embedding(vocab_size, config.n_embd)
        if config.token_shift:
            self.token_shift = TokenShift(config.n_embd)
        if config.position == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.Sequential(*[Block(config) for _ in range(config.n_layer)])
        self.ln_f = make_norm(config)  # final layer norm
        self.lm_head = Head(config.n_embd, vocab_size, bias=config.head_bias)
        self.apply(self._init_weights)
        if config.tied_head:
            self.lm_head.weight = self.token_embedding_table.weight

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):  # `apply` visits it after its parts
            for projection in (module.attention.proj, module.mlp.proj):
                zero = self.config.residual_init == "zero"
                projection.weight.mul_(0.0 if zero else (2 * self.config.n_layer) ** -0.5)

    def embed(self, idx: Tensor, start: int = 0) -> Tensor:
        """Embed tokens (B, T), the first at position `start`, as vectors (B, T, C)."""
        x: Tensor = self.token_embedding_table(idx)  # (B, T, C)
        if self.config.token_shift:
            x = self.token_shift(x)  # (B, T, C)
        if self.config.position == "learned":
            T = idx.size(1)
            x = x + self.position_embedding_table.weight[start : start + T]  # (T, C), the same for each of B
        return x

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Logits for the next token at each position, and the loss.

        Args:
            idx: token ids (B, T), T at most `block_size`.
            targets: the next tokens (B, T), or None.

        Returns:
            logits (B, T, V), and with targets the mean cross-entropy in nats per token. With targets and a large
            vocabulary the logits are None: they are computed in chunks, see loss.py.

        Raises:
            ValueError: T exceeds `block_size`.
        """
        B, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit into block_size {self.config.block_size}")
        x = self.embed(idx)  # (B, T, C)
        x = self.blocks(x)  # (B, T, C)
        x = self.ln_f(x)  # (B, T, C)
        if targets is not None and needs_chunks(B * T, self.vocab_size):
            return None, chunked_cross_entropy(x.flatten(0, 1), self.lm_head, targets.flatten())
        logits = self.lm_head(x)  # (B, T, V)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.view(B * T, -1), targets.reshape(B * T))
        return logits, loss
