"""Decode one sample on a CPU in C, with one call per forward pass (`decode.c`).

The time per token is spent on the calls into torch if the model is small, and on reading the weights if it is large.
The torch decoder (`decoding.py`) makes at least 40 calls per token, and its matrix-vector product reads 35 GB/s where
two cores can read 100.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from microgpt_cli.engines.cpu import build
from microgpt_cli.engines.cpu.kernels import ACTIVATIONS
from microgpt_cli.engines.decoding import folded_bias
from microgpt_cli.generation.sampling import COLDEST, Sampler
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import QK_NORM_EPS, Block

DEFINES = {torch.float32: [], torch.bfloat16: ["BFLOAT16"], torch.float16: ["FLOAT16"]}
PANEL = 64  # outputs, as in decode.c
BUFFER_WIDTH = 9  # floats per token and channel in the buffer of `forward` in decode.c
PACKED_ROWS = 64 * PANEL  # of a weight, prepared together
MAX_SAMPLED_VOCAB = 4096  # with more tokens, torch samples faster
MAX_TOKENS_PER_CALL, MAX_WEIGHTS_PER_CALL = 16, 40_000_000  # so that text is still printed while it is generated


class _Linear(ctypes.Structure):
    _fields_ = (
        ("in", ctypes.c_long),
        ("out", ctypes.c_long),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in ("qkv", "proj", "fc", "fc_proj")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("V", "C", "H", "n_layer", "positions")),
        *(
            (name, ctypes.c_void_p)
            for name in ("token_embedding", "prev_token_bias", "position_embedding", "cos", "sin")
        ),
        *((name, ctypes.c_float) for name in ("eps", "qk_eps")),
        *((name, ctypes.c_int) for name in ("subtract_mean", "activation")),
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Linear),
    )


def load(dtype: torch.dtype) -> tuple[Callable[..., int], Callable[..., int]]:
    """The functions `forward` and `generate` of decode.c, for weights of this dtype.

    Raises:
        build.Unavailable: they can't be compiled or loaded.
    """
    functions = build.load("decode", *DEFINES[dtype]).functions
    long, address = ctypes.c_long, ctypes.c_void_p
    functions.forward.argtypes = [ctypes.POINTER(_Model), address, long, long, long, address, address]
    functions.generate.argtypes = [ctypes.POINTER(_Model), *[long] * 4, ctypes.c_double, *[address] * 4]
    functions.forward.restype = functions.generate.restype = ctypes.c_int
    return functions.forward, functions.generate


class NativeWeights:
    """A copy of a model's weights in the layout of `decode.c`. It does not change when the model is trained further.

    Args:
        model: on a CPU.
        dtype: of the stored matrices; the arithmetic is float32.

    Raises:
        build.Unavailable: the decoder can't be compiled or loaded.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        (self.forward, self.generate), self.dtype = load(dtype), dtype
        self._tensors: list[Tensor] = []  # own the memory that the addresses point to
        config = model.config
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.layers = [
            _Layer(
                qkv=self._linear(block.attention.qkv, block.ln1),
                proj=self._linear(block.attention.proj),
                fc=self._linear(block.mlp.fc, block.ln2),
                fc_proj=self._linear(block.mlp.proj),
            )
            for block in blocks
        ]
        embedding, rotary = model.token_embedding_table.weight.detach(), blocks[0].attention.rotary
        positions = model.position_embedding_table.weight.detach() if config.position == "learned" else None
        eps = model.ln_f.eps
        assert isinstance(eps, float)
        self.model = _Model(
            V=model.vocab_size, C=config.n_embd, H=config.n_head, n_layer=config.n_layer,
            token_embedding=self._address(embedding),
            prev_token_bias=self._address(model.token_shift.share.detach() * embedding if config.token_shift else None),
            position_embedding=self._address(positions),
            cos=self._address(None if rotary is None else rotary.cos),
            sin=self._address(None if rotary is None else rotary.sin),
            eps=eps,
            qk_eps=QK_NORM_EPS if config.qk_norm else 0,
            subtract_mean=isinstance(model.ln_f, nn.LayerNorm),
            activation=ACTIVATIONS.index(config.activation),
            head=self._linear(model.lm_head, model.ln_f, center=dtype != torch.float32),
        )  # fmt: skip

    def _linear(self, layer: nn.Linear, norm: nn.Module | None = None, center: bool = False) -> _Linear:
        """A layer with the gain and bias of the norm before it, packed a few rows at a time: never copied whole."""
        weight, gain = layer.weight.detach(), None if norm is None else cast(Tensor, norm.weight).detach()
        bias, (out, fan_in) = folded_bias(norm, layer), weight.shape
        mean = weight.mean(0) if center else None  # common to all logits: changes no probability
        if center and bias is not None:
            bias = bias - bias.mean()
        panels = torch.zeros(-(-out // PANEL), fan_in, PANEL, dtype=self.dtype)
        for first in range(0, out, PACKED_ROWS):
            rows = weight[first : first + PACKED_ROWS]
            rows = rows if mean is None else rows - mean
            rows = rows if gain is None else rows * gain
            at, whole, rest = first // PANEL, len(rows) // PANEL, len(rows) % PANEL
            panels[at : at + whole].copy_(rows[: whole * PANEL].unflatten(0, (whole, PANEL)).mT)
            if rest:
                panels[at + whole, :, :rest].copy_(rows[-rest:].mT)
        return _Linear(fan_in, out, self._address(panels, self.dtype), self._address(bias))

    def _address(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        if x is None:
            return None
        self._tensors.append(x.to(dtype).contiguous())
        return self._tensors[-1].data_ptr()


class NativeDecoder:
    """Decodes one sample with a cache of keys and values. Its methods raise MemoryError if memory runs out.

    Args:
        weights: of the model.
        positions: the capacity of the cache, at most `block_size`.
        sampler: chooses the tokens.
    """

    def __init__(self, weights: NativeWeights, positions: int, sampler: Sampler) -> None:
        self.weights, self.sampler = weights, sampler
        self._model = _Model.from_buffer_copy(weights.model)  # a shallow copy: `weights` owns what it points to
        L, C, V = self._model.n_layer, self._model.C, self._model.V
        self._kv = torch.zeros(L, 2, positions * C)
        layers = (_Layer * L)(*weights.layers)
        for layer, (keys, values) in zip(layers, self._kv, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        self._model.layers, self._model.positions = layers, positions
        self._activations, self._logits = torch.empty(BUFFER_WIDTH * C), torch.empty(1, V)
        self._samples_in_c = sampler.top_k is None and sampler.top_p == 1 and V <= MAX_SAMPLED_VOCAB
        self._tokens_per_call = min(MAX_TOKENS_PER_CALL, max(1, MAX_WEIGHTS_PER_CALL // (12 * C**2 * L + C * V)))
        self._previous = -1  # the token before the latest

    def forward(self, tokens: Tensor, position: int) -> Tensor:
        """Tokens (T,), the first at this position → logits (1, V) after the last, valid until the next call."""
        T, previous = len(tokens), self._previous if position else -1
        activations = self._activations if T == 1 else torch.empty(T * BUFFER_WIDTH * self._model.C)
        buffers = activations.data_ptr(), self._logits.data_ptr()
        build.check_status(self.weights.forward(self._model, tokens.data_ptr(), previous, position, T, *buffers))
        self._previous = int(tokens[-1])
        return self._logits

    @torch.inference_mode()
    def first(self, steps: Sequence[Tensor], uniform: Tensor) -> Tensor:
        """The token (1,) after these, which are processed from position 0 in one forward pass.

        Raises:
            IndexError: a token is not in the vocabulary.
        """
        tokens = torch.cat(list(steps))
        if tokens.min() < 0 or tokens.max() >= self._model.V:
            raise IndexError(f"tokens go from 0 to {self._model.V - 1}")
        return self.sampler.sample_token(self.forward(tokens, 0), uniform)

    def write(self, tokens: Tensor, position: int, uniforms: Iterator[Tensor]) -> Iterator[Tensor]:
        """The tokens (1,) after the one at `position` until the cache is full; C samples several in one call."""
        temperature = self.sampler.temperature and max(self.sampler.temperature, COLDEST)
        while position < self._model.positions:
            if self._samples_in_c:
                count = min(self._tokens_per_call, self._model.positions - position)
                drawn = torch.cat([next(uniforms) for _ in range(count)])
                sampled = torch.empty(count, dtype=torch.long)
                where = int(tokens), self._previous, position, count
                buffers = self._activations.data_ptr(), self._logits.data_ptr(), sampled.data_ptr()
                status = self.weights.generate(self._model, *where, temperature, drawn.data_ptr(), *buffers)
                build.check_status(status)
                self._previous = int(sampled[-2] if count > 1 else tokens)
            else:
                count = 1
                logits = self.forward(tokens, position)
                with torch.inference_mode():
                    sampled = self.sampler.sample_token(logits, next(uniforms))
            yield from sampled.split(1)
            tokens, position = sampled[-1:], position + count
