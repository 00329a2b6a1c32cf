"""Folders of runs that were never trained."""

import json
from pathlib import Path


def make_run(folder: Path, status: str | None = "finished", loss: float = 2.0, step: int = 20, **settings) -> Path:
    """A run's folder as far as the table looks; `__` in a key stands for the dot."""
    config: dict = {"max_steps": 20, "seed": 1, "model": {"n_layer": 4}, "optim": {"learning_rate": 1e-3}}
    for key, value in settings.items():
        node, _, name = key.rpartition("__")
        (config.setdefault(node, {}) if node else config)[name] = value
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    lines = [{"step": at, "tokens": 32 * at, "loss": 3.0} for at in range(10, step + 1, 10)]
    lines += [{"step": step, "tokens": 32 * step, "val_loss": loss}] if step else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timings = [{"step": line["step"], "seconds": line["step"] / 10, "tokens_per_sec": 1.0} for line in lines[:-1]]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timings))
    (folder / ".lock").touch()
    if status is not None:
        result = {"status": status, "step": step, "val_loss": loss, "best_val_loss": loss, "best_step": step}
        result |= {"seconds": 2.0, "tokens_per_sec": 320.0, "parameters": 100}
        (folder / "result.json").write_text(json.dumps(result))
    return folder
