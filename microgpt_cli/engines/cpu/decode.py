"""One sample on a CPU, decoded in C: all of the model in one call (`native/decode.c`).

For a small model what a token costs is the number of calls, for a larger one how fast weights are read. Torch's step
(`decoding.py`) makes 40 calls and more, and its product of one row reads 35 GB/s where two cores can read 100.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from microgpt_cli.engines.cpu import build
from microgpt_cli.engines.cpu.kernels import ACTIVATIONS
from microgpt_cli.engines.decoding import taken_in
from microgpt_cli.generation.sampling import COLDEST, Sampler
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import QK_NORM_EPS, Block

DEFINES = {torch.float32: [], torch.bfloat16: ["BFLOAT16"], torch.float16: ["FLOAT16"]}
TILE, SCRATCH = 64, 9  # outputs; numbers for each of C and each token, as in decode.c
MOST_PICKED_FROM = 4096  # tokens; from more, torch draws faster
MOST_AT_ONCE, WEIGHTS_AT_ONCE = 16, 40_000_000  # in one call, so that text still comes as it is written


class _Product(ctypes.Structure):
    _fields_ = (
        ("in", ctypes.c_long),
        ("out", ctypes.c_long),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Product) for name in ("qkv", "proj", "fc", "fc_proj")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("V", "C", "H", "n_layer", "positions")),
        *((name, ctypes.c_void_p) for name in ("tokens", "shifted", "places", "cosines", "sines")),
        *((name, ctypes.c_float) for name in ("eps", "qk_eps")),
        *((name, ctypes.c_int) for name in ("centred", "activation")),
        ("layers", ctypes.POINTER(_Layer)),
        ("head", _Product),
    )


def load(dtype: torch.dtype) -> tuple[Callable[..., None], Callable[..., None]]:
    """The functions `take_in` and `write_on`, for weights of this precision.

    Raises:
        library.Unavailable: there is no compiler, or it fails.
    """
    made = build.load("decode", *DEFINES[dtype])
    long, place = ctypes.c_long, ctypes.c_void_p
    made.take_in.argtypes = [ctypes.POINTER(_Model), place, long, long, long, place, place]
    made.write_on.argtypes = [ctypes.POINTER(_Model), *[long] * 4, ctypes.c_double, *[place] * 4]
    made.take_in.restype = made.write_on.restype = None
    return made.take_in, made.write_on


class NativeWeights:
    """The weights of a model as `decode.c` reads them. They do not follow the model when it learns.

    Args:
        model: on a CPU.
        dtype: of the matrices; the arithmetic is float32.
    """

    def __init__(self, model: GPT, dtype: torch.dtype) -> None:
        (self.take_in, self.write_on), self.dtype = load(dtype), dtype
        self._kept: list[Tensor] = []  # what C is told the address of
        config = model.config
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.layers = [
            _Layer(
                qkv=self._product(block.attention.qkv, block.ln1),
                proj=self._product(block.attention.proj),
                fc=self._product(block.mlp.fc, block.ln2),
                fc_proj=self._product(block.mlp.proj),
            )
            for block in blocks
        ]
        embedding, rotary = model.token_embedding_table.weight.detach(), blocks[0].attention.rotary
        eps = model.ln_f.eps
        assert isinstance(eps, float)
        self.model = _Model(
            V=model.vocab_size, C=config.n_embd, H=config.n_head, n_layer=config.n_layer,
            tokens=self._at(embedding),
            shifted=self._at(model.token_shift.share.detach() * embedding if config.token_shift else None),
            places=self._at(model.position_embedding_table.weight.detach() if config.position == "learned" else None),
            cosines=self._at(None if rotary is None else rotary.cos),
            sines=self._at(None if rotary is None else rotary.sin),
            eps=eps,
            qk_eps=QK_NORM_EPS if config.qk_norm else 0,
            centred=isinstance(model.ln_f, nn.LayerNorm),
            activation=ACTIVATIONS.index(config.activation),
            head=self._product(model.lm_head, model.ln_f, centred=dtype != torch.float32),
        )  # fmt: skip

    def _product(self, layer: nn.Linear, norm: nn.Module | None = None, centred: bool = False) -> _Product:
        weight, bias = taken_in(norm, layer)
        if centred:  # what is common to all logits, which moves no probability, is not rounded (products.make_head)
            weight, bias = weight - weight.mean(0), None if bias is None else bias - bias.mean()
        (out, fan_in), rest = weight.shape, len(weight) % TILE
        tiles = torch.zeros(-(-out // TILE), fan_in, TILE, dtype=self.dtype)
        tiles[: out // TILE].copy_(weight[: out - rest].unflatten(0, (-1, TILE)).mT)
        if rest:
            tiles[-1, :, :rest].copy_(weight[out - rest :].mT)
        return _Product(fan_in, out, self._at(tiles, self.dtype), self._at(bias))

    def _at(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
        if x is None:
            return None
        self._kept.append(x.to(dtype).contiguous())
        return self._kept[-1].data_ptr()


class NativeDecoder:
    """One sample goes on from its tokens, over a cache of keys and values.

    Args:
        weights: of the model.
        positions: that there is room for in the cache, at most `block_size`.
        sampler: how to choose tokens.
    """

    def __init__(self, weights: NativeWeights, positions: int, sampler: Sampler) -> None:
        self.weights, self.sampler = weights, sampler
        self._model = _Model.from_buffer_copy(weights.model)  # what it points to stays with the weights
        L, C, V = self._model.n_layer, self._model.C, self._model.V
        self._kv = torch.zeros(L, 2, positions * C)
        layers = (_Layer * L)(*weights.layers)
        for layer, (keys, values) in zip(layers, self._kv, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        self._model.layers, self._model.positions = layers, positions
        self._scratch, self._logits = torch.empty(SCRATCH * C), torch.empty(1, V)
        self._picks = sampler.top_k is None and sampler.top_p == 1 and V <= MOST_PICKED_FROM
        self._at_once = min(MOST_AT_ONCE, max(1, WEIGHTS_AT_ONCE // (12 * C**2 * L + C * V)))
        self._before = -1  # the token before the latest

    def take_in(self, tokens: Tensor, position: int) -> Tensor:
        """Tokens (T,), the first at this position → logits (1, V) after the last, valid until the next call."""
        T, before = len(tokens), self._before if position else -1
        scratch = self._scratch if T == 1 else torch.empty(T * SCRATCH * self._model.C)
        given = tokens.data_ptr(), before, position, T, scratch.data_ptr(), self._logits.data_ptr()
        self.weights.take_in(self._model, *given)
        self._before = int(tokens[-1])
        return self._logits

    @torch.inference_mode()
    def first(self, columns: Sequence[Tensor], number: Tensor) -> Tensor:
        """The token (1,) after these, which are taken in from the beginning, in one pass.

        Raises:
            IndexError: there is no such token.
        """
        tokens = torch.cat(list(columns))
        if tokens.min() < 0 or tokens.max() >= self._model.V:
            raise IndexError(f"tokens go from 0 to {self._model.V - 1}")
        return self.sampler.pick(self.take_in(tokens, 0), number)

    def write(self, tokens: Tensor, position: int, numbers: Iterator[Tensor]) -> Iterator[Tensor]:
        """The tokens (1,) after the one at `position`, until the cache is full: a few in a call, drawn in C."""
        temperature = self.sampler.temperature and max(self.sampler.temperature, COLDEST)
        while position < self._model.positions:
            if self._picks:
                count = min(self._at_once, self._model.positions - position)
                drawn, written = torch.cat([next(numbers) for _ in range(count)]), torch.empty(count, dtype=torch.long)
                given = int(tokens), self._before, position, count, temperature, drawn.data_ptr()
                scratch = self._scratch.data_ptr(), self._logits.data_ptr()
                self.weights.write_on(self._model, *given, *scratch, written.data_ptr())
                self._before = int(written[-2] if count > 1 else tokens)
            else:
                count = 1
                logits = self.take_in(tokens, position)
                with torch.inference_mode():
                    written = self.sampler.pick(logits, next(numbers))
            yield from written.split(1)
            tokens, position = written[-1:], position + count
