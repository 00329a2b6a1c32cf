"""Kill training runs without mercy, resume them, and compare the bits.

`python killing.py random TRIES KILLS_A_RUN SEED` kills at random instants after the first step began;
`python killing.py calls FIRST EVERY` kills at the I/O calls FIRST, FIRST + EVERY, … of a save, each of another run.
A program of its own: it imports torch once and forks a child for each try, so that a try costs a fraction of a second.
Prints JSON.
"""

import functools
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import microgpt_cli.commands.train as command  # before the fork, so that no child spends its time on it
from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.cli import composing
from microgpt_cli.cli import main as cli
from microgpt_cli.runs import layout, plots, storage
from microgpt_cli.training.trainer import Trainer

TEXT = "The quick brown fox jumps over the lazy dog.\nPack my box with five dozen liquor jugs!\n" * 60
STEPS = 24
WORDS = [
    *(
        "model.n_layer=1",
        "model.n_head=2",
        "model.n_embd=16",
        "model.block_size=8",
        "model.dropout=0.1",
        "batch_size=4",
    ),
    *("device=cpu", "threads=1", "data.path=my.txt", "out_dir=run", f"max_steps={STEPS}", "log_interval=3"),
    *("eval_interval=3", "checkpoint_interval=2", "sample_interval=11"),
]
SAVED_BEFORE_CALLS = 3  # saves before the one that is killed at a call: it has something to remove
LONGEST_DELAY_SEC = 0.001  # between the kill and the moment that it waited for
IO_CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir")
# What is going on when a kill comes, innermost last.
PHASES = {
    "starting, stepping or ending": (),
    "evaluating": (Trainer, "_evaluate"),
    "sampling": (command, "sample_text"),
    "saving": (Trainer, "_save"),
    "removing": (checkpoint, "_keep"),
}


def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a forked child whose output goes nowhere; its process id."""
    pid = os.fork()
    if pid == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        status = 70
        try:
            result = work()
            status = result if isinstance(result, int) else 0
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_running(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def make_cheap() -> None:
    """Leave out what costs most of a small run and is no part of this: the picture, long samples, composing anew."""
    plots.draw_loss = lambda path, *_: storage.replace(path, b"a picture")
    command.SAMPLE_TOKENS = command.LAST_SAMPLE_TOKENS = 10
    compose_once = functools.cache(lambda verb, words, compose=composing.compose: compose(cli.VERBS, verb, words))
    composing.compose = lambda _, verb, words: compose_once(verb, words)


def train() -> int:
    """Begin the run, or go on with it where it has a checkpoint."""
    if layout.step_folders(Path("run")):
        return cli.main(["train", "resume=run", "threads=1"])
    shutil.rmtree("run", ignore_errors=True)
    return cli.main(["train", *WORDS])


def final_bytes(run: Path) -> dict[str, bytes]:
    """What must be the same for every run: weights, optimizer state, log."""
    last = run / layout.CHECKPOINTS / layout.step_name(STEPS)
    paths = [last / "model.safetensors", last / "optim.safetensors", run / layout.METRICS]
    return {path.name: path.read_bytes() for path in paths}


def telling(phase: mmap.mmap, begins: int) -> Callable[[], int]:
    """`train` that says when its first step begins, and notes at every moment what is going on."""

    def noted(number: int, original: Callable[..., object]) -> Callable[..., object]:
        def events(found: Iterator[object], before: int) -> Iterator[object]:
            try:
                yield from found
            finally:
                phase[0] = before

        def call(*args: object, **kwargs: object) -> object:
            before, phase[0] = phase[0], number
            found = original(*args, **kwargs)
            if isinstance(found, Iterator):
                return events(found, before)
            phase[0] = before
            return found

        return call

    def told() -> int:
        original = Trainer.run

        def run(trainer: Trainer) -> Iterator[object]:
            os.write(begins, b"x")
            return original(trainer)

        Trainer.run = run  # type: ignore[method-assign, assignment]
        for number, (owner, name) in enumerate(list(PHASES.values())[1:], 1):
            setattr(owner, name, noted(number, getattr(owner, name)))
        return train()

    return told


def begin(phase: mmap.mmap) -> int:
    """Train in a child, up to its first step; its process id."""
    begun, begins = os.pipe()
    pid = in_child(telling(phase, begins))
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    return pid


def killed_at_random(most: float, draw: random.Random) -> str | None:
    """Train, and kill at a random instant in so many seconds after the first step began, or soon after in some phase.

    Returns:
        What was killed, one of PHASES, or None: it had ended.
    """
    phase = mmap.mmap(-1, 1)  # which the child shares
    pid = begin(phase)
    time.sleep(draw.uniform(0, most))
    wanted = draw.choice((None, *range(1, len(PHASES))))  # most of what is of interest is short
    while wanted not in (None, phase[0]) and is_running(pid):
        time.sleep(1e-4)
    time.sleep(draw.uniform(0, LONGEST_DELAY_SEC))
    os.kill(pid, signal.SIGKILL)
    return list(PHASES)[phase[0]] if status_of(pid) == -signal.SIGKILL else None


def killed_at_call(number: int) -> bool:
    """Train, and kill at the I/O call of that number in a save, before it is made; whether there was one."""

    def counted() -> int:
        original_save, saves = checkpoint.save, 0

        def save(*args: object, **kwargs: object) -> object:
            nonlocal saves
            saves += 1
            if saves != SAVED_BEFORE_CALLS + 1:
                return original_save(*args, **kwargs)  # type: ignore[arg-type]
            left = number
            originals = {name: getattr(os, name) for name in IO_CALLS}
            for name, original in originals.items():

                def call(*args: object, original: Callable[..., object] = original, **kwargs: object) -> object:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)

                setattr(os, name, call)
            try:
                return original_save(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                os._exit(0)  # there is no such call

        checkpoint.save = save  # type: ignore[assignment]
        return train()

    return status_of(in_child(counted)) == -signal.SIGKILL


def seconds_of_a_run() -> float:
    """From its first step to its end, the faster of two."""
    found = []
    for _ in range(2):
        shutil.rmtree("run", ignore_errors=True)
        pid = begin(mmap.mmap(-1, 1))
        began = time.monotonic()
        assert status_of(pid) == 0
        found.append(time.monotonic() - began)
    return min(found)


def is_different(expected: dict[str, bytes]) -> bool:
    """Go on to the end; whether anything is not as it is without a kill."""
    status = status_of(in_child(train))  # 2: it had written its result when it was killed
    return status not in (0, 2) or final_bytes(Path("run")) != expected


def at_random(tries: int, kills: int, seed: int) -> dict[str, object]:
    seconds = seconds_of_a_run()
    expected = final_bytes(Path("run"))
    draw = random.Random(seed)
    different, killed_while = 0, Counter[str](dict.fromkeys(PHASES, 0))
    for _ in range(tries):
        phases: list[str] = []
        while len(phases) < kills:
            if not phases:
                shutil.rmtree("run", ignore_errors=True)
            phase = killed_at_random(seconds / kills, draw)
            phases = [*phases, phase] if phase is not None else []  # it had ended: this try was none
        different += is_different(expected)
        killed_while.update(phases)
    return {"tries": tries, "different": different, "killed while": killed_while}


def at_calls(first: int, every: int) -> dict[str, object]:
    seconds_of_a_run()
    expected = final_bytes(Path("run"))
    number, different = first, 0
    while True:
        shutil.rmtree("run", ignore_errors=True)
        if not killed_at_call(number):
            return {"tries": (number - first) // every, "different": different}
        different += is_different(expected)
        number += every


def main(how: str, numbers: list[int]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
        os.chdir(home)
        os.environ["XDG_CACHE_HOME"] = home
        Path("my.txt").write_text(TEXT, encoding="utf-8")
        make_cheap()
        for words in (WORDS, ["resume=run", "threads=1"]):
            cli.load_config("train", words)
        found = (at_random if how == "random" else at_calls)(*numbers)
        os.chdir("/")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], list(map(int, sys.argv[2:])))
