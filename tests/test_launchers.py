"""Sweeps with Hydra's launchers, if installed: parallel jobs in separate processes."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, Run, instead

from microgpt_cli.sweeps import job

MICROGPT = [sys.executable, "-m", "microgpt_cli"]
SHORT = [*TINY, "data.path=my.txt", "max_steps=4", "seed=1,2"]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the launchers' own


def needs(launcher: str) -> pytest.MarkDecorator:
    name = f"hydra_plugins.hydra_{launcher}_launcher"
    installed = importlib.util.find_spec("hydra_plugins") is not None and importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not installed, reason=f"needs hydra-{launcher}-launcher")


def sweep_with(launcher: str, *words: str) -> subprocess.Popen[str]:
    """Run in a new session, so that signals reach no other process."""
    command = [*MICROGPT, "train", "-m", *words, f"hydra/launcher={launcher}"]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True)


@needs("joblib")
@pytest.mark.slow
def test_joblib_runs_jobs_in_parallel_and_divides_the_threads(text_file: Path) -> None:
    Path("latin1.txt").write_bytes(b"caf\xe9" * 1000)
    words = instead(SHORT, "data.path=my.txt,latin1.txt", "hydra.launcher.n_jobs=2")
    with sweep_with("joblib", *words) as process:
        out, err = process.communicate(timeout=200)
    [sweep] = Path("outputs/sweeps").iterdir()
    assert process.returncode == 1, err
    assert "2 of 4 jobs failed (2, 3)" in err
    assert out.count("FAILED: latin1.txt: not UTF-8") == 2
    assert [job.read_status(sweep / n).status for n in "0123"] == ["finished", "finished", "failed", "failed"]
    for n in "01":
        said = (sweep / n / job.LOG).read_text()
        threads = max(1, (os.cpu_count() or 1) // 2)
        assert f"threads   {threads} (OMP_NUM_THREADS)" in said
        assert "val_loss" in said
    assert "data      my.txt" not in out


@needs("joblib")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_joblib_workers_save_and_stop_with_the_sweep(number: signal.Signals, text_file: Path) -> None:
    words = instead(SHORT, "max_steps=1000000", "seed=1,2,3", "hydra.launcher.n_jobs=2", "threads=1")
    with sweep_with("joblib", *words) as process:
        deadline = time.monotonic() + 100
        while len(list(Path().glob("outputs/sweeps/*/*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    [sweep] = Path("outputs/sweeps").iterdir()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "stopped with 0 of 3 jobs done; resume with: microgpt train -m sweep.resume=" in err
        assert {"hydra/launcher=joblib", "hydra.launcher.n_jobs=2"} <= set(err.split())
    deadline = time.monotonic() + 60
    while not all((sweep / n / "result.json").exists() for n in "01") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [job.read_status(sweep / n).status for n in "012"] == ["interrupted", "interrupted", "waiting"]


def _trains(number: str) -> bool:
    return any(log.stat().st_size for log in Path().glob(f"outputs/sweeps/*/{number}/metrics.jsonl"))


def _jobs_of_submitit() -> list[int]:
    """The processes in which submitit runs jobs in this folder; Linux only."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_job = b"submitit.core._submit" in (process / "cmdline").read_bytes()
            if is_job and (process / "cwd").readlink() == Path.cwd():
                found.append(int(process.name))
    return found


@needs("submitit")
@pytest.mark.slow
def test_submitit_requeues_and_resumes_a_preempted_job(text_file: Path) -> None:
    words = instead(SHORT, "max_steps=4000", "threads=1", "checkpoint_interval=0", "eval_interval=0")
    with sweep_with("submitit_local", *words) as process:
        deadline = time.monotonic() + 100
        while not _trains("0") and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in _jobs_of_submitit():
            os.kill(pid, signal.SIGUSR2)
        out, err = process.communicate(timeout=200)
    [sweep] = Path("outputs/sweeps").iterdir()
    assert process.returncode == 0, err
    said = (sweep / "0" / job.LOG).read_text()
    assert ", from step" in said
    assert json.loads((sweep / "0" / "result.json").read_bytes())["step"] == 4000
    assert out.count("val_loss") >= 2


@needs("ray")
@pytest.mark.slow
def test_ray_runs_jobs(text_file: Path) -> None:
    with sweep_with("ray", *SHORT, "threads=1") as process:
        _, err = process.communicate(timeout=280)
    [sweep] = Path("outputs/sweeps").iterdir()
    assert process.returncode == 0, err
    for n in "01":
        assert job.read_status(sweep / n).status == "finished"
        assert "val_loss" in (sweep / n / job.LOG).read_text()


def test_unknown_launcher_prints_one_line(microgpt: Run) -> None:
    ran = microgpt("train", "-m", "seed=1,2", "hydra/launcher=nope")
    assert ran.status == 2
    assert "hydra/launcher=nope: no such choice" in ran.err


def test_workers_have_distinct_numbers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from microgpt_cli.sweeps import job\n"
        "print(job.worker_number(Path('.')), flush=True); sys.stdin.read()"
    )
    popen = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    numbers = [worker.stdout.readline() for worker in popen if worker.stdout]
    assert sorted(map(int, numbers)) == [0, 1, 2]
    for worker in popen:
        worker.communicate("")
    job.worker_number.cache_clear()
    assert job.worker_number(tmp_path) == 0, "a number is free again when its process has ended"
