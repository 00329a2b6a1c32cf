"""On a GPU: the step from one token to the next, recorded as a CUDA graph and replayed.

A token of a small model is dozens of kernels of a few microseconds each, and launching them one by one takes longer
than they run. A graph needs shapes and addresses that never change: so the position is a number on the device, a step
looks at a fixed bucket of the cache and masks what has not been written, and the token that was chosen stays on the
device.
"""

import torch
from torch import Tensor

from microgpt_cli.engines.decoding import Cache, Weights
from microgpt_cli.generation.sampling import Sampler

SMALLEST_BUCKET = 64  # positions of the cache that a step looks at: this, and its doubles
FEWEST_TOKENS = 32  # for fewer, recording costs more than it saves


def decode_static(weights: Weights, cache: Cache, tokens: Tensor, position: Tensor, bucket: int) -> Tensor:
    """`decode_one_token` with shapes that do not depend on the position.

    Args:
        tokens: (B,).
        position: of the tokens, int64 (1,) on the device.
        bucket: the step looks at so many positions; more than `position`.

    Returns:
        logits (B, V).
    """
    _, _, B, H, _, D = cache.kv.shape
    x = weights.token_embedding.index_select(0, tokens)  # (B, C)
    if weights.prev_token_bias is not None:
        cache.tokens.index_copy_(1, position + 1, tokens[:, None])
        x = x + weights.prev_token_bias.index_select(0, cache.tokens.index_select(1, position)[:, 0])
    if weights.position_embedding is not None:
        x = x + weights.position_embedding.index_select(0, position)
    unseen = torch.arange(bucket, device=x.device) > position  # (bucket,)
    mask = torch.zeros(bucket, dtype=x.dtype, device=x.device).masked_fill(unseen, float("-inf"))
    turn = None if weights.rotary_matrices is None else weights.rotary_matrices.index_select(0, position)[0]  # (D, D)
    for layer, kept in zip(weights.layers, cache.kv, strict=True):
        qk, v = layer.qkv(layer.ln1(x)).view(B, 3 * H, D).split((2 * H, H), dim=1)  # (B, 2H, D), (B, H, D)
        if weights.qk_norm is not None:
            qk = weights.qk_norm(qk)
        if turn is not None:
            qk = torch.matmul(qk, turn)
        q, k = qk.split(H, dim=1)
        kept.index_copy_(3, position, torch.stack((k, v)).unsqueeze(3))  # (2, B, H, 1, D)
        keys, values = kept[:, :, :, :bucket].flatten(1, 2)  # (B·H, bucket, D) each
        scores = torch.baddbmm(mask, q.reshape(B * H, 1, D), keys.transpose(1, 2), alpha=D**-0.5)
        y = torch.bmm(scores.softmax(-1), values)  # (B·H, 1, D)
        layer.proj.add_to(x, y.view(B, H * D))
        layer.fc_proj.add_to(x, weights.activation(layer.fc(layer.ln2(x))))
    return weights.lm_head(weights.ln_f(x))


class GraphedStep:
    """Steps from token to token by CUDA graphs, one for each bucket of the cache."""

    def __init__(self, weights: Weights, cache: Cache, sampler: Sampler) -> None:
        self.weights, self.cache, self.sampler = weights, cache, sampler
        device, B = cache.kv.device, cache.kv.size(2)
        # what the graphs read and write
        self.tokens = torch.zeros(B, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.uniform = torch.zeros(B, 1, dtype=torch.float64, device=device)
        self._next = -1  # where the next step would go on without being told
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, tokens: Tensor, position: int, uniform: Tensor) -> Tensor:
        """The tokens (B,) after `tokens`, which stand at `position`; draws as in `Sampler.sample_token`."""
        if position != self._next:
            self.tokens.copy_(tokens)
            self.position.fill_(position)
        self.uniform.copy_(uniform)
        bucket = bucket_for(position, self.cache.kv.size(4))
        if bucket not in self._graphs:
            self._graphs[bucket] = self._record(bucket)
        self._graphs[bucket].replay()
        self._next = position + 1
        return self.tokens.clone()

    def _step(self, bucket: int) -> Tensor:
        logits = decode_static(self.weights, self.cache, self.tokens, self.position, bucket)
        return self.sampler.sample_token(logits, self.uniform)

    def _record(self, bucket: int) -> torch.cuda.CUDAGraph:
        """Record a step. Those that warm it up write the same into the cache as the first replay will."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step(bucket)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a run may be saving beside it
            self.tokens.copy_(self._step(bucket))
            self.position.add_(1)
        return graph


def bucket_for(position: int, positions: int) -> int:
    """How much of a cache of so many positions a step at `position` looks at."""
    bucket = SMALLEST_BUCKET
    while bucket <= position:
        bucket *= 2
    return min(bucket, positions)
