"""A model goes on from a prompt, token by token.

What happens when the context is full (`block_size` tokens) is the window policy. With the cache, the last half of the
tokens is kept and taken in anew in one pass, so that a token goes on costing what one position costs. Without it, as in
the article, the context is cropped by one token and worked out whole each time. Until it is full both write the same.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from microgpt_cli.engines.cpu.decode import NativeDecoder, NativeWeights
from microgpt_cli.engines.cuda.decode_graph import FEWEST_TOKENS, GraphedStep
from microgpt_cli.engines.decoding import Cache, Weights, decode_one_token, prefill, prepare
from microgpt_cli.engines.structure import difference
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

TextStream = Callable[[Sequence[int], bool], str]  # ids, whether they are the last → whole characters


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
    """Continuations of one prompt.

    Args:
        model: in eval mode, where there is dropout.
        prompt: at least one token id; the model sees the last `block_size`.
        cache: keep keys and values from token to token, if the model's code is what the decoders know
            (`engines/structure.py`); if not, as in the article.
        dtype: of the arithmetic with the cache (see `decoding.prepare`); without it, autocast says.
        compile: run the model's forward pass, where there is no cache, by torch.compile.
        native: decode a single sample in C, with the cache, on a CPU (see `engines/cpu/decode.py`).
        stopped: asked after each token whether the sample of this number needs no more.

    Yields:
        The next token of each of the `num_samples` samples (anything for those that have stopped).
    """
    device = model.lm_head.weight.device
    cache = cache and difference(model) is None
    forward: Callable[..., Any] = torch.compile(model, dynamic=True) if compile and not cache else model
    steps = list(torch.tensor(prompt[-model.config.block_size :], device=device)[:, None].expand(-1, num_samples))
    native_weights = NativeWeights(model, dtype) if cache and native and device.type == "cpu" else None
    alone = native_weights is not None and num_samples == 1
    weights = prepare(model, dtype, num_samples) if cache and not alone else None
    uniforms = draws.tensors(device)
    rows = list(range(num_samples))  # the samples that are worked on
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
            going_on = rows if stopped is None else [row for row in rows if not stopped(row)]
            if left == 0 or len(going_on) <= len(rows) / 2:  # seldom, since a smaller batch begins with a prefill
                break
        keep = torch.tensor(
            [place for place, row in enumerate(rows) if row in going_on], dtype=torch.long, device=device
        )
        steps = [step[keep] for step in steps]
        uniforms = map(operator.itemgetter(keep), uniforms)
        rows = going_on


def _with(latest: list[int], rows: list[int], tokens: list[int]) -> list[int]:
    """The latest tokens of all samples, with new ones in some rows."""
    newer = dict(zip(rows, tokens, strict=True))
    return [newer.get(row, token) for row, token in enumerate(latest)]


class TorchDecoder:
    """Samples that go on together, each step replayed from a CUDA graph or eager.

    Args:
        weights: prepared, of the model.
        num_samples: B.
        positions: that there is room for in the cache, at most `block_size`.
        sampler: how to choose tokens.
        max_steps: a few are not worth a graph.
    """

    def __init__(self, weights: Weights, num_samples: int, positions: int, sampler: Sampler, max_steps: int) -> None:
        self.weights, self.sampler = weights, sampler
        self.cache = Cache(weights, num_samples, positions)
        self._step: Callable[[Tensor, int, Tensor], Tensor] = self._eager
        if self.cache.kv.is_cuda and max_steps >= FEWEST_TOKENS:
            self._step = torch.inference_mode()(GraphedStep(weights, self.cache, sampler).__call__)

    @torch.inference_mode()
    def first(self, steps: Sequence[Tensor], uniform: Tensor) -> Tensor:
        """The tokens (B,) after steps of tokens (B,), which are taken in from the beginning, in one pass."""
        return self.sampler.sample_token(prefill(self.weights, self.cache, torch.stack(list(steps), dim=1)), uniform)

    def write(self, tokens: Tensor, position: int, uniforms: Iterator[Tensor]) -> Iterator[Tensor]:
        """The tokens (B,) after those at `position`, until the cache is full."""
        for here in range(position, self.cache.kv.size(4)):
            tokens = self._step(tokens, here, next(uniforms))
            yield tokens

    def _eager(self, tokens: Tensor, position: int, uniform: Tensor) -> Tensor:
        with torch.inference_mode():  # twice as fast to enter as its decorator
            return self.sampler.sample_token(decode_one_token(self.weights, self.cache, tokens, position), uniform)


def _decoder(
    weights: Weights | None,
    native: NativeWeights | None,
    num_samples: int,
    positions: int,
    sampler: Sampler,
    max_steps: int,
) -> TorchDecoder | NativeDecoder:
    """In C where it can be, for one sample."""
    if native is not None and num_samples == 1:
        return NativeDecoder(native, positions, sampler)
    assert weights is not None
    return TorchDecoder(weights, num_samples, positions, sampler, max_steps)


def _cached(
    decoder: TorchDecoder | NativeDecoder, steps: list[Tensor], block_size: int, uniforms: Iterator[Tensor]
) -> Iterator[Tensor]:
    """Next tokens (B,), without end, after steps of tokens (B,), to which they are added."""
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
    """The same as in the article: all of the context is worked out for every token."""
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
    """Pass text on as it comes, and end before `stop` appears; what could be its beginning is held back."""
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
    """The text of one sample, in whole characters, as its tokens come."""
    for tokens in steps:
        yield text_stream([tokens[row]], False)
    yield text_stream([], True)


class Stops:
    """Watches which samples have come to the text `stop`, so that no more work is done for them."""

    def __init__(self, num_samples: int, text_stream: Callable[[], TextStream], stop: str | None) -> None:
        self._stop = stop
        self._streams = [text_stream() for _ in range(num_samples)]
        self._ends = [""] * num_samples  # what the stop may begin in
        self._is_done = [False] * num_samples

    def feed(self, tokens: list[int]) -> None:
        """Take in the next token of each sample."""
        if self._stop is None:
            return
        for row, token in enumerate(tokens):
            if not self._is_done[row]:
                text = self._ends[row] + self._streams[row]([token], False)
                self._is_done[row] = self._stop in text
                self._ends[row] = text[max(0, len(text) - len(self._stop) + 1) :]

    def is_done(self, row: int) -> bool:
        return self._is_done[row]
