"""Tokens/s of one sample and of many: ours, the article's plain way, and transformers where it is installed.

    python benchmarks/sample_speed.py model=micro,small,gpt2 num_samples=1,8,64 device=cpu threads=2 name=cpu_sample
    python benchmarks/sample_speed.py model=micro,small,gpt2 num_samples=1,64 device=cuda name=h100_sample

All go on from one token at temperature 1, with the same random weights (arch=gpt2, which transformers has too).
They run in turns (ours, plain, …), and the median of the rounds counts; precision and threads of ours are those that
`microgpt sample` would choose. The plain way works out the whole context in float32 for every token; it is timed with a
full one, as all but its first tokens are. The time to the first token is that of taking in a prompt, in one pass and
token by token. Writes to benchmarks/results/, where rows of the same model and number of samples are replaced.
"""

import importlib.metadata
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import machine
import torch

from microgpt_cli.cli import main as cli
from microgpt_cli.compute import choose
from microgpt_cli.engines.decoding import Cache, decode_one_token, prefill, prepare
from microgpt_cli.generation.dtype_policy import choose_dtype, choose_native, choose_threads
from microgpt_cli.generation.generate import generate
from microgpt_cli.generation.sampling import Sampler, UniformStream
from microgpt_cli.model.gpt import GPT

ROUND_SECONDS = 2.0  # about, for each of those compared
LONGEST_PROMPT = 128
VOCAB_SIZES = {"gpt2": 50257}
SMALL_VOCAB_SIZE = 65

Row = dict[str, Any]


def main(words: list[str]) -> None:
    known = {"model": "micro,small,gpt2", "num_samples": "1,8,64", "dtype": "auto", "rounds": "5", "device": "auto"}
    given, overrides = machine.settings(
        words, known | {"threads": "", "engine": "auto", "name": "sample_speed"}, more=True
    )
    threads = int(given["threads"]) if given["threads"] else None
    if not has_transformers():
        print("transformers is not installed: not compared (pip install transformers)")
    for size in given["model"].split(","):
        for count in given["num_samples"].split(","):
            for dtype in given["dtype"].split(","):
                row = compare(
                    size, int(count), given["device"], dtype, threads, int(given["rounds"]), overrides, given["engine"]
                )
                print(json.dumps(row), flush=True)
                store(given["name"], row, words)


def store(name: str, row: Row, words: list[str]) -> None:
    """Put a row into the file of results, in the place of an older one for the same."""
    same = ("model", "num_samples", "dtype")
    path = machine.RESULTS / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [other for other in old if any(other[key] != row[key] for key in same)] + [row]
    content: dict[str, Any] = {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
    if has_transformers():
        content["transformers"] = importlib.metadata.version("transformers")
    ordered = sorted(rows, key=lambda row: (row["block_size"], row["num_samples"]))
    machine.store(name, "sample_speed.py", words, content | {"rows": ordered})


def compare(
    size: str = "micro",
    num_samples: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    rounds: int = 5,
    overrides: Sequence[str] = (),
    engine: str = "auto",
) -> Row:
    """One row: rates of all in tokens/s over all samples, how many times the others' ours is, time to the first token.

    The plain way and transformers (where it is installed) are compared with for one sample.

    Args:
        size: a choice of the group `model`.
        device, dtype, threads, engine: as the keys of `microgpt sample`.
        rounds: how often each is timed.
        overrides: other `key=value` words of `microgpt train`.
    """
    compute = choose(device, "auto", threads=threads)
    all_threads = torch.get_num_threads()
    config = cli.load_config("train", [f"model={size}", "arch=gpt2", *overrides])
    torch.manual_seed(0)
    model = GPT(config.model, VOCAB_SIZES.get(size, SMALL_VOCAB_SIZE)).to(compute.device).eval()
    chosen, _ = choose_dtype(dtype, model, num_samples)
    native = choose_native(engine, model, chosen, num_samples, cache=True)
    our_threads = choose_threads(model, num_samples) if compute.device.type == "cpu" else all_threads
    block_size = model.config.block_size

    def ours(count: int) -> None:
        torch.set_num_threads(our_threads)
        for _ in generate(
            model, [1], count, Sampler(), UniformStream(0, num_samples), num_samples, dtype=chosen, native=native
        ):
            pass
        torch.set_num_threads(all_threads)

    def plain(count: int) -> None:
        plain_generate(model, torch.ones(num_samples, block_size, dtype=torch.long, device=compute.device), count)

    ways: dict[str, Callable[[int], None]] = {"ours": ours}
    if num_samples == 1:
        ways["plain"] = plain
        if has_transformers():
            ways["transformers"] = transformers_generate(model)
    counts = {}
    for name, way in ways.items():
        warm = 2 if name == "plain" else min(block_size - 1, 40)
        way(warm)  # a graph is recorded here
        longest = block_size - 2 if name == "transformers" else 5 * block_size
        a_token = (timed(way, warm) - timed(way, 1)) / (warm - 1)  # beside what the first has cost
        counts[name] = min(longest, max(2, int(ROUND_SECONDS / max(a_token, 1e-6))))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            rates[name].append(counts[name] * num_samples / timed(way, counts[name]))
    row: Row = {
        "model": size,
        "num_samples": num_samples,
        "vocab_size": model.vocab_size,
        "block_size": block_size,
        "device": str(compute.device),
        "threads": {"ours": our_threads, "others": all_threads},
        "dtype": str(chosen).removeprefix("torch."),
        "native": native,
        "new_tokens": counts,
        "rounds": rounds,
        "tokens_per_sec": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "tokens_per_sec_min_max": {name: [round(min(v), 1), round(max(v), 1)] for name, v in rates.items()},
    }
    for name in ways:
        if name != "ours":
            ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
            row[f"times_{name}"] = round(statistics.median(ratios), 2)
            row[f"times_{name}_min_max"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return row | first_token(model, num_samples, chosen, rounds)


def first_token(model: GPT, num_samples: int, dtype: torch.dtype, rounds: int) -> Row:
    """Seconds from a prompt to logits, taken in in one pass and token by token, the weights being ready."""
    device = model.lm_head.weight.device
    T = max(1, min(LONGEST_PROMPT, model.config.block_size // 2))
    idx = torch.ones(num_samples, T, dtype=torch.long, device=device)
    weights = prepare(model, dtype, num_samples)
    cache = Cache(weights, num_samples, T)

    @torch.inference_mode()
    def one_pass(_: int) -> None:
        prefill(weights, cache, idx)

    @torch.inference_mode()
    def token_by_token(_: int) -> None:
        for position in range(T):
            decode_one_token(weights, cache, idx[:, position], position)

    seconds: dict[str, list[float]] = {"one_pass": [], "token_by_token": []}
    one_pass(0)
    for _ in range(rounds):
        seconds["one_pass"].append(timed(one_pass, 0))
        seconds["token_by_token"].append(timed(token_by_token, 0))
    return {
        "prompt_tokens": T,
        "first_token_sec": {name: round(statistics.median(values), 5) for name, values in seconds.items()},
    }


def timed(way: Callable[[int], None], count: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    way(count)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def plain_generate(model: GPT, idx: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """The article's `generate`, word for word."""
    for _ in range(max_new_tokens):
        idx_cond = idx[:, -model.config.block_size :]
        logits, _ = model(idx_cond)
        logits = logits[:, -1, :]
        probs = torch.nn.functional.softmax(logits, dim=-1)
        idx_next = torch.multinomial(probs, num_samples=1)
        idx = torch.cat((idx, idx_next), dim=1)
    return idx


def has_transformers() -> bool:
    return importlib.util.find_spec("transformers") is not None


def transformers_gpt2(model: GPT) -> Any:
    """GPT-2 of transformers with these weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config, device = model.config, model.lm_head.weight.device
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size, n_positions=config.block_size, n_embd=config.n_embd, n_layer=config.n_layer,
            n_head=config.n_head, bos_token_id=1, eos_token_id=None, pad_token_id=0,
        )
    ).to(device).eval()  # fmt: skip
    names = {
        "token_embedding_table": "wte", "position_embedding_table": "wpe", "blocks": "h", "ln1": "ln_1", "ln2": "ln_2",
        "attention.qkv": "attn.c_attn", "attention.proj": "attn.c_proj", "mlp.fc": "mlp.c_fc", "mlp.proj": "mlp.c_proj",
    }  # fmt: skip
    state = {}
    for name, weight in model.state_dict().items():
        for ours, other in names.items():
            name = name.replace(ours, other)
        turned = ".c_" in name and weight.dim() == 2  # Conv1D keeps (in, out)
        state[name if name == "lm_head.weight" else f"transformer.{name}"] = weight.t() if turned else weight
    theirs.load_state_dict(state)
    return theirs


def transformers_generate(model: GPT) -> Callable[[int], None]:
    """GPT-2 of transformers with these weights, and its `generate`."""
    theirs, device = transformers_gpt2(model), model.lm_head.weight.device
    idx = torch.ones(1, 1, dtype=torch.long, device=device)
    with torch.no_grad():
        a, b = theirs(idx).logits, model(idx)[0]
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # the same model

    def way(count: int) -> None:
        theirs.generate(
            idx, attention_mask=torch.ones_like(idx), do_sample=True, min_new_tokens=count, max_new_tokens=count
        )

    return way


if __name__ == "__main__":
    main(sys.argv[1:])
