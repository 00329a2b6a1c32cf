"""The record of a sweep: round trip, and comparison with a later command."""

import json
from pathlib import Path

import pytest

from microgpt_cli.config.schema import LARGEST_INT
from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage
from microgpt_cli.sweeps import record
from microgpt_cli.sweeps.record import Job, Record


def a_record(**changes: object) -> Record:
    settings = {"seed": 1, "model.n_layer": 4, "device": "cpu", "optim.learning_rate": 0.1}
    values = {"sweeper": "grid", "words": ["seed=1,2"], "space": {"seed": ["1", "2"]}, "settings": settings}
    jobs = [Job(["seed=1"]), Job(["seed=2"], {"seed": 2})]
    return Record(**(values | {"texts": {"my.txt": "0" * 64}, "jobs": jobs} | changes))  # type: ignore[arg-type]


def test_record_round_trips_without_differences(tmp_path: Path) -> None:
    a_record().write(tmp_path)
    assert record.read(tmp_path) == a_record()
    assert a_record().differences(a_record()) == []


@pytest.mark.parametrize("key", ["model.n_layer", "optim.learning_rate", "device", "seed"])
def test_every_setting_is_compared_except_hardware_and_paths(key: str) -> None:
    new = a_record(settings=a_record().settings | {key: LARGEST_INT})
    assert bool(a_record().differences(new)) == (
        key not in ("device", "seed")
    )  # seed is swept, so it is compared there


def test_settings_of_later_jobs_are_compared() -> None:
    new = a_record(jobs=[Job(["seed=1"]), Job(["seed=2"], {"seed": 2, "model.n_layer": 5})])
    assert a_record().differences(new) == ["model.n_layer of job 1 (not given) → 5"]


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"{}", b'{"format": 2}', storage.json_bytes({"format": 1, "sweeper": 3})], ids=repr
)
def test_invalid_record_is_rejected(data: bytes, tmp_path: Path) -> None:
    (tmp_path / record.RECORD).write_bytes(data)
    with pytest.raises(UserError, match=r"sweep\.json"):
        record.read(tmp_path)


def test_record_with_a_wrong_type_is_rejected(tmp_path: Path) -> None:
    a_record().write(tmp_path)
    good = json.loads((tmp_path / record.RECORD).read_bytes())
    for name in good:
        (tmp_path / record.RECORD).write_bytes(storage.json_bytes(good | {name: [3]}))
        with pytest.raises(UserError, match=r"sweep\.json"):
            record.read(tmp_path)


# how far it is
