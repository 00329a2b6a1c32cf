"""Sweeps: the grid, what is shown, jobs that fail, going on after an interruption. Kills: support/killing_sweeps.py."""

import errno
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run, Tried, instead

from microgpt_cli.commands import dataset_cache
from microgpt_cli.commands import train as train_command
from microgpt_cli.runs import layout, plots, storage
from microgpt_cli.sweeps import job
from microgpt_cli.training.trackers import Trackers
from microgpt_cli.training.trainer import Evaluated, Trainer

HERE = Path(__file__).parent
SHORT = [*TINY, "data.path=my.txt", "max_steps=4", "threads=1", "checkpoint_interval=2", "eval_interval=2"]


@pytest.fixture(autouse=True)
def _quick(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text to learn from, and no plots and long samples, which take most of a short job's time."""
    monkeypatch.setattr(plots, "draw_loss", lambda *_: None)
    monkeypatch.setattr(train_command, "LAST_SAMPLE_TOKENS", 5)


def outcome(run: Path) -> list[bytes]:
    last = run / "ckpt" / "step-00000004"
    return [p.read_bytes() for p in (last / "model.safetensors", last / "optim.safetensors", run / "metrics.jsonl")]


def everything(folder: Path) -> dict[Path, tuple[int, int]]:
    found = [path for path in folder.rglob("*") if path.name != ".lock" and ".cache" not in path.parts]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in found}


def only_sweep(where: Path) -> Path:
    [sweep] = (where / "outputs" / "sweeps").iterdir()
    return sweep.relative_to(where)


def test_the_grid_runs_with_a_line_a_job_and_ends_with_the_table(microgpt: Run, tmp_path: Path) -> None:
    ran = microgpt("train", "-m", *SHORT, "optim.learning_rate=1e-3,1e-1", "tokenizer=char,byte", "seed=range(1,2)")
    assert (ran.status, ran.err) == (0, "")
    sweep = only_sweep(tmp_path)
    assert f"sweep     {sweep}: 4 jobs, 2 optim.learning_rate × 2 tokenizer\n" in ran.out
    losses = []
    for number in range(4):
        run = sweep / str(number)
        [line] = [line for line in ran.out.splitlines() if line.startswith(f"job {number} ")]
        losses.append(json.loads((run / "result.json").read_bytes())["val_loss"])
        assert f"val_loss {losses[-1]:.4f} " in line
        assert "after 4 steps in 0" in line
        assert f"{number + 1} of 4 done" in line
        assert ("ETA" in line) == (number < 3)
        assert "best so far" in line
        config = json.loads((run / "config.json").read_bytes())
        assert config["seed"] == 1
        assert f"optim.learning_rate={config['optim']['learning_rate']} tokenizer=" in line
        assert (run / ".hydra" / "config.yaml").is_file()
        assert "val_loss" in (run / "train.log").read_text()
        assert "=" not in str(run)
    rows = [line.split()[0] for line in ran.out.partition("best val loss")[2].splitlines()[1:5]]
    assert rows == sorted(rows, key=lambda number: losses[int(number)])
    assert ran.out.endswith(f"next      microgpt sample ckpt={sweep}/{rows[0]}\n")
    assert "text      my.txt" not in ran.out, "what a job says goes to its log"
    assert layout.find_run("latest", "ckpt") == sweep / "3"


def test_a_job_of_a_sweep_is_what_the_same_run_alone_is(microgpt: Run, tmp_path: Path) -> None:
    assert microgpt("train", "-m", *SHORT, "seed=1,2").status == 0
    assert microgpt("train", *SHORT, "seed=2", "out_dir=alone").status == 0
    assert outcome(only_sweep(tmp_path) / "1") == outcome(Path("alone"))


def fail_at(monkeypatch: pytest.MonkeyPatch, seed: int, error: Exception) -> None:
    """Let the jobs with this seed fail when they evaluate."""
    original = Trainer._evaluate

    def evaluate(trainer: Trainer) -> object:
        if trainer.config.seed == seed:
            raise error
        return original(trainer)

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)


@pytest.mark.parametrize("error", [ValueError("boom\n\x1b[2J"), storage.UserError("no such thing")])
def test_a_job_that_fails_is_told_and_kept_and_the_others_go_on(
    error: Exception, microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 2, error)
        ran = microgpt("train", "-m", *SHORT, "seed=1,2,3")
    sweep = only_sweep(tmp_path)
    assert ran.status == 1
    assert ran.err == (
        f"microgpt train: 1 of 3 jobs failed (1); to run those again: microgpt train -m sweep.resume={sweep}\n"
    )
    said = "ValueError: boom \\x1b[2J" if isinstance(error, ValueError) else "no such thing. What was saved is kept"
    [line] = [line for line in ran.out.splitlines() if line.startswith("job 1 ")]
    assert f"seed=2  FAILED: {said}" in line
    assert ran.out.index("job 1 ") < ran.out.index("job 2 ")
    result = json.loads((sweep / "1" / "result.json").read_bytes())
    assert result["status"] == "failed"
    assert said.partition("\\")[0] in result["error"]
    assert "in evaluate" in (sweep / "1" / "traceback.txt").read_text()
    assert [job.look(sweep / n).status for n in "012"] == ["finished", "failed", "finished"]
    assert "\x1b" not in ran.out
    # It may have been a passing trouble.
    before = everything(sweep / "0")
    again = microgpt("train", "-m", "sweep.resume=latest")
    assert again.status == 0, again.err
    assert everything(sweep / "0") == before
    assert not (sweep / "1" / "traceback.txt").exists()
    assert [job.look(sweep / n).status for n in "012"] == ["finished"] * 3


def test_a_job_that_fails_before_its_run_begins_is_a_row_too(microgpt: Run, tmp_path: Path) -> None:
    Path("latin1.txt").write_bytes(b"caf\xe9" * 1000)
    ran = microgpt("train", "-m", *instead(SHORT, "data.path=latin1.txt,my.txt"))
    sweep = only_sweep(tmp_path)
    assert ran.status == 1
    assert "FAILED: latin1.txt: not UTF-8 text" in ran.out
    assert "damaged" not in ran.out
    assert f"(traceback: {sweep}/0/traceback.txt)" in ran.out
    assert job.look(sweep / "1").status == "finished"


def test_fail_fast_begins_no_further_job(microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, 2, ValueError("boom"))
    ran = microgpt("train", "-m", *SHORT, "seed=1,2,3,4", "sweep.fail_fast=true")
    sweep = only_sweep(tmp_path)
    assert ran.status == 1
    assert "1 of 4 jobs failed (1), 2 did not run to an end" in ran.err
    assert not (sweep / "2").exists() or not (sweep / "2" / "config.json").exists()


OTHERS: list[tuple[list[str], str]] = [
    (["seed=1,2"], "seed 1,2,3 → 1,2;"),
    (["seed=1,2,4"], "seed 1,2,3 → 1,2,4;"),
    (["seed=1,2,3", "model.n_embd=16,32"], "model.n_embd (not given) → 16,32;"),
    (["seed=1,2,3", "optim.weight_decay=0.2"], "optim.weight_decay 0.1 → 0.2;"),
    (["seed=1,2,3", "max_steps=5", "dtype=bfloat16"], "dtype auto → bfloat16; max_steps 4 → 5;"),
]


@pytest.fixture
def cut(microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep over three seeds that SIGTERM stopped in its second job, after step 2 of 4."""
    original = Trainer._step

    def step(trainer: Trainer) -> object:
        if trainer.config.seed == 2 and trainer.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        ran = microgpt("train", "-m", *SHORT, "seed=1,2,3")
    sweep = only_sweep(tmp_path)
    assert ran.status == 128 + signal.SIGTERM
    assert ran.err == (
        f"microgpt train: stopped with 1 of 3 jobs done; go on with: microgpt train -m sweep.resume={sweep}\n"
    )
    assert [job.look(sweep / n).status for n in "012"] == ["finished", "interrupted", "waiting"]
    return sweep


def test_a_signal_when_a_job_has_all_but_ended_cuts_nothing_of_it_and_stops_the_sweep(
    microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last evaluation there is nothing to interrupt: the last sample is whole, and no further job begins."""
    assert microgpt("train", "-m", *SHORT, "seed=1,2,3", "hydra.sweep.dir=whole").status == 0
    original = Trackers.log

    def log(trackers: Trackers, event: object) -> None:
        if isinstance(event, Evaluated) and event.step == 4 and (Path("cut") / "1").is_dir():
            os.kill(os.getpid(), signal.SIGTERM)
        original(trackers, event)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Trackers, "log", log)
        ran = microgpt("train", "-m", *SHORT, "seed=1,2,3", "hydra.sweep.dir=cut")
    assert ran.status == 128 + signal.SIGTERM
    assert "stopped with 2 of 3 jobs done; go on with: microgpt train -m sweep.resume=cut" in ran.err
    assert [job.look(Path("cut") / n).status for n in "012"] == ["finished", "finished", "waiting"]
    assert (Path("cut/1") / layout.SAMPLES).read_bytes() == (Path("whole/1") / layout.SAMPLES).read_bytes()
    assert microgpt("train", "-m", "sweep.resume=cut").status == 0
    assert all(outcome(Path("cut") / n) == outcome(Path("whole") / n) for n in "012")


@pytest.mark.parametrize(("words", "difference"), OTHERS)
def test_another_sweep_is_shown_as_a_difference_and_refused(
    words: list[str], difference: str, cut: Path, microgpt: Run
) -> None:
    before = everything(Path())
    ran = microgpt("train", "-m", *instead(SHORT, *words), f"sweep.resume={cut}")
    assert ran.status == 2
    assert f"another sweep was begun there: {difference}" in ran.err
    assert ran.err.count("\n") == 1
    assert everything(Path()) == before


def test_another_text_under_the_same_name_is_refused(cut: Path, microgpt: Run, text_file: Path) -> None:
    text_file.write_text("Another text. " * 300)
    ran = microgpt("train", "-m", *SHORT, "seed=1,2,3", "sweep.resume=latest")
    assert ran.status == 2
    assert "the text my.txt has changed" in ran.err


@pytest.mark.parametrize("words", [[*SHORT, "seed=1,2,3", "data.folder=elsewhere"], []])
def test_the_same_command_or_none_goes_on_from_the_checkpoint(words: list[str], cut: Path, microgpt: Run) -> None:
    finished = everything(cut / "0")
    ran = microgpt("train", "-m", *words, "sweep.resume=latest")
    assert (ran.status, ran.err) == (0, "")
    assert "resumed   1 done, 1 begun, 1 to begin" in ran.out
    assert everything(cut / "0") == finished
    assert "from step 2" in (cut / "1" / "train.log").read_text()
    for number in "012":
        assert microgpt("train", *SHORT, f"seed={int(number) + 1}", f"out_dir=alone{number}").status == 0
        assert outcome(cut / number) == outcome(Path(f"alone{number}"))
    assert [path.name for path in cut.parent.iterdir()] == [cut.name]


def test_a_sweep_that_is_done_does_nothing_more(cut: Path, microgpt: Run) -> None:
    assert microgpt("train", "-m", f"sweep.resume={cut}").status == 0
    before = everything(cut / "0") | everything(cut / "1") | everything(cut / "2")
    ran = microgpt("train", "-m", f"sweep.resume={cut}")
    assert ran.status == 0
    assert "best val loss" in ran.out
    assert everything(cut / "0") | everything(cut / "1") | everything(cut / "2") == before


def test_a_job_that_outlived_its_sweep_is_not_run_twice(cut: Path, microgpt: Run) -> None:
    before = everything(cut)
    with layout.locked(cut / "1"):
        ran = microgpt("train", "-m", f"sweep.resume={cut}")
    assert ran.status == 2
    assert "1: another process is still at work on this job; wait for it or stop it" in ran.err
    assert everything(cut) == before


@pytest.mark.parametrize("instant", [30, *(pytest.param(n, marks=pytest.mark.stress) for n in (8, 60))])
def test_a_full_disk_loses_no_job(
    instant: int, microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    """From some write on there is no room; once there is, the sweep goes on to the same bits."""
    original, writes = storage.write, 0

    def write(path: Path, descriptor: int, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes > instant:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", write)
        ran = microgpt("train", "-m", *SHORT, "seed=1,2,3")
    assert ran.status == 1
    assert "No space left" in ran.out
    again = microgpt("train", "-m", "sweep.resume=latest")
    assert again.status == 0, again.err
    sweep = only_sweep(tmp_path)
    assert microgpt("train", "-m", *SHORT, "seed=1,2,3", "hydra.sweep.dir=whole").status == 0
    same = all(outcome(sweep / n) == outcome(Path("whole") / n) for n in "012")
    tried("a full disk in a sweep", 1, int(not same))
    assert same


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("tries", "kills", "seed"), [(1, 2, 0), *(pytest.param(5, 4, n, marks=pytest.mark.stress) for n in (1, 2, 3))]
)
def test_a_killed_sweep_goes_on_to_the_same_bits(tries: int, kills: int, seed: int, tried: Tried) -> None:
    program = [sys.executable, HERE / "support" / "killing_sweeps.py", *map(str, (tries, kills, seed))]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    tried("SIGKILL, SIGTERM, SIGINT in a sweep of six jobs", sum(counted["kills"].values()), len(counted["wrong"]))
    assert counted["wrong"] == []


def test_memory_does_not_grow_with_the_number_of_jobs(microgpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original, alive = Trainer.run, []

    def run(trainer: Trainer) -> object:
        gc.collect()
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), Trainer | torch.Tensor)]
        alive.append((sum(type(thing) is Trainer for thing in found), len(found)))
        return original(trainer)

    monkeypatch.setattr(Trainer, "run", run)
    assert microgpt("train", "-m", *instead(SHORT, "max_steps=1"), "seed=range(6)").status == 0
    assert len(alive) == 6
    assert len({trainers for trainers, _ in alive}) == 1, "none of an earlier job is kept"
    assert alive[5][1] < alive[1][1] + 20, "a job has about 60 tensors"


def test_jobs_in_one_process_share_the_encoded_text(microgpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original, encoded = dataset_cache.encode, []
    monkeypatch.setattr(dataset_cache, "encode", lambda *words: encoded.append(words) or original(*words))
    Path("other.txt").write_text("Another text, of other characters. " * 300)
    words = instead(SHORT, "max_steps=1", "seed=1,2", "data.path=my.txt,other.txt")
    assert microgpt("train", "-m", *words).status == 0
    assert len(encoded) == 2
    Path("my.txt").write_text("A text that was changed. " * 300)
    assert microgpt("train", "-m", *words).status == 0
    assert len(encoded) == 3


def test_jobs_of_a_verb_that_leaves_nothing_write_only_what_they_say(microgpt: Run, trained: Path) -> None:
    ran = microgpt("sample", "-m", f"ckpt={trained}", "max_new_tokens=3", "prompt=The,Pack", "stream=false")
    assert ran.status == 0
    texts = ran.out.splitlines()
    assert [text[:-3] for text in texts] == ["The", "Pack"]
    assert [line.startswith("# ckpt=") for line in ran.err.splitlines()] == [True, True]


# what a sweep consists of
