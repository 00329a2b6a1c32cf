"""Log to experiment trackers besides `metrics.jsonl`: TensorBoard, Weights & Biases, Trackio.

`logger=tensorboard`, `logger=[wandb,trackio]`. A tracker is imported only if chosen; one that fails is disabled with a
warning and does not affect the run. A resumed run continues the same run in its trackers, whose name and id are in
`tracker.json`; the jobs of a sweep belong to a group named after its folder.
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
METRICS = ("loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_sec")  # attributes of events that are logged
FLUSH_SEC = 30
MAX_ERROR = 200  # characters of a message


@dataclass(frozen=True)
class Identity:
    """The identity of a run in its trackers."""

    folder: Path
    id: str  # eight random hexadecimal digits
    name: str
    group: str | None  # name of the sweep
    step: int  # from which it resumes; 0 for a new run
    settings: Mapping[str, Any]  # dotted key → value


class Tracker(Protocol):
    """The interface of a tracker. Its methods may raise any exception."""

    where: str  # command or URL to view the run

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, text: str) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files under `tensorboard/` in the run's folder."""

    def __init__(self, run: Identity, environ: Mapping[str, str]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = run.folder / "tensorboard"
        # hides what a killed run logged after the checkpoint that is resumed
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
        indented = "\n".join(f"    {line}" for line in text.split("\n"))  # a Markdown code block
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
            settings=wandb.Settings(silent=True, console="off", disable_git=True),  # no output to the terminal
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
    """A run of Trackio, stored in TRACKIO_DIR or its default folder."""

    def __init__(self, run: Identity, environ: Mapping[str, str]) -> None:
        import trackio

        self._trackio = trackio
        with contextlib.redirect_stdout(io.StringIO()):  # it prints half a page
            self._run = trackio.init(
                project=PROJECT,
                name=f"{run.name}-{run.id[:4]}",  # it identifies runs by name
                group=run.group,
                config=dict(run.settings),
                resume="allow",
                embed=False,
            )
        self.where = f"trackio show --project {PROJECT}"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, text: str) -> None:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any fence in the text
        self._run.log({"sample": self._trackio.Markdown(f"{fence}\n{text}\n{fence}")}, step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._trackio.finish()  # not `self._run.finish()`, after which it would finish again at exit


KINDS: dict[str, Callable[[Identity, Mapping[str, str]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def require(names: Iterable[str]) -> None:
    """Import the chosen trackers. Raises `UserError` with the install command for a missing one."""
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
    """The trackers of a run; a failure of one affects neither the others nor the run.

    Args:
        names: keys of KINDS.
        warn: called once for each tracker that fails.
    """

    def __init__(self, names: Iterable[str], warn: Callable[[str], None]) -> None:
        self._names, self._warn = list(dict.fromkeys(names)), warn
        self._open: dict[str, Tracker] = {}

    def start(self, folder: Path, config: Mapping[str, Any], step: int, environ: Mapping[str, str]) -> dict[str, str]:
        """Start the trackers, at a step if resumed. Returns how to view each."""
        for name in self._names:
            with self._guarded(name):
                run = _identity(folder, flatten(config), step)
                self._open[name] = KINDS[name](run, environ)
        return {name: tracker.where for name, tracker in self._open.items()}

    def log(self, event: object) -> None:
        """Log the attributes of an event of the trainer that are in METRICS."""
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
        """Close all trackers."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close(failed)
        self._open.clear()

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # third-party code may raise anything
            self._open.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_ERROR]
            self._warn(f"logger={name} failed and is disabled; metrics.jsonl continues: {reason}")


def _identity(folder: Path, settings: Mapping[str, Any], step: int) -> Identity:
    """Read the identity from `tracker.json`, or create it."""
    path_of_run = folder.absolute()
    group = path_of_run.parent.name if path_of_run.name.isdecimal() else None  # jobs of a sweep are numbered
    path = folder / layout.TRACKER
    if path.exists():
        stored = storage.parse_json(storage.read_bytes(path), str(path))
        texts = [stored.get(key) for key in ("id", "name", "group")] if isinstance(stored, dict) else []
        if len(texts) == 3 and re.fullmatch("[0-9a-f]{8}", str(texts[0])) and isinstance(texts[1], str):
            return Identity(
                folder, str(texts[0]), texts[1], None if texts[2] is None else str(texts[2]), step, settings
            )
        raise UserError(f"{path}: must have id, name and group")
    name = f"{group}/{path_of_run.name}" if group else path_of_run.name
    made = Identity(folder, secrets.token_hex(4), name, group, step, settings)
    storage.replace(path, storage.json_bytes({"id": made.id, "name": made.name, "group": made.group}))
    return made
