"""Parameters, FLOPs and bytes of a GPT, exact, each with its formula.

C n_embd, T block_size, V vocabulary, H heads, L layers, B batch.

FLOPs count a multiply-add as two and omit everything but matrix products (norms, softmax, nonlinearities), as in
Kaplan et al. 2020 and Chowdhery et al. 2022 (PaLM, appendix B). Attention is counted in full, not halved for the mask.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from microgpt_cli.config import ModelConfig, OptimConfig
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.loss import needs_chunks

FLOAT32_BYTES, INT64_BYTES = 4, 8
ADAMW_STATES, MUON_STATES = 2, 1  # numbers kept for a parameter: exp_avg and exp_avg_sq; momentum
MAX_NATIVE_ATTENTION = 256  # tokens; up to these engines/cpu keeps the attention weights of all pairs


@dataclass(frozen=True)
class Row:
    """One module's parameters."""

    name: str
    count: int  # without parameters counted in an earlier row
    formula: str  # with numbers
    depth: int  # 0 for the parts of the model, 1 for their parts …


@dataclass(frozen=True)
class Quantity:
    """A number with its formula."""

    value: int
    formula: str


class _SkipInit(TorchFunctionMode):
    """Skips the initialisation of weights, which takes seconds, where nothing reads them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_", "mul_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def meta_model(config: ModelConfig, vocab_size: int) -> GPT:
    """A GPT on the meta device: shapes without numbers."""
    with torch.device("meta"), _SkipInit():
        return GPT(config, vocab_size)


def empty_model(config: ModelConfig, vocab_size: int) -> GPT:
    """A GPT on the CPU with uninitialised embeddings and matrices, to load weights into."""
    with _SkipInit():
        return GPT(config, vocab_size)


def parameter_rows(model: GPT, depth: int = 0) -> list[Row]:
    """The parameters of each module down to `depth`; a shared tensor counts once."""
    rows: list[Row] = []
    seen: set[int] = set()

    def walk(module: nn.Module, name: str, level: int) -> None:
        own = {id(p): p for p in module.parameters() if id(p) not in seen}
        rows.append(Row(name, sum(p.numel() for p in own.values()), _formula(module, set(own)), level))
        if level < depth:
            for child_name, child in module.named_children():
                if any(True for _ in child.parameters()):
                    walk(child, f"{name}.{child_name}", level + 1)
        seen.update(own)

    for name, part in model.named_children():
        walk(part, name, 0)
    return rows


def _formula(module: nn.Module, fresh: set[int]) -> str:
    """`64 × 256 + 256` for a layer, `4 × 49,792` for equal children, a sum of the children otherwise."""
    direct = [p for p in module.parameters(recurse=False) if id(p) in fresh]
    if direct:
        return " + ".join(" × ".join(f"{n:,}" for n in p.shape) for p in direct)
    children = [sum(p.numel() for p in c.parameters() if id(p) in fresh) for c in module.children()]
    children = [count for count in children if count]
    if not children:
        return "shared with token_embedding_table"
    if isinstance(module, nn.Sequential) and len(set(children)) == 1:
        return f"{len(children)} × {children[0]:,}"
    return " + ".join(f"{count:,}" for count in children)


def total_parameters(model: nn.Module) -> int:
    """The number of parameters; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def embedding_parameters(model: GPT) -> int:
    """Parameters of the embedding tables, without one that `lm_head` shares."""
    tables: dict[int, Tensor] = {}
    if not model.config.tied_head:
        tables[0] = model.token_embedding_table.weight
    if model.config.position == "learned":
        tables[1] = model.position_embedding_table.weight
    return sum(table.numel() for table in tables.values())


def flops_per_token(model: GPT) -> Quantity:
    """Forward and backward FLOPs per token at full context: 6 per matrix weight, 12 · L · C · T for attention."""
    config = model.config
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    L, C, T = config.n_layer, config.n_embd, config.block_size
    return Quantity(6 * matrices + 12 * L * C * T, f"6 × {matrices:,} + 12 × {L} × {C} × {T}")


def memory(model: GPT, batch_size: int, optim: OptimConfig, engine: str) -> dict[str, Quantity]:
    """Bytes of a float32 training step without dropout: weights, gradients, the optimizer's state, saved activations.

    Activations are what the backward pass keeps of B sequences of T tokens. For engine=torch tests compare the formula
    with what autograd saves; engine=native also keeps the attention weights of all pairs of a short context.

    Args:
        model: also on the meta device.
        batch_size: B.
        optim: which optimizer.
        engine: who computes the step, "native" or "torch".
    """
    n = total_parameters(model)
    T = model.config.block_size
    chunks = needs_chunks(batch_size * T, model.vocab_size)
    ids = 1 if chunks else 2  # idx, and without chunks targets
    written_out = engine == "native" and T <= MAX_NATIVE_ATTENTION
    per_token = FLOAT32_BYTES * _saved_per_token(model, chunks, written_out) + INT64_BYTES * ids
    rest = FLOAT32_BYTES * (total_parameters(model.lm_head) if chunks else 1)  # the head's gradient; the weight of all
    return {
        "weights": Quantity(FLOAT32_BYTES * n, f"4 × {n:,}"),
        "gradients": Quantity(FLOAT32_BYTES * n, f"4 × {n:,}"),
        "optimizer": _optimizer_bytes(model, optim),
        "activations": Quantity(batch_size * T * per_token + rest, f"{batch_size} × {T} × {per_token:,} + {rest:,}"),
    }


def _optimizer_bytes(model: GPT, optim: OptimConfig) -> Quantity:
    """The optimizer's state, which is also in checkpoints: all in float32."""
    by_muon = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) if optim.kind == "muon" else 0
    rest = total_parameters(model) - by_muon
    parts = [(MUON_STATES, by_muon), (ADAMW_STATES, rest)]
    total = sum(FLOAT32_BYTES * states * count for states, count in parts) + FLOAT32_BYTES
    formula = " + ".join(f"{FLOAT32_BYTES} × {states} × {count:,}" for states, count in parts if count)
    return Quantity(total, f"{formula} + {FLOAT32_BYTES}")  # plus the number of updates


def _saved_per_token(model: GPT, chunks: bool, materialized: bool) -> int:
    """Float32 numbers saved for the backward pass per token.

    Args:
        chunks: whether the loss is computed in chunks.
        materialized: whether the attention weights are saved.
    """
    config = model.config
    C, H = config.n_embd, config.n_head
    norm = 2 * C + 2 if config.norm == "layernorm" else 3 * C + 1  # input, statistics, (normalised,) output
    rotated = config.position == "rotary" or config.qk_norm
    attention = 3 * C + C  # q, k, v; outputs of the heads
    attention += H * (config.block_size if materialized else 1)  # attention weights, or log-sum-exp
    attention += (2 * C if rotated else 0) + (2 * H if config.qk_norm else 0)  # q and k before; their statistics
    attention += C if rotated else 0  # outputs of the heads, contiguous for the projection
    mlp = 4 * C if config.activation == "relu" else 8 * C  # after, and for others also before, the nonlinearity
    # log-probabilities; in chunks, the gradient of the inputs instead
    head = norm if chunks else norm + model.vocab_size
    shift = C if config.token_shift else 0
    return config.n_layer * (2 * norm + attention + mlp) + head + shift
