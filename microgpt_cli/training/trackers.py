"""Trackers of others that a run logs to besides its own `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio.

`logger=tensorboard`, `logger=[wandb,trackio]`. Each is imported only when it is chosen, and none can hurt the run: one
that fails is left out from there on, with a warning. A resumed run goes on in the same run of its trackers, whose name
`tracker.json` in its folder keeps; the job of a sweep belongs to a group with the name of the sweep's folder.
"""

import contextlib
import html
import io
import math
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from microgpt_cli.config.schema import flatten
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, storage

PROJECT = "microgpt"
METRICS = ("loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_sec")  # what is logged of an event
FLUSH_SEC = 30
LONGEST_ERROR = 200  # characters of it that are shown


@dataclass(frozen=True)
class Identity:
    """Which run it is, for all its trackers."""

    folder: Path
    id: str  # eight hexadecimal digits, no other run's
    name: str
    group: str | None  # the sweep
    step: int  # from which it goes on; 0 for a new one
    settings: Mapping[str, Any]  # dotted key → value


class Tracker(Protocol):
    """What is asked of a tracker. Any of it may raise anything."""

    where: str  # what to type to see the run

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, text: str) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files under `tensorboard/` in the run's folder."""

    def __init__(self, run: Identity, environ: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / "tensorboard"
        # What a run that died had logged after the checkpoint that it goes on from is taken back.
        purge = run.step + 1 if run.step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=FLUSH_SEC)
        if not run.step:
            plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in run.settings.items()}
            for summary in hparams(plain, {"val_loss": 0.0}):
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        self.where = f"tensorboard --logdir {run.folder.parent if run.group else folder}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, text: str) -> None:
        indented = "\n".join(f"    {line}" for line in text.split("\n"))  # Markdown, as it stands
        self._writer.add_text("sample", indented, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases under `wandb/` in the run's folder, offline unless WANDB_MODE says otherwise."""

    def __init__(self, run: Identity, environ: Mapping[str, str]) -> None:
        import wandb

        mode = environ.get("WANDB_MODE", "offline")
        self._html = wandb.Html
        self._run = wandb.init(
            project=environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=run.name,
            group=run.group,
            dir=str(run.folder),
            config=dict(run.settings),
            resume="allow",
            mode=mode,
            save_code=False,
            settings=wandb.Settings(silent=True, console="off", disable_git=True),  # the terminal is ours
        )
        offline = f"wandb sync {Path(self._run.dir).parent}"
        self.where = offline if mode == "offline" else self._run.url or offline

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, text: str) -> None:
        self._run.log({"sample": self._html(f"<pre>{html.escape(text)}</pre>", inject=False)}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Trackio:
    """A run of Trackio, in the place that TRACKIO_DIR names or its own by default."""

    def __init__(self, run: Identity, environ: Mapping[str, str]) -> None:
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):  # it prints half a page
            self._run = trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id[:4]}",  # it finds a run by its name alone
                group=run.group,
                config=dict(run.settings),
                resume="allow",
                embed=False,
            )
        self.where = f"trackio show --project {PROJECT}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, text: str) -> None:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
        self._run.log({"sample": self._trackio.Markdown(f"{fence}\n{text}\n{fence}")}, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()  # of itself, and not of the run, or it ends it once more when Python ends


KINDS: dict[str, Callable[[Identity, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def require(names: Iterable[str]) -> None:
    """Import the trackers that were chosen. Raises `UserError` with what to type for one that can't be."""
    for name in names:
        try:
            match name:
                case "tensorboard":
                    import torch.utils.tensorboard  # noqa: F401
                case "wandb":
                    import wandb  # noqa: F401
                case "trackio":
                    import trackio  # noqa: F401
        except ImportError as error:
            raise UserError(f"logger={name}: {error}; install it: pip install 'microgpt-cli[{name}]'") from error


class Trackers:
    """The trackers of a run, of which any may fail without the others and the run taking notice.

    Args:
        names: which of KINDS.
        warn: told once of each that fails.
    """

    def __init__(self, names: Iterable[str], warn: Callable[[str], None]) -> None:
        self._names, self._warn = list(dict.fromkeys(names)), warn
        self._open: dict[str, Tracker] = {}

    def start(self, folder: Path, config: Mapping[str, Any], step: int, environ: Mapping[str, str]) -> dict[str, str]:
        """Begin, or go on at a step. Returns what to type to see each."""
        for name in self._names:
            with self._guarded(name):
                run = _identity(folder, flatten(config), step)
                self._open[name] = KINDS[name](run, environ)
        return {name: tracker.where for name, tracker in self._open.items()}

    def log(self, event: object) -> None:
        """Log the numbers of what the trainer says has happened, if it is of those in METRICS."""
        values = {name: float(getattr(event, name)) for name in METRICS if hasattr(event, name)}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, tracker in list(self._open.items()) if values else ():
            with self._guarded(name):
                tracker.log(event.step, values)  # type: ignore[attr-defined]

    def text(self, step: int, text: str) -> None:
        """Log a sample."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.text(step, text)

    def close(self, failed: bool = False) -> None:
        """End all of them; nothing is logged any more."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close(failed)
        self._open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of another's code, which may raise anything
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR]
            self._warn(f"logger={name} failed and is left out from here on; metrics.jsonl goes on: {reason}")


def _identity(folder: Path, settings: Mapping[str, Any], step: int) -> Identity:
    """The identity that the run has had since its trackers first heard of it."""
    whole = folder.absolute()
    group = whole.parent.name if whole.name.isdecimal() else None  # the job of a sweep is a number
    path = folder / layout.TRACKER
    if path.exists():
        noted = storage.parse_json(storage.read_bytes(path), str(path))
        texts = [noted.get(key) for key in ("id", "name", "group")] if isinstance(noted, dict) else []
        if len(texts) == 3 and re.fullmatch("[0-9a-f]{8}", str(texts[0])) and isinstance(texts[1], str):
            return Identity(
                folder, str(texts[0]), texts[1], None if texts[2] is None else str(texts[2]), step, settings
            )
        raise UserError(f"{path}: must have id, name and group")
    name = f"{group}/{whole.name}" if group else whole.name
    made = Identity(folder, secrets.token_hex(4), name, group, step, settings)
    storage.replace(path, storage.json_bytes({"id": made.id, "name": made.name, "group": made.group}))
    return made
