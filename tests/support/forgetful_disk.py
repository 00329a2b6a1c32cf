"""A disk that promises little: what was done to it, recorded, and everything that a crash may leave of that.

Bytes of a file that were not fsynced may be missing, cut or zeros, and each change of a folder's names (made, renamed,
removed) that no fsync of that folder followed may be there or not, in any combination; a rename is atomic. That is the
weak model of Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

import contextlib
import copy
import functools
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.runs import layout, storage

CALLS = ("create", "open_end", "write", "truncate", "fsync", "rename", "mkdir", "symlink", "unlink", "rmdir")
MOST = 2000  # combinations of what is in a folder; only code that forgets to fsync has more, and fails with these
# Lost without harm: what people read, what is made again, and the lock, which no crash outlives.
FOR_PEOPLE = re.compile(r"\.hydra|\.lock|\.?samples\.txt(\.tmp)?|latest|\.latest-\d+|\.cache|my\.txt")
LOGS = (layout.METRICS, layout.TIMINGS)


class Killed(BaseException):
    """The process is gone; nothing that stands in an `except` or a `finally` reaches the disk any more."""


@dataclass(eq=False)
class File:
    durable: bytes = b""
    now: bytes = b""


@dataclass(eq=False)
class Folder:
    durable: dict[str, "Node"] = field(default_factory=dict)
    now: dict[str, "Node"] = field(default_factory=dict)
    pending: list[dict[str, "Node | None"]] = field(default_factory=list)  # changes since the last fsync

    def change(self, names: dict[str, "Node | None"]) -> None:
        self.pending.append(names)
        apply(self.now, names)


@dataclass
class Promise:
    """What must be found when power fails after so many operations."""

    step: int | None = None  # the newest save that returned
    best: str | None = None
    replaced: dict[str, bytes] = field(default_factory=dict)  # path → what it holds, or something newer


@dataclass
class Recording:
    """The operations on a folder: each with its place in the code, and the promises made between them."""

    root: Path
    start: Folder = field(default_factory=Folder)  # what was there before, and durable
    run: str = "run"  # where the checkpoints are
    operations: list[tuple[str, str, Any, str]] = field(default_factory=list)  # call, path, argument, place
    promises: list[tuple[int, Promise]] = field(default_factory=list)
    saved: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name of a checkpoint → its files
    logs: dict[str, dict[str, bytes]] = field(default_factory=dict)  # name of a checkpoint → the logs up to it
    versions: dict[str, list[bytes]] = field(default_factory=dict)  # path → what was put there whole, in order
    kill_at: int | None = None

    def promise(self, **changes: Any) -> None:
        self.promises.append((len(self.operations), replace(self.promised(), **changes)))

    def promised(self, prefix: int | None = None) -> Promise:
        """What had been promised after so many operations, or after all of them."""
        made = [p for at, p in self.promises if prefix is None or at <= prefix]
        return made[-1] if made else Promise()

    def name(self, path: Path) -> str:
        return os.path.relpath(Path(path).absolute(), self.root)


def place(path: str) -> str:
    """Which fsync of the code this is: the functions that it was called through, and what it is for."""
    names, frame = [], sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == storage.__file__ or names == ["sync_folder"]:
            names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    what = "" if "replace" in names else re.sub(r"\d[-\d_]*", "N", Path(path).name) or "home"
    return f"{' < '.join(names)} {what}".strip()


@contextlib.contextmanager
def recording(into: Recording) -> Iterator[None]:
    """Record what goes through `storage`, and what `replace` and `save` promise when they return."""

    def wrapped(call: str) -> Callable[..., Any]:
        original = getattr(storage, call)

        def recorded(path: Path | str, *arguments: Any) -> Any:
            if into.kill_at is not None and len(into.operations) >= into.kill_at:
                raise Killed
            name, argument, kind = into.name(Path(path)), arguments[-1] if arguments else None, call
            where = place(name) if call == "fsync" else ""
            if call == "open_end":
                kind = "none" if Path(path).exists() else "create"
            elif call == "rename":
                argument = into.name(argument)
            elif call == "symlink":
                kind = "none"
            elif call == "write":
                argument = bytes(argument)
            result = original(path, *arguments)
            if kind != "none":
                into.operations.append((kind, name, argument, where))
            return result

        return recorded

    def replacing(path: Path, data: bytes) -> None:
        name = into.name(path)
        if FOR_PEOPLE.fullmatch(path.name):
            return original_replace(path, data)
        into.versions.setdefault(name, [path.read_bytes()] if path.exists() else []).append(data)
        original_replace(path, data)
        into.promise(replaced=into.promised().replaced | {name: data})

    def saving(run: Path, step: int, *rest: Any, **named: Any) -> Path:
        name = layout.step_name(step)
        into.run = into.name(run)
        into.logs[name] = {log: (run / log).read_bytes() for log in LOGS if (run / log).exists()}
        try:
            path = original_save(run, step, *rest, **named)
        finally:  # one that was killed may have got far enough to be found
            for folder in (run / layout.CHECKPOINTS).iterdir() if (run / layout.CHECKPOINTS).is_dir() else ():
                if folder.name == name:
                    into.saved[name] = contents(folder)
        best = run / layout.CHECKPOINTS / layout.BEST
        needed = {into.name(run / name): (run / name).read_bytes() for name in (layout.CONFIG, layout.TOKENIZER)}
        for file, data in needed.items():
            into.versions.setdefault(file, [data])
        into.promise(
            step=step,
            best=json.loads(best.read_bytes())["checkpoint"] if best.exists() else None,
            replaced=into.promised().replaced | needed,
        )
        return path

    if not into.operations:
        into.start = read(into.root)
    original_replace, original_save = storage.replace, checkpoint.save
    with pytest.MonkeyPatch.context() as patch:
        for call in CALLS:
            patch.setattr(storage, call, wrapped(call))
        patch.setattr(storage, "replace", replacing)
        patch.setattr(checkpoint, "save", saving)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Node = File | Folder
Tree = bytes | frozenset  # of a file, of a folder: (name, tree) pairs


def apply(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def read(path: Path) -> Any:
    """What is on the disk for good."""
    if path.is_file():
        data = path.read_bytes()
        return File(data, data)
    names = {child.name: read(child) for child in path.iterdir() if not FOR_PEOPLE.fullmatch(child.name)}
    return Folder(dict(names), dict(names))


def perform(root: Folder, operation: tuple[str, str, Any, str]) -> None:
    """Let the disk do what an operation asks, durably only where it is an fsync."""
    call, path, argument, _ = operation
    if any(FOR_PEOPLE.fullmatch(part) for part in Path(path).parts):
        return
    *above, name = Path(path).parts or (".",)
    parent: Any = root
    for part in above:
        parent = parent.now[part]
    node = parent.now.get(name) if name != "." else root
    match call:
        case "create":
            parent.change({name: File()})
        case "mkdir":
            parent.change({name: Folder()})
        case "write":
            node.now += argument
        case "truncate":
            node.now = node.now[:argument]
        case "fsync" if isinstance(node, File):
            node.durable = node.now
        case "fsync":
            node.durable, node.pending = dict(node.now), []
        case "rename":
            assert Path(argument).parent == Path(path).parent  # so that one fsync makes it durable
            parent.change({name: None, Path(argument).name: node})
        case "unlink" | "rmdir":
            parent.change({name: None})


def now(node: Node) -> Tree:
    """What a process sees while the power is on."""
    if isinstance(node, File):
        return node.now
    return frozenset((name, now(child)) for name, child in node.now.items())


def outcomes(node: Node) -> set[Tree]:
    """All that a crash can leave of a file or of a folder and what is in it; trash is trash, whatever is left of it."""
    if isinstance(node, File):
        kept = node.durable if node.now.startswith(node.durable) else node.now  # it grew, or it was cut
        lost = node.now[len(kept) :]
        half = lost[: len(lost) // 2]
        return {
            node.durable,
            node.now,
            kept + half,
            kept + bytes(len(lost)),
            kept + half + bytes(len(lost) - len(half)),
        }
    found: set[Tree] = set()
    of_child = functools.cache(lambda name, child: [now(child)] if name.startswith(storage.TRASH) else outcomes(child))
    for kept_changes in itertools.product((False, True), repeat=len(node.pending)):
        names = dict(node.durable)
        for change in itertools.compress(node.pending, kept_changes):
            apply(names, change)
        each = itertools.product(*itertools.starmap(of_child, names.items()))
        found |= {frozenset(zip(names, combination, strict=True)) for combination in itertools.islice(each, MOST)}
    return found


# Crashes, and what is found after them


def crash_states(recorded: Recording, without: str | None = None) -> Iterator[tuple[Tree, Promise]]:
    """Each distinct (state, promise) of a crash after any number of the operations, in their order.

    Args:
        recorded: what the operations were, and what was there before.
        without: a place in the code whose fsync is left out.
    """
    root, seen = copy.deepcopy(recorded.start), set()
    for prefix in range(len(recorded.operations) + 1):
        if prefix:
            operation = recorded.operations[prefix - 1]
            if without is None or operation[3] != without:
                perform(root, operation)
        promise = recorded.promised(prefix)
        for state in outcomes(root):
            if (state, id(promise)) not in seen:
                seen.add((state, id(promise)))
                yield state, promise


def build(tree: Tree, path: Path, store: Path) -> None:
    """Make a state real; equal files are one file with many names, which costs less than writing them."""
    if isinstance(tree, bytes):
        data = store / storage.sha256(tree)
        if not data.exists():
            data.write_bytes(tree)
        os.link(data, path)
        return
    path.mkdir()
    for name, child in tree:
        build(child, path / name, store)


def visible(tree: Tree) -> Tree:
    """A state without what lies in hidden folders: it is swept away, and nothing ever reads it."""
    if isinstance(tree, bytes):
        return tree
    return frozenset((name, frozenset() if hidden(name, child) else visible(child)) for name, child in tree)


def hidden(name: str, tree: Tree) -> bool:
    return name.startswith((storage.TEMPORARY, storage.TRASH)) and not isinstance(tree, bytes)
