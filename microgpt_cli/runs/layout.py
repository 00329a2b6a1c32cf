"""A run's folder: how it is laid out, made, locked and found again.

outputs/latest                       → the newest run
outputs/train/DATE_TIME/
    config.json  tokenizer.json      all that is needed to rebuild the model
    about.json                       the text, what counting reaches on it, the model's parts
    metrics.jsonl  timings.jsonl     a line a log step; what depends on the clock stands apart
    samples.txt  loss.png  result.json
    ckpt/step-00003000/              see checkpoints/checkpoint.py
    ckpt/best.json                   which step had the lowest val_loss
    .hydra/  .lock
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage

OUTPUTS = Path("outputs")
LOOKS, LOOK_SEC = 3, 0.05  # how often a lock is tried, and how long after each other
LINK_BYTES = 4096  # of outputs/latest where it is no link
CONFIG, TOKENIZER, RESULT = "config.json", "tokenizer.json", "result.json"
ABOUT = "about.json"
METRICS, TIMINGS, SAMPLES, PLOT = "metrics.jsonl", "timings.jsonl", "samples.txt", "loss.png"
CHECKPOINTS, BEST, MANIFEST = "ckpt", "best.json", "MANIFEST.json"
MODEL, OPTIM, META = "model.safetensors", "optim.safetensors", "meta.json"
STEP_FILES = (MODEL, OPTIM, META, CONFIG, TOKENIZER)  # in the folder of a step; the manifest notes each
STEP_NAME = re.compile(r"step-(\d{8})")
HYDRA, LOCK = ".hydra", ".lock"
TRACKER = "tracker.json"  # under which name the trackers of others know the run
MARKS = {CONFIG, RESULT, METRICS, CHECKPOINTS}  # any of them makes a folder a run's
NOT_A_RUN = {HYDRA, LOCK}  # what may lie in a folder before a run begins there, besides Hydra's log


@contextlib.contextmanager
def new(
    out_dir: str | None, sweep_dir: Path | None, files: Mapping[str, bytes], hydra_files: Mapping[str, str]
) -> Iterator[Path]:
    """Make and lock the folder of a new run and put files into it, or leave nothing behind.

    Args:
        out_dir: the folder that was asked for.
        sweep_dir: the folder of this job in a sweep.
        files: what the run can't do without. Their names are made durable with that of the first checkpoint's folder.
        hydra_files: what Hydra composed, for people to read.

    Raises:
        UserError: it holds something already, another process has it, or it can't be made.
    """
    folder = create(out_dir, sweep_dir)
    hydra = folder / HYDRA
    with locked(folder):
        _refuse_unless_empty(folder)  # again, for another process may have had it until now
        try:
            if hydra_files and not hydra.exists():
                storage.mkdir(hydra)
            for name, text in hydra_files.items():
                storage.discard(hydra / name)
                storage.append(hydra / name, text.encode())
            for name, data in files.items():
                storage.write_new(folder / name, data)
        except OSError as error:
            ours = [*files, HYDRA] if hydra_files else files
            for path in [folder / name for name in ours] if out_dir or sweep_dir else [folder]:
                storage.discard(path)
            raise UserError(f"{storage.explain(error)}, or choose another folder with out_dir=") from error
        yield folder


def create(out_dir: str | None, sweep_dir: Path | None, outputs: Path = OUTPUTS) -> Path:
    """Make the folder of a new run: the one asked for, or one of its own named after the time.

    Raises:
        UserError: it holds something already, or can't be made.
    """
    folder = Path(os.path.expanduser(out_dir)) if out_dir is not None else sweep_dir
    try:
        if folder is None:
            return _create_by_time(outputs / "train")
        storage.make_folders(folder)
        for above in sweep_dir.parents[:4] if sweep_dir else ():
            storage.sync_folder(above)  # Hydra made them, and left that to us
        _refuse_unless_empty(folder)
    except OSError as error:
        raise UserError(f"{storage.explain(error)}, or choose another folder with out_dir=") from error
    return folder


def refuse_unless_free(name: str) -> None:
    """Raises `UserError` if a new run could not have `out_dir=name`; makes nothing."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        _refuse_unless_empty(folder)
    elif os.path.lexists(folder):
        raise UserError(f"out_dir={name}: that is a file; choose another out_dir")


def _refuse_unless_empty(folder: Path) -> None:
    found = sorted(p.name for p in folder.iterdir() if p.name not in NOT_A_RUN and p.suffix != ".log")
    if step_folders(folder):
        raise UserError(f"out_dir={folder}: holds a run; go on with it: resume={folder}, or choose another out_dir")
    if found:
        raise UserError(f"out_dir={folder}: not empty (it holds {found[0]}); choose another out_dir")


def _create_by_time(parent: Path) -> Path:
    storage.make_folders(parent)
    while True:
        folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        with contextlib.suppress(FileExistsError):
            storage.make_folder(folder)
            return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only one who writes to a run's folder. The lock ends with its holder, however that ends.

    Raises:
        UserError: another process holds it, or the folder can't be written.
    """
    if os.name != "posix":
        yield  # no flock: the exclusive folder of a new run is all the protection there is
        return
    import fcntl

    try:
        descriptor = storage.open_end(folder / LOCK)
    except OSError as error:
        raise UserError(storage.explain(error)) from error
    try:
        try:
            for looks in reversed(range(LOOKS)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # of a writer, or of `is_in_use` for a moment
                    if not looks:
                        raise
                    time.sleep(LOOK_SEC)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing to this run; wait for it or stop it") from error
        except OSError as error:
            raise UserError(
                f"{folder / LOCK}: {error.strerror}: no locks on this disk; choose another out_dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Whether a process writes to a run, found without writing: whoever begins to in this very moment waits for us."""
    if os.name != "posix":
        return False
    import fcntl

    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def refuse_if_in_use(name: str) -> None:
    """Raises `UserError` if another process writes to the run that `resume=name` means, or there is no such run."""
    folder = find_run(name, "resume")
    if (folder / LOCK).exists():
        with locked(folder):
            pass


def point_latest(run: Path, outputs: Path = OUTPUTS) -> None:
    """Let `outputs/latest` name a run: a link, or a file with the path where links can't be made."""
    storage.make_folders(outputs)
    link, temporary = outputs / "latest", outputs / f".latest-{os.getpid()}"
    target = os.path.relpath(run.absolute(), outputs.absolute())
    storage.discard(temporary)  # of a process that died, and had our number
    try:
        storage.symlink(target, temporary)
    except OSError:
        storage.write_new(temporary, target.encode())
    storage.rename(temporary, link)


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


def find_run_folder(name: str, key: str, outputs: Path = OUTPUTS) -> Path:
    """The run's folder that is meant, where one of its checkpoints may have been named.

    Raises:
        UserError: there is none.
    """
    folder = find_run(name, key, outputs)
    if STEP_NAME.fullmatch(folder.name) and (folder / MANIFEST).is_file():
        folder = folder.parent.parent
    if not any((folder / mark).exists() for mark in MARKS):
        raise UserError(f"{key}={name}: no run in this folder; give a run's folder, as in outputs/train/…")
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
    """The checkpoint to use for a `ckpt` key: a folder with a model, or a run's best step, else its newest.

    Raises:
        UserError: there is none.
    """
    folder = find_run(name, "ckpt", outputs)
    if (folder / MANIFEST).is_file() or (folder / MODEL).is_file():
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
