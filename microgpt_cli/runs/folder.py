"""A run's folder: how it is laid out, made, locked and found again.

outputs/latest                       → the newest run
outputs/train/DATE_TIME/
    config.json  tokenizer.json      all that is needed to rebuild the model
    metrics.jsonl  timings.jsonl     a line a log step; what depends on the clock stands apart
    samples.txt  loss.png  result.json
    ckpt/step-00003000/              see training/checkpoint.py
    ckpt/best.json                   which step had the lowest val_loss
    .hydra/  .lock
"""

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage

OUTPUTS = Path("outputs")
LINK_BYTES = 4096  # of outputs/latest where it is no link
CONFIG, TOKENIZER, RESULT = "config.json", "tokenizer.json", "result.json"
METRICS, TIMINGS, SAMPLES, PLOT = "metrics.jsonl", "timings.jsonl", "samples.txt", "loss.png"
CHECKPOINTS, BEST, MANIFEST = "ckpt", "best.json", "MANIFEST.json"
STEP_NAME = re.compile(r"step-(\d{8})")
NOT_A_RUN = {".hydra", ".lock"}  # what may lie in a folder before a run begins there, besides Hydra's log


def create(out_dir: str | None, sweep_dir: Path | None, outputs: Path = OUTPUTS) -> Path:
    """Make the folder of a new run: the one asked for, or one of its own named after the time.

    Raises:
        UserError: it holds something already, or can't be made.
    """
    if out_dir is None and sweep_dir is None:
        return _create_by_time(outputs / "train")
    folder = Path(os.path.expanduser(out_dir)) if out_dir is not None else sweep_dir
    assert folder is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(p.name for p in folder.iterdir() if p.name not in NOT_A_RUN and p.suffix != ".log")
    except OSError as error:
        raise UserError(f"out_dir={folder}: {error.strerror or error}") from error
    if CONFIG in found or CHECKPOINTS in found:
        raise UserError(f"out_dir={folder}: holds a run; go on with it: resume={folder}, or choose another out_dir")
    if found:
        raise UserError(f"out_dir={folder}: not empty (it holds {found[0]}); choose another out_dir")
    return folder


def _create_by_time(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise UserError(f"{parent}: {error.strerror or error}; choose another folder with out_dir=") from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes to a run's folder. The lock ends with its holder, however that ends.

    Raises:
        UserError: another process holds it.
    """
    if os.name != "posix":
        yield  # no flock: the exclusive folder of a new run is all the protection there is
        return
    import fcntl

    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{folder}: another process is writing to this run; wait for it or stop it") from error
        yield


def point_latest(run: Path, outputs: Path = OUTPUTS) -> None:
    """Let `outputs/latest` name a run: a link, or a file with the path where links can't be made."""
    outputs.mkdir(parents=True, exist_ok=True)
    link, temporary = outputs / "latest", outputs / f".latest-{os.getpid()}"
    target = os.path.relpath(run.absolute(), outputs.absolute())
    try:
        temporary.symlink_to(target, target_is_directory=True)
    except OSError:
        temporary.write_text(target, encoding="utf-8")
    os.replace(temporary, link)


def find_run(name: str, key: str, outputs: Path = OUTPUTS) -> Path:
    """The folder of a run: a path, or `latest`.

    Args:
        name: what was typed.
        key: the key it was typed for, for messages.
    """
    if name == "latest" and not os.path.exists(name):
        link = outputs / "latest"
        if not (link.exists() or link.is_symlink()):
            raise UserError(f"{key}={name}: no run under {outputs}/ yet; make one: microgpt train")
        noted = os.fsdecode(storage.read_bytes(link, LINK_BYTES)) if link.is_file() else os.path.realpath(link)
        folder = outputs / noted
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
    else:
        folder = Path(os.path.expanduser(name))
    if os.path.isfile(folder):  # where Path.is_file fails on a name too long, this says no
        kind = "microgpt reads no pickle" if folder.suffix in (".pt", ".pth", ".bin", ".ckpt") else "that is a file"
        raise UserError(f"{key}={name}: {kind}; give a run's folder, or one of its ckpt/step-… folders")
    if not os.path.isdir(folder):
        raise UserError(f"{key}={name}: no such folder")
    return folder


def step_folders(run: Path) -> list[Path]:
    """The published checkpoints of a run, newest first; by their names, for clocks can be wrong."""
    parent = run / CHECKPOINTS
    if not parent.is_dir():
        return []
    return sorted((p for p in parent.iterdir() if STEP_NAME.fullmatch(p.name) and p.is_dir()), reverse=True)


def step_name(step: int) -> str:
    return f"step-{step:08d}"


def find_checkpoint(name: str, outputs: Path = OUTPUTS) -> Path:
    """The checkpoint to use for a `ckpt` key: a step's own folder, or a run's best step, else its newest.

    Raises:
        UserError: there is none.
    """
    folder = find_run(name, "ckpt", outputs)
    if (folder / MANIFEST).is_file():
        return folder
    steps = step_folders(folder)
    if not steps:
        raise UserError(f"ckpt={name}: no checkpoint in this folder; give a run's folder, as in outputs/train/…")
    best = folder / CHECKPOINTS / BEST
    if best.is_file():
        noted = storage.parse_json(storage.read_bytes(best), str(best))
        chosen = folder / CHECKPOINTS / str(noted.get("checkpoint") if isinstance(noted, dict) else None)
        if chosen in steps:
            return chosen
    return steps[0]
