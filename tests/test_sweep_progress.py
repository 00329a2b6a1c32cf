"""Progress of a sweep, from the logs of its jobs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from microgpt_cli.runs import storage
from microgpt_cli.sweeps import job, progress
from microgpt_cli.sweeps.progress import Plan, WatchedJob


@pytest.fixture
def watched(tmp_path: Path) -> Callable[..., WatchedJob]:
    def make(number: int = 0, steps: int = 100, step_work: float = 1.0) -> WatchedJob:
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return WatchedJob(number, folder, f"seed={number}", Plan(steps, step_work))

    return make


def log(watched: WatchedJob, *lines: dict[str, object], torn: bytes = b"") -> None:
    (watched.folder / "config.json").touch()
    with (watched.folder / "metrics.jsonl").open("ab") as file:
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + torn)


def test_growing_log_is_read_incrementally_and_a_truncated_one_from_its_start(
    watched: Callable[..., WatchedJob],
) -> None:
    one = watched()
    one.poll()
    assert one.state == job.JobStatus("waiting")
    log(one, {"step": 10, "loss": 3.0}, {"step": 10, "val_loss": 2.5}, torn=b'{"step": 20, "los')
    one.poll()
    assert one.state == job.JobStatus("running", 10, 2.5, 2.5, 10)
    log(one, torn=b's": 2.0}\n{"step": 20, "val_loss": 2.75}\nnonsense\n[]\n{"step": "x"}\n')
    one.poll()
    assert one.state == job.JobStatus("running", 20, 2.75, 2.5, 10)
    (one.folder / "metrics.jsonl").write_bytes(b'{"step": 5, "val_loss": 4.0}\n')  # resumed from an earlier step
    one.poll()
    assert one.state == job.JobStatus("running", 5, 4.0, 4.0, 5)
    result = {"status": "failed", "step": 7, "error": "why"}
    (one.folder / "result.json").write_bytes(storage.json_bytes(result))
    one.poll()
    assert one.state == job.JobStatus("failed", 7, error="why")


def test_work_best_and_remaining_time(watched: Callable[..., WatchedJob]) -> None:
    small, large = watched(0, steps=100), watched(1, steps=100, step_work=3.0)
    assert progress.work([small, large]) == (0, 400)
    log(small, {"step": 50, "val_loss": 2.0})
    log(large, {"step": 50, "val_loss": 1.5})
    for one in (small, large):
        one.poll()
    assert progress.work([small, large]) == (200, 400)
    assert progress.best([small, large]) is large
    (large.folder / "result.json").write_bytes(storage.json_bytes({"status": "stopped_early", "step": 60}))
    large.poll()
    assert progress.work([small, large]) == (350, 400)  # an ended job counts as completed
    assert progress.seconds_left(70, 0, 350, 400) == 10
    assert progress.seconds_left(10, 300, 350, 400) == 10  # only work since the resume counts
    assert progress.seconds_left(10, 350, 350, 400) is None
    assert progress.best([]) is None


def test_job_of_unknown_size_counts_as_average(watched: Callable[..., WatchedJob]) -> None:
    unknown = watched(2)
    unknown.plan = None
    assert progress.work([watched(0), watched(1, step_work=3.0), unknown]) == (0, 600)
