"""A run's folder: its layout, and how it is created, locked and found.

outputs/latest                       → the newest run
outputs/train/DATE_TIME/
    config.json  tokenizer.json      everything needed to rebuild the model
    about.json                       the text, its baseline losses, the parameters of each module
    metrics.jsonl  timings.jsonl     one line per log step; values that depend on the clock are in timings.jsonl
    samples.txt  loss.png  result.json
    ckpt/step-00003000/              see checkpoints/checkpoint.py
    ckpt/best.json                   the step with the lowest val_loss
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
LOCK_ATTEMPTS, LOCK_RETRY_SEC = 3, 0.05
LINK_BYTES = 4096  # maximum size of outputs/latest where it is a file and not a link
CONFIG, TOKENIZER, RESULT = "config.json", "tokenizer.json", "result.json"
ABOUT = "about.json"
METRICS, TIMINGS, SAMPLES, PLOT = "metrics.jsonl", "timings.jsonl", "samples.txt", "loss.png"
CHECKPOINTS, BEST, MANIFEST = "ckpt", "best.json", "MANIFEST.json"
MODEL, OPTIM, META = "model.safetensors", "optim.safetensors", "meta.json"
STEP_FILES = (MODEL, OPTIM, META, CONFIG, TOKENIZER)  # in the folder of a step; the manifest notes each
STEP_NAME = re.compile(r"step-(\d{8})")
HYDRA, LOCK = ".hydra", ".lock"
SWEEP = "sweep.json"  # in the folder of a sweep, which contains those of its jobs
TRACKER = "tracker.json"  # the run's name and id in experiment trackers
RUN_FILES = {CONFIG, RESULT, METRICS, CHECKPOINTS}  # a folder with any of these is a run's
IGNORED_FILES = {HYDRA, LOCK}  # besides Hydra's log, these may exist in a folder before a run starts there


@contextlib.contextmanager
def new(
    out_dir: str | None, sweep_dir: Path | None, files: Mapping[str, bytes], hydra_files: Mapping[str, str]
) -> Iterator[Path]:
    """Create and lock the folder of a new run and write its first files, or leave nothing behind.

    Args:
        out_dir: the requested folder.
        sweep_dir: the folder of this job in a sweep.
        files: files that the run requires. Their directory entries become durable with the first checkpoint's.
        hydra_files: the config as Hydra composed it, for reference.

    Raises:
        UserError: the folder is not empty, is locked by another process, or can't be created.
    """
    folder = create(out_dir, sweep_dir)
    hydra = folder / HYDRA
    with locked(folder):
        _refuse_unless_empty(folder)  # again: another process may have released the lock only now
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
    """Create the folder of a new run: the requested one, or one named after the current time.

    Raises:
        UserError: it is not empty, or can't be created.
    """
    folder = Path(os.path.expanduser(out_dir)) if out_dir is not None else sweep_dir
    try:
        if folder is None:
            return _create_by_time(outputs / "train")
        storage.make_folders(folder)
        for above in sweep_dir.parents[:4] if sweep_dir else ():
            storage.sync_folder(above)  # Hydra created them without fsync
        _refuse_unless_empty(folder)
    except OSError as error:
        raise UserError(f"{storage.explain(error)}, or choose another folder with out_dir=") from error
    return folder


def refuse_unless_free(name: str) -> None:
    """Raises `UserError` if a new run can't use `out_dir=name`; creates nothing."""
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        _refuse_unless_empty(folder)
    elif os.path.lexists(folder):
        raise UserError(f"out_dir={name}: not a folder; choose another out_dir")


def _refuse_unless_empty(folder: Path) -> None:
    found = sorted(p.name for p in folder.iterdir() if p.name not in IGNORED_FILES and p.suffix != ".log")
    if step_folders(folder):
        raise UserError(
            f"out_dir={folder}: contains a run; continue it with resume={folder}, or choose another out_dir"
        )
    if found:
        raise UserError(f"out_dir={folder}: not empty (contains {found[0]}); choose another out_dir")


def _create_by_time(parent: Path) -> Path:
    storage.make_folders(parent)
    while True:
        folder = parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
        with contextlib.suppress(FileExistsError):
            storage.make_folder(folder)
            return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the exclusive write lock of a run's folder. The system releases it when the process ends, however it ends.

    Raises:
        UserError: another process holds the lock, or the folder is not writable.
    """
    if os.name != "posix":
        yield  # no flock: only the exclusive creation of a new run's folder protects it
        return
    import fcntl

    try:
        descriptor = storage.open_end(folder / LOCK)
    except OSError as error:
        raise UserError(storage.explain(error)) from error
    try:
        try:
            for attempts_left in reversed(range(LOCK_ATTEMPTS)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:  # held by a writer, or for a moment by `is_in_use`
                    if not attempts_left:
                        raise
                    time.sleep(LOCK_RETRY_SEC)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is writing to this run; wait for it or stop it") from error
        except OSError as error:
            raise UserError(
                f"{folder / LOCK}: {error.strerror}: this file system has no locks; choose another out_dir"
            ) from error
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Whether a process holds a run's write lock; writes nothing. A process that starts meanwhile retries its lock."""
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
    """Raises `UserError` if another process writes to the run of `resume=name`, or there is no such run."""
    folder = find_run(name, "resume")
    if (folder / LOCK).exists():
        with locked(folder):
            pass


def point_latest(run: Path, outputs: Path = OUTPUTS) -> None:
    """Point `outputs/latest` to a run: a link, or a file that contains the path where links are not supported."""
    storage.make_folders(outputs)
    link, temporary = outputs / "latest", outputs / f".latest-{os.getpid()}"
    target = os.path.relpath(run.absolute(), outputs.absolute())
    storage.discard(temporary)  # left by a killed process with the same pid
    try:
        storage.symlink(target, temporary)
    except OSError:
        storage.write_new(temporary, target.encode())
    storage.rename(temporary, link)


def find_run(name: str, key: str, outputs: Path = OUTPUTS) -> Path:
    """The folder of a run: a path, or `latest`.

    Args:
        name: the value as typed.
        key: its key, for messages.
    """
    if name == "latest" and not os.path.exists(name):
        link = outputs / "latest"
        if not (link.exists() or link.is_symlink()):
            raise UserError(f"{key}={name}: no run in {outputs}/ yet; start one: microgpt train")
        noted = os.fsdecode(storage.read_bytes(link, LINK_BYTES)) if link.is_file() else os.path.realpath(link)
        folder = outputs / noted
        with contextlib.suppress(ValueError):
            folder = folder.relative_to(Path.cwd())
    else:
        folder = Path(os.path.expanduser(name))
    if os.path.isfile(folder):  # unlike Path.is_file, False for a name that is too long
        kind = "pickle files are not supported" if folder.suffix in (".pt", ".pth", ".bin", ".ckpt") else "not a folder"
        raise UserError(f"{key}={name}: {kind}; give a run's folder, or one of its ckpt/step-… folders")
    if not os.path.isdir(folder):
        raise UserError(f"{key}={name}: no such folder")
    return folder


def find_run_folder(name: str, key: str, outputs: Path = OUTPUTS) -> Path:
    """The folder of a run, given by its own path or by that of one of its checkpoints.

    Raises:
        UserError: the folder contains no run.
    """
    folder = find_run(name, key, outputs)
    if STEP_NAME.fullmatch(folder.name) and (folder / MANIFEST).is_file():
        folder = folder.parent.parent
    if not any((folder / mark).exists() for mark in RUN_FILES):
        raise UserError(f"{key}={name}: no run in this folder; give a run's folder, as in outputs/train/…")
    return folder


def step_folders(run: Path) -> list[Path]:
    """The published checkpoints of a run, newest first, ordered by name because clocks can be wrong."""
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
