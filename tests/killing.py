"""Kill training runs without mercy, resume them, and compare the bits: `python killing.py TRIES KILLS_A_RUN [calls]`.

A program of its own: it imports torch once and forks a child for each try, so that a try costs half a second. With
`calls` it kills at each I/O call in turn, of a run that saves often, and not at random instants. Prints JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import microgpt_cli.commands.train  # noqa: F401  before the fork, so that no child spends its time on it
from microgpt_cli import cli
from microgpt_cli.runs import folder as layout
from microgpt_cli.runs import plots
from microgpt_cli.training import checkpoint
from microgpt_cli.training.trainer import Trainer

TEXT = "The quick brown fox jumps over the lazy dog.\nPack my box with five dozen liquor jugs!\n" * 60
STEPS = 60
DURATION_OF_STEPS = 3.0  # a run takes so many times as long as its steps alone: it saves and evaluates often
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
    *("eval_interval=7", "checkpoint_interval=5", "sample_interval=11"),
]
IO_CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir")


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


def killed_at_random(duration: float, draw: random.Random) -> bool:
    """Train, and kill at a random instant after the first step began; whether it was killed and had not ended."""
    begun, begins = os.pipe()

    def announced() -> int:
        original = Trainer.run

        def run(trainer: Trainer) -> Iterator[object]:
            os.write(begins, b"x")
            return original(trainer)

        Trainer.run = run  # type: ignore[method-assign, assignment]
        return train()

    pid = in_child(announced)
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    time.sleep(draw.uniform(0, duration))
    os.kill(pid, signal.SIGKILL)
    return status_of(pid) == -signal.SIGKILL


def killed_at_call(number: int) -> bool:
    """Train, and kill at the I/O call of that number in the fourth save, before it is made; whether there was one."""

    def counted() -> int:
        original_save, saves = checkpoint.save, 0

        def save(*args: object, **kwargs: object) -> object:
            nonlocal saves
            saves += 1
            if saves != 4:
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
                for name, original in originals.items():
                    setattr(os, name, original)

        checkpoint.save = save  # type: ignore[assignment]
        return train()

    return status_of(in_child(counted)) == -signal.SIGKILL


def where(run: Path) -> str:
    """What the kill interrupted, as the folder tells."""
    names = (
        {p.name[:5] for p in (run / layout.CHECKPOINTS).glob(".*")} if (run / layout.CHECKPOINTS).is_dir() else set()
    )
    if any(name.startswith(".tmp") for name in names):
        return "saving"
    if any(name.startswith(".tras") for name in names):
        return "retention"
    return "between" if layout.step_folders(run) else "before the first checkpoint"


def main(tries: int, kills: int, at_calls: bool) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as home:
        os.chdir(home)
        os.environ["XDG_CACHE_HOME"] = home
        Path("my.txt").write_text(TEXT, encoding="utf-8")
        cli.load_config("train", WORDS)
        plots.draw_loss(Path("warm.png"), [], {})
        assert status_of(in_child(train)) == 0
        shutil.rmtree("run")
        assert status_of(in_child(train)) == 0
        timings = [json.loads(line) for line in Path("run", layout.TIMINGS).read_bytes().splitlines()]
        duration = DURATION_OF_STEPS * max(line.get("seconds", 0.0) for line in timings)
        expected = final_bytes(Path("run"))
        draw = random.Random(1)
        done, different, places = (
            0,
            0,
            dict.fromkeys(("saving", "retention", "between", "before the first checkpoint"), 0),
        )
        call = 0
        while done < tries:
            shutil.rmtree("run", ignore_errors=True)
            hits = 0
            while hits < kills:
                call += 1
                if at_calls and not killed_at_call(call):
                    tries = done  # that was the last call
                    break
                if at_calls or killed_at_random(duration / kills, draw):
                    hits += 1
                    places[where(Path("run"))] += 1
                elif status_of(in_child(train)) in (0, 2):  # it had ended: this try was none
                    shutil.rmtree("run", ignore_errors=True)
                    hits = 0
            else:
                done += 1
                status = status_of(in_child(train))  # 2: it had written its result when it was killed
                different += status not in (0, 2) or final_bytes(Path("run")) != expected
        os.chdir("/")
    print(json.dumps({"tries": done, "kills": done * kills, "different": different, "killed while": places}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["calls"])
