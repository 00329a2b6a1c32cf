"""Trackers: what they are told, and that none can hurt the run. Fakes stand for them where they are not installed."""

import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Run, instead

from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import from_json
from microgpt_cli.config.train import LOGGERS
from microgpt_cli.errors import UserError
from microgpt_cli.training import trackers


@dataclass
class Told:
    """All that fakes were told."""

    begun: list[dict[str, Any]] = field(default_factory=list)
    logged: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    ended: list[Any] = field(default_factory=list)
    fails_at: int | None = None  # the call of `log` that raises

    def numbers(self, name: str) -> dict[int, float]:
        return {step: values[name] for step, values in self.logged if name in values}

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))
        if len(self.logged) == self.fails_at:
            raise ConnectionError("the network\nis gone")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Told:
    told = Told()

    class FakeRun:
        url, dir, log = None, str(tmp_path / "wandb" / "offline-run" / "files"), staticmethod(told.log)

        def finish(self, exit_code: int) -> None:
            told.ended.append(exit_code)

    def init(**about: Any) -> FakeRun:
        told.begun.append(about)
        return FakeRun()

    module = types.ModuleType("wandb")
    vars(module).update(init=init, Settings=dict, Html=lambda text, inject: text)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return told


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()

    def init(**about: Any) -> types.SimpleNamespace:
        told.begun.append(about)
        print("* half a page")
        return types.SimpleNamespace(log=told.log)

    module = types.ModuleType("trackio")
    vars(module).update(init=init, finish=lambda: told.ended.append("finish"), Markdown=str)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return told


@pytest.fixture
def words(text_file: Path) -> list[str]:
    often = ["max_steps=4", "eval_interval=2", "log_interval=2", "sample_interval=2", "checkpoint_interval=2"]
    return ["train", *TINY, f"data.path={text_file}", *often]


def test_all_that_a_run_logs_reaches_every_tracker(
    microgpt: Run, words: list[str], wandb: Told, trackio: Told, tmp_path: Path
) -> None:
    ran = microgpt(*words, "logger=[wandb,trackio]", "out_dir=run")
    assert ran.status == 0, ran.err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for told in (wandb, trackio):
        for name in ("loss", "val_loss", "learning_rate", "grad_norm"):
            assert told.numbers(name) == {line["step"]: line[name] for line in lines if name in line}
        assert set(told.numbers("tokens_per_sec")) == {2, 4}
        assert set(told.numbers("sample")) == {2, 4}
        [about] = told.begun
        assert about["config"]["optim.learning_rate"] == 0.015
        assert about["config"]["model.n_embd"] == 16
        assert about["group"] is None
        assert about["project"] == "microgpt"
    assert (wandb.ended, trackio.ended) == ([0], ["finish"])
    assert wandb.begun[0]["mode"] == "offline"
    assert "tracker   wandb sync" in ran.out
    assert "tracker   trackio show --project microgpt" in ran.out
    assert "half a page" not in ran.out


def test_a_resumed_run_goes_on_in_the_same_run_of_its_trackers(
    microgpt: Run, words: list[str], wandb: Told, trackio: Told, tmp_path: Path
) -> None:
    assert microgpt(*words, "logger=[wandb,trackio]", "out_dir=run").status == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert microgpt("train", "resume=moved", "max_steps=6").status == 0
    for told in (wandb, trackio):
        first, second = told.begun
        assert first["name"] == second["name"]
        assert first.get("id") == second.get("id")
        assert second["resume"] == "allow"
        assert set(told.numbers("val_loss")) == {2, 4, 6}
    assert microgpt("train", "resume=moved", "max_steps=7", "logger=[]").status == 0
    assert len(wandb.begun) == 2
    assert microgpt("train", "from_run=moved", "max_steps=2", "out_dir=new", "logger=wandb").status == 0
    assert wandb.begun[2]["id"] != wandb.begun[0]["id"]


def test_the_jobs_of_a_sweep_are_a_group(
    microgpt: Run, words: list[str], wandb: Told, trackio: Told, tmp_path: Path
) -> None:
    ran = microgpt(*instead(words, "-m", "logger=wandb,[trackio]", "max_steps=2"))
    assert ran.status == 0, ran.err
    [sweep] = (tmp_path / "outputs" / "sweeps").iterdir()
    [about], [other] = wandb.begun, trackio.begun
    assert (about["group"], about["name"]) == (sweep.name, f"{sweep.name}/0")
    assert (other["group"], other["name"][:-5]) == (sweep.name, f"{sweep.name}/1")


@dataclass
class Happened:
    """As the trainer says it."""

    step: int
    loss: float = 1.0


@pytest.mark.parametrize("fails", [0, 1, 2, 3, 4])
def test_of_several_trackers_one_may_fail_at_any_call(fails: int, wandb: Told, trackio: Told, tmp_path: Path) -> None:
    if fails:
        wandb.fails_at = fails
    else:
        sys.modules["wandb"].init = None  # type: ignore[attr-defined]
    warnings: list[str] = []
    both = trackers.Trackers(["wandb", "trackio", "wandb"], warnings.append)
    started = both.start(tmp_path, {"seed": 1}, 0, {})
    assert list(started) == (["wandb", "trackio"] if fails else ["trackio"])
    for step in (1, 2):
        both.log(Happened(step))
        both.log(Happened(step, float("inf")))  # where float16 overflowed
        both.text(step, "some ``` text")
    both.close()
    assert len(wandb.logged) == fails
    assert [step for step, _ in trackio.logged] == [1, 1, 2, 2]
    assert trackio.logged[1][1]["sample"].startswith("````\n")
    assert len(warnings) == 1
    assert warnings[0].startswith("logger=wandb failed and is disabled; metrics.jsonl continues: ")
    if fails:
        assert warnings[0].endswith("ConnectionError: the network is gone")


def test_a_tracker_that_fails_costs_a_warning_and_changes_no_bit(
    microgpt: Run, words: list[str], wandb: Told, tmp_path: Path
) -> None:
    wandb.fails_at = 2
    ran = microgpt(*words, "logger=wandb", "out_dir=run")
    assert ran.status == 0, ran.err
    assert ran.out.count("warning   logger=wandb failed") == 1
    assert microgpt(*words, "out_dir=plain").status == 0
    for name in ("metrics.jsonl", "ckpt/step-00000004/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_a_damaged_note_of_the_trackers_costs_the_trackers_alone(wandb: Told, tmp_path: Path) -> None:
    warnings: list[str] = []
    for note in ('{"id": "../..", "name": "x", "group": null}', "[]", "{"):
        (tmp_path / "tracker.json").write_text(note)
        assert trackers.Trackers(["wandb"], warnings.append).start(tmp_path, {}, 5, {}) == {}
    assert len(warnings) == 3
    assert "tracker.json: must have id, name and group" in warnings[0]
    assert wandb.begun == []


def test_wandb_is_offline_unless_its_own_variables_say_otherwise(wandb: Told, tmp_path: Path) -> None:
    for environ in ({}, {"WANDB_MODE": "online", "WANDB_PROJECT": "mine"}):
        trackers.Trackers(["wandb"], pytest.fail).start(tmp_path, {}, 0, environ)
    assert [(about["mode"], about["project"]) for about in wandb.begun] == [("offline", "microgpt"), ("online", "mine")]


def test_a_run_that_fails_is_a_failed_run_of_its_tracker(microgpt: Run, words: list[str], wandb: Told) -> None:
    hot = ["optim.learning_rate=1e30", "optim.schedule=constant", "optim.grad_clip=0", "optim.warmup_steps=0"]
    assert microgpt(*instead(words, "logger=wandb", *hot, "max_steps=50")).status == 1
    assert wandb.ended == [1]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_tracker_that_is_not_installed_costs_the_line_that_installs_it(
    name: str, microgpt: Run, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = {"tensorboard": "torch.utils.tensorboard"}.get(name, name)
    monkeypatch.setitem(sys.modules, missing, None)
    before = sorted(tmp_path.rglob("*"))
    ran = microgpt(*words, f"logger={name}")
    assert ran.status == 2
    assert ran.err.endswith(f"install it: pip install 'microgpt-cli[{name}]'\n")
    assert ran.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_trackers_are_imported_only_where_they_are_chosen() -> None:
    assert set(trackers.KINDS) == set(LOGGERS)
    trackers.require([])
    source = Path(trackers.__file__).read_text(encoding="utf-8")
    assert not [line for line in source.splitlines() if line.startswith(("import torch", "from torch"))]


def test_a_run_older_than_the_key_has_no_trackers(trained: Path) -> None:
    stored = json.loads((trained / "config.json").read_text())
    assert stored.pop("logger") == []
    assert from_json(TrainConfig, stored, "f").logger == []
    with pytest.raises(UserError, match=r"logger=\[wanb\]: did you mean 'wandb'\?"):
        from_json(TrainConfig, stored | {"logger": ["wanb"]}, "f")


# The real ones, where they are installed; none of them reaches for a network.


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_itself(microgpt: Run, words: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert microgpt(*words, "logger=tensorboard", "out_dir=run").status == 0
    assert microgpt("train", "resume=run", "max_steps=6").status == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "val_loss", "learning_rate", "grad_norm"):
        expected = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
    assert [event.step for event in events.Tensors("sample/text_summary")][:2] == [2, 4]


@pytest.mark.filterwarnings("ignore")
def test_wandb_itself(microgpt: Run, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert microgpt(*words, "logger=wandb", "out_dir=run").status == 0
    assert microgpt("train", "resume=run", "max_steps=6").status == 0
    name = json.loads((tmp_path / "run" / "tracker.json").read_text())["id"]
    found = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert found
    logged = b"".join(path.read_bytes() for path in found)
    for word in (b"val_loss", b"tokens_per_sec", b"optim.learning_rate", b"sample"):
        assert word in logged


@pytest.mark.filterwarnings("ignore")
def test_trackio_itself(microgpt: Run, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    import sqlite3

    from trackio import utils

    for module in [module for name, module in sys.modules.items() if name.startswith("trackio")]:
        if hasattr(module, "TRACKIO_DIR"):  # read from the environment when it was imported
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    assert tmp_path / "trackio" == utils.TRACKIO_DIR
    assert microgpt(*words, "logger=trackio", "out_dir=run").status == 0
    assert microgpt("train", "resume=run", "max_steps=6").status == 0
    [path] = (tmp_path / "trackio").glob("*.db")
    connection = sqlite3.connect(path)
    rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    connection.close()
    assert len({name for name, _, _ in rows}) == 1
    losses = {step: json.loads(values)["val_loss"] for _, step, values in rows if b"val_loss" in values}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses == {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
