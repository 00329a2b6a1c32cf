"""How long a command takes to begin, against `import torch` alone: fresh processes in turns, medians.

    python benchmarks/start_up.py rounds=7

`torch` is the time until `import torch` is done, `first_step` until `microgpt train` has logged its first step, and
`params` and `help` until these commands have ended. Bytecode makes a great difference: it is there after `pip install`,
or once a command has run where Python may write it; whether it was is in the result. Writes to benchmarks/results/.
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

ROUNDS, LOOK_SEC, PATIENCE_SEC = 7, 0.002, 120
MICROGPT = [sys.executable, "-m", "microgpt_cli"]
TEXT = "A text that is there at once.\n" * 400


def measure(rounds: int = ROUNDS) -> dict[str, object]:
    """The medians in seconds, and what is left of them beside `import torch`."""
    ways = {"python": _python, "torch": _torch, "help": _help, "params": _params, "first_step": _first_step}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch) / "text.txt"
        text.write_text(TEXT, encoding="utf-8")
        for number in range(rounds + 1):
            for name, way in ways.items():
                took = way(Path(scratch) / f"{number}", text)
                if number:  # the first round fills the disk's cache
                    seconds[name].append(took)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "rounds": rounds,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "seconds_min_max": {name: [round(min(times), 3), round(max(times), 3)] for name, times in seconds.items()},
        "beside_import_torch": {name: round(medians[name] - medians["torch"], 3) for name in ("params", "first_step")},
        "bytecode": {name: _has_bytecode(name) for name in ("torch", "hydra", "microgpt_cli")},
    }


def _ended(command: list[str]) -> float:
    """Without a timeout: to wait with one is to look every 50 ms."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _python(_folder: Path, _text: Path) -> float:
    return _ended([sys.executable, "-c", "pass"])


def _help(_folder: Path, _text: Path) -> float:
    return _ended([*MICROGPT, "--help"])


def _params(_folder: Path, _text: Path) -> float:
    return _ended([*MICROGPT, "params"])


def _torch(_folder: Path, _text: Path) -> float:
    began = time.perf_counter()
    code = "import torch, sys; sys.stdout.write('.'); sys.stdout.flush()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        return time.perf_counter() - began


def _first_step(folder: Path, text: Path) -> float:
    """Seen from outside: the first line of `metrics.jsonl`."""
    words = ["train", "device=cpu", f"data.path={text}", f"out_dir={folder}", "log_interval=1", "max_steps=100000"]
    began = time.perf_counter()
    with subprocess.Popen([*MICROGPT, *words], stdout=subprocess.DEVNULL, cwd=text.parent) as process:
        log = folder / "metrics.jsonl"
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE_SEC:
                process.kill()
                raise RuntimeError(f"microgpt {' '.join(words)}: made no step")
            time.sleep(LOOK_SEC)
        took = time.perf_counter() - began
        process.kill()
    return took


def _has_bytecode(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.cached is not None and os.path.exists(found.cached)


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    found = measure(int(given.get("rounds", ROUNDS)))
    print(json.dumps(found, indent=1))

    import machine  # and with it torch, which is kept away while processes are timed

    versions = {name: importlib.metadata.version(name) for name in ("hydra-core", "matplotlib")}
    machine.store("start_up", "start_up.py", words, {"imported": versions, **found})


if __name__ == "__main__":
    main(sys.argv[1:])
