"""Generate text from a prompt, token by token.

With a key/value cache, when the context is full (`block_size` tokens) the last half is kept and re-encoded in one
forward pass, so that the amortised cost per token stays that of one position. Without it, as in the article, the
context is cropped by one token and recomputed for every token. Until it is full, both give the same tokens.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from microgpt_cli.engines.cpu.decode import NativeDecoder, NativeWeights
from microgpt_cli.engines.cuda.decode_graph import MIN_TOKENS, GraphedStep
from microgpt_cli.engines.decoding import Cache, Weights, decode_one_token, prefill, prepare
from microgpt_cli.engines.structure import difference
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

TextStream = Callable[[Sequence[int], bool], str]  # (ids, whether they are the last) → whole characters


def generate(
    model: GPT,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampler: Sampler,
    draws: UniformStream,
    num_samples: int = 1,
    *,
    cache: bool = True,
    dtype: torch.dtype = torch.float32,
    native: bool = False,
    compile: bool = False,
    stopped: Callable[[int], bool] | None = None,
) -> Iterator[list[int]]:
    """Generate continuations of one prompt.

    Args:
        model: in eval mode if it has dropout.
        prompt: at least one token id; the last `block_size` are used.
        cache: use a key/value cache, if the decoders support the model's code (`engines/structure.py`).
        dtype: for decoding with the cache (see `decoding.prepare`); without it, autocast decides.
        native: decode a single sample in C, with the cache, on a CPU (see `engines/cpu/decode.py`).
        compile: compile the forward pass by torch.compile, without the cache.
        stopped: called after each token with the index of a sample: whether it needs no more tokens.

    Yields:
        The next token of each of the `num_samples` samples (arbitrary for those that have stopped).
    """
    device = model.lm_head.weight.device
    cache = cache and difference(model) is None
    forward: Callable[..., Any] = torch.compile(model, dynamic=True) if compile and not cache else model
    steps = list(torch.tensor(prompt[-model.config.block_size :], device=device)[:, None].expand(-1, num_samples))
    native_weights = NativeWeights(model, dtype) if cache and native and device.type == "cpu" else None
    alone = native_weights is not None and num_samples == 1
    weights = prepare(model, dtype, num_samples) if cache and not alone else None
    uniforms = draws.tensors(device)
    rows = list(range(num_samples))  # of the samples that are not stopped
    latest = [0] * num_samples
    left = max_new_tokens
    while left and rows:
        if cache:
            positions = min(model.config.block_size, len(steps) + left)
            decoder = _decoder(weights, native_weights, len(rows), positions, sampler, left)
            generated = _cached(decoder, steps, model.config.block_size, uniforms)
        else:
            generated = _cropped(forward, model.config.block_size, steps, sampler, uniforms)
        for tokens in generated:
            latest = tokens.tolist() if len(rows) == num_samples else _with(latest, rows, tokens.tolist())
            yield latest
            left -= 1
            remaining = rows if stopped is None else [row for row in rows if not stopped(row)]
            if left == 0 or len(remaining) <= len(rows) / 2:  # rarely, since shrinking the batch needs a new prefill
                break
        keep = torch.tensor(
            [index for index, row in enumerate(rows) if row in remaining], dtype=torch.long, device=device
        )
        steps = [step[keep] for step in steps]
        uniforms = map(operator.itemgetter(keep), uniforms)
        rows = remaining


def _with(latest: list[int], rows: list[int], tokens: list[int]) -> list[int]:
    """The latest tokens of all samples, with some rows replaced."""
    newer = dict(zip(rows, tokens, strict=True))
    return [newer.get(row, token) for row, token in enumerate(latest)]


class TorchDecoder:
    """Decodes a batch of samples with torch, by replaying CUDA graphs on a GPU.

    Args:
        weights: of the model, prepared.
        num_samples: B.
        positions: capacity of the cache, at most `block_size`.
        sampler: chooses the tokens.
        max_steps: tokens that will be decoded; for a few, recording a graph does not pay.
    """

    def __init__(self, weights: Weights, num_samples: int, positions: int, sampler: Sampler, max_steps: int) -> None:
        self.weights, self.sampler = weights, sampler
        self.cache = Cache(weights, num_samples, positions)
        self._step: Callable[[Tensor, int, Tensor], Tensor] = self._eager
        if self.cache.kv.is_cuda and max_steps >= MIN_TOKENS:
            self._step = torch.inference_mode()(GraphedStep(weights, self.cache, sampler).__call__)

    @torch.inference_mode()
    def first(self, steps: Sequence[Tensor], uniform: Tensor) -> Tensor:
        """The tokens (B,) after these steps of tokens (B,), from position 0, in one forward pass."""
        return self.sampler.sample_token(prefill(self.weights, self.cache, torch.stack(list(steps), dim=1)), uniform)

    def write(self, tokens: Tensor, position: int, uniforms: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the tokens (B,) after those at `position`, until the cache is full."""
        for here in range(position, self.cache.kv.size(4)):
            tokens = self._step(tokens, here, next(uniforms))
            yield tokens

    def _eager(self, tokens: Tensor, position: int, uniform: Tensor) -> Tensor:
        with torch.inference_mode():  # faster to enter than the decorator
            return self.sampler.sample_token(decode_one_token(self.weights, self.cache, tokens, position), uniform)


def _decoder(
    weights: Weights | None,
    native: NativeWeights | None,
    num_samples: int,
    positions: int,
    sampler: Sampler,
    max_steps: int,
) -> TorchDecoder | NativeDecoder:
    """The native decoder for one sample, if there are native weights, else the torch decoder."""
    if native is not None and num_samples == 1:
        return NativeDecoder(native, positions, sampler)
    assert weights is not None
    return TorchDecoder(weights, num_samples, positions, sampler, max_steps)


def _cached(
    decoder: TorchDecoder | NativeDecoder, steps: list[Tensor], block_size: int, uniforms: Iterator[Tensor]
) -> Iterator[Tensor]:
    """Yield next tokens (B,) without end, and append them to `steps`."""
    while True:
        if len(steps) > block_size:
            del steps[: -max(1, block_size // 2)]
        first = decoder.first(steps, next(uniforms))
        steps.append(first)
        yield first
        for tokens in decoder.write(first, len(steps) - 1, uniforms):
            steps.append(tokens)
            yield tokens


def _cropped(
    forward: Callable[..., Any], block_size: int, steps: list[Tensor], sampler: Sampler, uniforms: Iterator[Tensor]
) -> Iterator[Tensor]:
    """As `_cached`, but recompute the whole context for every token, as in the article."""
    while True:
        del steps[:-block_size]
        tokens = _token_after(forward, steps, sampler, next(uniforms))
        steps.append(tokens)
        yield tokens


@torch.no_grad()
def _token_after(forward: Callable[..., Any], steps: list[Tensor], sampler: Sampler, uniform: Tensor) -> Tensor:
    logits, _ = forward(torch.stack(steps, dim=1))  # (B, T, V)
    return sampler.sample_token(logits[:, -1], uniform)


def truncate_at(pieces: Iterator[str], stop: str | None) -> Iterator[str]:
    """Pass text through and end before `stop`; a possible beginning of `stop` is held back."""
    held = ""
    for piece in pieces:
        held += piece
        if stop is None:
            yield held
            held = ""
            continue
        found = held.find(stop)
        if found >= 0:
            yield held[:found]
            return
        keep = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def decode_stream(steps: Iterator[list[int]], row: int, text_stream: TextStream) -> Iterator[str]:
    """The text of one sample as its tokens arrive, in whole characters."""
    for tokens in steps:
        yield text_stream([tokens[row]], False)
    yield text_stream([], True)


class Stops:
    """Detects which samples contain the text `stop`, so that they are not continued."""

    def __init__(self, num_samples: int, text_stream: Callable[[], TextStream], stop: str | None) -> None:
        self._stop = stop
        self._streams = [text_stream() for _ in range(num_samples)]
        self._ends = [""] * num_samples  # in which `stop` may begin
        self._is_done = [False] * num_samples

    def feed(self, tokens: list[int]) -> None:
        """Add the next token of each sample."""
        if self._stop is None:
            return
        for row, token in enumerate(tokens):
            if not self._is_done[row]:
                text = self._ends[row] + self._streams[row]([token], False)
                self._is_done[row] = self._stop in text
                self._ends[row] = text[max(0, len(text) - len(self._stop) + 1) :]

    def is_done(self, row: int) -> bool:
        return self._is_done[row]
