"""One token after another beside llama.cpp, evaluation alone: how fast weights go through the processor.

    pip install llama-cpp-python gguf
    python benchmarks/llama.py [model=micro,small,gpt2] [rounds=5] [name=NAME]

Both have random weights of one size: ours arch=gpt2, llama.cpp a llama, the kind it is made for, whose gated MLP is
narrower, so that the parameters are as many. Heads are tied; llama.cpp has float16, we what `microgpt sample` chooses.
Each takes in one token at a time from an empty cache until the context is full (at most 256), with one thread or two,
as is faster for it, in turns in one process. No sampling, no text. Writes to benchmarks/results/.
"""

import ctypes
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine
import torch
from sample_speed import SMALL_VOCAB_SIZE, VOCAB_SIZES
from timing import in_turns, times_as_fast

from microgpt_cli.cli import main as cli
from microgpt_cli.config import ModelConfig
from microgpt_cli.engines.cpu.decode import NativeDecoder, NativeWeights
from microgpt_cli.generation.dtype_policy import choose_dtype
from microgpt_cli.generation.sampling import Sampler
from microgpt_cli.model.accounting import total_parameters
from microgpt_cli.model.gpt import GPT

LONGEST = 256
Take = Callable[[int], object]  # one token at this position


def main(words: list[str]) -> None:
    missing = [name for name in ("llama_cpp", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not installed: pip install llama-cpp-python gguf")
    import llama_cpp

    known = {"model": "micro,small,gpt2", "rounds": "5", "name": f"llama_cpp_{machine.name_of_machine()}"}
    given, _ = machine.settings(words, known)
    rows = []
    for size in given["model"].split(","):
        rows.append(compare(size, int(given["rounds"])))
        print(rows[-1], flush=True)
    content = {"llama-cpp-python": llama_cpp.__version__, "rows": rows}
    print(f"stored in {machine.store(given['name'], 'llama_cpp.py', words, content)}")


def compare(size: str, rounds: int) -> dict[str, Any]:
    """Tokens/s of both, with one thread and two, and the ratio of the faster ones."""
    config = cli.load_config("train", [f"model={size}", "arch=gpt2"]).model
    V, T = VOCAB_SIZES.get(size, SMALL_VOCAB_SIZE), min(config.block_size, LONGEST)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "llama.gguf"
        numbers = write_llama(path, config, V)
        takes: dict[str, Take] = {}
        torch.manual_seed(0)
        model = GPT(config, V).eval()
        for threads in (1, 2):
            takes[f"ours, {threads}"] = ours(model, T, threads)
            takes[f"llama.cpp, {threads}"] = theirs(path, T, threads)
        found = in_turns({name: around(take, T) for name, take in takes.items()}, rounds)
    best = {
        who: min((name for name in found if name.startswith(who)), key=lambda name: found[name].seconds)
        for who in ("ours", "llama.cpp")
    }
    ratio = times_as_fast(*(found[name].rounds for name in best.values()))
    return {
        "model": size,
        "dtype": str(choose_dtype("auto", model, 1)[0]).removeprefix("torch."),
        "parameters": {"ours": total_parameters(model), "llama.cpp": numbers},
        "tokens_per_sec by threads": {name: round(1 / timed.seconds) for name, timed in found.items()},
        "ratio": round(ratio.median, 2),
        "ratio_min_max": [round(ratio.least, 2), round(ratio.most, 2)],
    }


def around(take: Take, positions: int) -> Callable[[int], object]:
    """So many tokens, from the beginning again when the context is full."""

    def way(count: int) -> None:
        for number in range(count):
            take(number % positions)

    return way


def ours(model: GPT, positions: int, threads: int) -> Take:
    dtype, _ = choose_dtype("auto", model, 1)
    decoder, token = NativeDecoder(NativeWeights(model, dtype), positions, Sampler()), torch.tensor([3])

    def take(position: int) -> None:
        torch.set_num_threads(threads)
        decoder.forward(token, position)

    return take


def theirs(path: Path, positions: int, threads: int) -> Take:
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    settings = lc.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = max(positions, LONGEST), threads, threads
    model = lc.llama_model_load_from_file(str(path).encode(), lc.llama_model_default_params())
    context = lc.llama_init_from_model(model, settings)
    memory, token = lc.llama_get_memory(context), (lc.llama_token * 1)(3)

    def take(position: int, kept: object = (quiet, model)) -> None:
        if position == 0:
            lc.llama_memory_clear(memory, True)
        assert lc.llama_decode(context, lc.llama_batch_get_one(token, 1)) == 0

    return take


def write_llama(path: Path, config: ModelConfig, V: int) -> int:
    """A llama of this size with random weights in float16, and how many they are."""
    import gguf

    L, C, H = config.n_layer, config.n_embd, config.n_head
    F = 8 * C // 3 // 32 * 32  # three matrices of this width are about as many numbers as two of 4 C
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(max(config.block_size, LONGEST))
    writer.add_embedding_length(C)
    writer.add_block_count(L)
    writer.add_feed_forward_length(F)
    writer.add_head_count(H)
    writer.add_head_count_kv(H)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(C // H)
    writer.add_vocab_size(V)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{number}>".encode() for number in range(V)])
    writer.add_token_scores([0.0] * V)
    writer.add_token_types([gguf.TokenType.NORMAL] * V)
    matrices = {f"blk.{i}.attn_{part}": (C, C) for i in range(L) for part in ("q", "k", "v", "output")}
    matrices |= {f"blk.{i}.ffn_{part}": (F, C) for i in range(L) for part in ("gate", "up")}
    matrices |= {f"blk.{i}.ffn_down": (C, F) for i in range(L)} | {"token_embd": (V, C)}
    gains = ["output_norm", *(f"blk.{i}.{part}_norm" for i in range(L) for part in ("attn", "ffn"))]
    for name, shape in matrices.items():
        writer.add_tensor(f"{name}.weight", (torch.randn(shape) * 0.02).half().numpy())
    for name in gains:
        writer.add_tensor(f"{name}.weight", torch.ones(C).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(rows * columns for rows, columns in matrices.values()) + len(gains) * C


if __name__ == "__main__":
    main(sys.argv[1:])
