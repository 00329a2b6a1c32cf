"""What a result was measured on, and where it is kept."""

import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from timing import in_turns

from microgpt_cli import __version__

RESULTS = Path(__file__).resolve().parent / "results"
MATRIX = 2048  # rows and columns of the products that a machine's rate is measured by
# Dense bfloat16 FLOP/s, from the data sheets.
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12}


def describe() -> dict[str, Any]:
    """The machine and the versions, as they stand in every result."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"microgpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def processor() -> str:
    """The name of the CPU, as far as the system tells it."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return (found[1].strip() if found else platform.processor()) or platform.machine()


def name_of_machine() -> str:
    """A name for a file: `h100_80gb_hbm3`, `amd_epyc_2_cores`."""
    about = describe()
    words = about["device"] if torch.cuda.is_available() else f"{about['device']} {about['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "_", words.lower().replace("nvidia", "").replace("(r)", "")).strip("_")


def matrix_rates(rounds: int = 5, round_seconds: float = 0.5) -> dict[str, float]:
    """FLOP/s of a large matrix product in each precision: what this machine can do at most."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = 4 * MATRIX if device.type == "cuda" else MATRIX
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    pairs = {name: torch.randn(2, size, size, device=device).to(kind) for name, kind in kinds.items()}

    def product(pair: torch.Tensor, count: int) -> None:
        for _ in range(count):
            torch.mm(pair[0], pair[1])
        if device.type == "cuda":
            torch.cuda.synchronize()

    ways = {name: (lambda count, pair=pair: product(pair, count)) for name, pair in pairs.items()}
    found = in_turns(ways, rounds, round_seconds)
    return {name: 2 * size**3 / timed.seconds for name, timed in found.items()}


def store(name: str, script: str, words: Sequence[str], content: dict[str, Any]) -> Path:
    """Write a result with its command, machine and versions to `benchmarks/results/NAME.json`.

    Of a path in the command its last part alone: where it lies is nobody's business.
    """
    told = [
        f"{key}={Path(value).name}" if os.sep in value else word
        for word in words
        for key, _, value in [word.partition("=")]
    ]
    page = {
        "command": " ".join([f"python benchmarks/{script}", *told]),
        "measured": date.today().isoformat(),
        **describe(),
        **content,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def settings(words: Sequence[str], known: dict[str, str], more: bool = False) -> tuple[dict[str, str], list[str]]:
    """`key=value` words over the known keys, and the words left over for the configuration of a run.

    Args:
        known: key → value where none is given.
        more: whether there may be words left over.
    """
    given, rest = dict(known), []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in known:
            given[key] = value
        elif equals and more:
            rest.append(word)
        else:
            sys.exit(f"{word}: give key=value, with a key of {', '.join(known)}")
    return given, rest
