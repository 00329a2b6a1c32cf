"""Decode on a GPU by replaying CUDA graphs.

A token of a small model takes dozens of kernels of a few microseconds each, whose launches take longer than their
execution. A graph needs constant shapes and addresses: the position is a tensor on the device, a step attends to a
bucket of fixed length and masks later positions, and the sampled token stays on the device.
"""

import torch
from torch import Tensor

from microgpt_cli.engines.decoding import Cache, Weights
from microgpt_cli.generation.sampling import Sampler

SMALLEST_BUCKET = 64  # positions; larger buckets are powers of two times this
MIN_TOKENS = 32  # for fewer, capturing takes longer than it saves


def decode_static(weights: Weights, cache: Cache, tokens: Tensor, position: Tensor, bucket: int) -> Tensor:
    """`decode_one_token` with shapes that do not depend on the position.

    Args:
        tokens: (B,).
        position: of the tokens, int64 (1,) on the device.
        bucket: number of positions to attend to; larger than `position`.

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
    future = torch.arange(bucket, device=x.device) > position  # (bucket,)
    mask = torch.zeros(bucket, dtype=x.dtype, device=x.device).masked_fill(future, float("-inf"))
    rotation = (
        None if weights.rotary_matrices is None else weights.rotary_matrices.index_select(0, position)[0]
    )  # (D, D)
    for layer, kept in zip(weights.layers, cache.kv, strict=True):
        qk, v = layer.qkv(layer.ln1(x)).view(B, 3 * H, D).split((2 * H, H), dim=1)  # (B, 2H, D), (B, H, D)
        if weights.qk_norm is not None:
            qk = weights.qk_norm(qk)
        if rotation is not None:
            qk = torch.matmul(qk, rotation)
        q, k = qk.split(H, dim=1)
        kept.index_copy_(3, position, torch.stack((k, v)).unsqueeze(3))  # (2, B, H, 1, D)
        keys, values = kept[:, :, :, :bucket].flatten(1, 2)  # (B·H, bucket, D) each
        scores = torch.baddbmm(mask, q.reshape(B * H, 1, D), keys.transpose(1, 2), alpha=D**-0.5)
        y = torch.bmm(scores.softmax(-1), values)  # (B·H, 1, D)
        layer.proj.add_to(x, y.view(B, H * D))
        layer.fc_proj.add_to(x, weights.activation(layer.fc(layer.ln2(x))))
    return weights.lm_head(weights.ln_f(x))


class GraphedStep:
    """A decoding step as CUDA graphs, one for each bucket."""

    def __init__(self, weights: Weights, cache: Cache, sampler: Sampler) -> None:
        self.weights, self.cache, self.sampler = weights, cache, sampler
        device, B = cache.kv.device, cache.kv.size(2)
        # read and written by the graphs
        self.tokens = torch.zeros(B, dtype=torch.long, device=device)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.uniform = torch.zeros(B, 1, dtype=torch.float64, device=device)
        self._next = -1  # position of the next step without a copy
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def __call__(self, tokens: Tensor, position: int, uniform: Tensor) -> Tensor:
        """The tokens (B,) after `tokens` at `position`; `uniform` as in `Sampler.sample_token`."""
        if position != self._next:
            self.tokens.copy_(tokens)
            self.position.fill_(position)
        self.uniform.copy_(uniform)
        bucket = bucket_for(position, self.cache.kv.size(4))
        if bucket not in self._graphs:
            self._graphs[bucket] = self._capture(bucket)
        self._graphs[bucket].replay()
        self._next = position + 1
        return self.tokens.clone()

    def _step(self, bucket: int) -> Tensor:
        logits = decode_static(self.weights, self.cache, self.tokens, self.position, bucket)
        return self.sampler.sample_token(logits, self.uniform)

    def _capture(self, bucket: int) -> torch.cuda.CUDAGraph:
        """Capture a step. Its warm-up writes the same values to the cache as the first replay."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a save may be in progress
            self.tokens.copy_(self._step(bucket))
            self.position.add_(1)
        return graph


def bucket_for(position: int, positions: int) -> int:
    """The bucket for `position` in a cache of `positions`."""
    bucket = SMALLEST_BUCKET
    while bucket <= position:
        bucket *= 2
    return min(bucket, positions)
