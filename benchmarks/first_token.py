"""How long a trained model takes to its first token, and how much memory: fresh processes in turns, medians.

    python benchmarks/first_token.py [model=gpt2] [vocab_size=50257] [rounds=5] [name=first_token]

`torch` is `import torch` alone; `ours` is `microgpt sample ckpt=RUN max_new_tokens=1` until the token is written;
`transformers`, where it is installed, is `from_pretrained` and `generate(max_new_tokens=1)` on the same weights. The
run's folder holds AdamW's state, which sampling should not read. Memory is the most that the process had resident.
Writes to benchmarks/results/.
"""

import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 5
TORCH = "import torch, sys; sys.stdout.write('.'); sys.stdout.flush()"
TRANSFORMERS = """import sys, torch
from transformers import GPT2LMHeadModel
model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
idx = torch.ones(1, 1, dtype=torch.long)
print(model.generate(idx, attention_mask=torch.ones_like(idx), do_sample=True, max_new_tokens=1), flush=True)"""


def measure(rounds: int = ROUNDS, size: str = "gpt2", vocab_size: int = 50257) -> dict[str, Any]:
    """Seconds to the first token and bytes of memory of each, and what is left of the seconds beside `import torch`."""
    with tempfile.TemporaryDirectory() as scratch:
        run, theirs = Path(scratch) / "run", Path(scratch) / "transformers"
        subprocess.run([sys.executable, __file__, "write", size, str(vocab_size), run, theirs], check=True)
        sample = ["-m", "microgpt_cli", "sample", f"ckpt={run}", "max_new_tokens=1", "device=cpu"]
        ways = {"torch": ["-c", TORCH], "ours": sample}
        if theirs.exists():
            ways["transformers"] = ["-c", TRANSFORMERS, str(theirs)]
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, words in ways.items():
                took = first_byte([sys.executable, *words])
                if number:  # the first round fills the disk's cache
                    found[name].append(took)
    seconds = {name: statistics.median(took for took, _ in pairs) for name, pairs in found.items()}
    return {
        "model": size,
        "vocab_size": vocab_size,
        "rounds": rounds,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "seconds_min_max": {
            name: [round(pick(took for took, _ in pairs), 3) for pick in (min, max)] for name, pairs in found.items()
        },
        "beside_import_torch": {
            name: round(value - seconds["torch"], 3) for name, value in seconds.items() if name != "torch"
        },
        "memory_bytes": {name: statistics.median(size for _, size in pairs) for name, pairs in found.items()},
    }


def first_byte(command: list[str]) -> tuple[float, int]:
    """Seconds until a process has written something, and the most memory that it had resident, in bytes."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise RuntimeError(f"{' '.join(command[:4])} …: wrote nothing")
        took = time.perf_counter() - began
        process.stdout.read()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    return took, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write(size: str, vocab_size: int, run: Path, theirs: Path) -> None:
    """A run's folder with random weights and AdamW's state, and the same weights as transformers keeps them."""
    import dataclasses

    import torch
    from sample_speed import has_transformers, transformers_gpt2

    from microgpt_cli.checkpoints import checkpoint
    from microgpt_cli.cli import main as cli
    from microgpt_cli.data.tokenizers import CharTokenizer
    from microgpt_cli.model.gpt import GPT
    from microgpt_cli.runs import layout, storage
    from microgpt_cli.training.optimizers import make_optimizer

    config = cli.load_config("train", [f"model={size}", "arch=gpt2", "optim=adamw"])
    torch.manual_seed(0)
    model = GPT(config.model, vocab_size)
    chars = "".join([chr(code) for code in range(vocab_size + 0x800) if not 0xD800 <= code <= 0xDFFF][:vocab_size])
    run.mkdir()
    tokenizer = CharTokenizer(chars).to_json()
    for name, data in ((layout.CONFIG, dataclasses.asdict(config)), (layout.TOKENIZER, tokenizer)):
        storage.write_new(run / name, storage.json_bytes(data))
    state = {
        "step": 0, "tokens": 0, "val_loss": None, "evaluated_step": 0, "best_val_loss": None, "best_step": None,
        "stale_evaluations": 0, "train_seconds": 0.0, "loss_scale": 1.0, "steps_at_scale": 0, "metrics_bytes": 0,
        "timings_bytes": 0, "unlogged": [],
    }  # fmt: skip
    texts = dict.fromkeys(("microgpt", "torch", "python", "device", "dtype"), "none")
    meta = {**texts, "threads": 1, "text_sha256": "0" * 64, "state": state}
    optimizer = make_optimizer(model.named_parameters(), config.optim)
    checkpoint.save(run, 0, checkpoint.weights_of(model), optimizer.state(), meta, None)
    if has_transformers():
        transformers_gpt2(model).save_pretrained(theirs)


def main(words: list[str]) -> None:
    if words[:1] == ["write"]:
        write(words[1], int(words[2]), Path(words[3]), Path(words[4]))
        return
    given = {"model": "gpt2", "vocab_size": "50257", "rounds": str(ROUNDS), "name": "first_token"}
    given |= dict(word.split("=", 1) for word in words)
    found = measure(int(given["rounds"]), given["model"], int(given["vocab_size"]))
    print(json.dumps(found, indent=1))

    import machine  # and with it torch, which is kept away while processes are timed

    has = importlib.util.find_spec("transformers") is not None
    versions = {"transformers": importlib.metadata.version("transformers")} if has else {}
    machine.store(given["name"], "first_token.py", words, {"imported": versions, **found})


if __name__ == "__main__":
    main(sys.argv[1:])
