"""The study of a search: sampling, pruning, and resuming after a kill."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run
from hypothesis import given
from hypothesis import strategies as st

from microgpt_cli.cli import main as cli
from microgpt_cli.commands import Invocation, train
from microgpt_cli.errors import UserError
from microgpt_cli.sweeps.study import JOURNAL, Dimension, Settings, Study, TrialPruner, grid, trial_pruner

pytest.importorskip("optuna")

RATE = Dimension("optim.learning_rate", low=1e-4, high=1e-1, log=True)
SIZE = Dimension("model", ("micro", "mini", "small"))
WIDTH = Dimension("model.n_embd", ("32", "48", "64"), 32, 64, 16)
STEPS, INTERVAL = 360, 30


def settings(**changes: object) -> Settings:
    plain = {"sampler": "tpe", "pruner": "asha", "n_trials": 12, "min_steps": INTERVAL, "keep_one_in": 4, "seed": 0}
    return Settings(**(plain | changes))  # type: ignore[arg-type]


def loss_at(overrides: list[str], step: int) -> float:
    """A validation loss that is lowest for a learning rate of 5e-3 and `mini`, and decreases at different speeds."""
    values = dict(word.split("=") for word in overrides)
    miss = abs(math.log10(float(values.get(RATE.key, "5e-3")) / 5e-3))
    worse = {"micro": 0.2, "mini": 0.0, "small": 0.3}[values.get(SIZE.key, "mini")]
    return 2 + miss + worse + 2 * math.exp(-step / (60 + 20 * miss))


def run(study: Study, sweep: Path, most: int = 10**6) -> int:
    """Sample and run at most this many trials; returns the number of steps."""
    steps = 0
    while study.sampled < study.n_trials and most > 0:
        number, overrides = study.ask()
        pruner, status, loss = TrialPruner(sweep / str(number)), "finished", math.inf
        for step in range(INTERVAL, STEPS + 1, INTERVAL):
            loss = min(loss, loss_at(overrides, step))
            steps += INTERVAL
            if pruner.should_prune(step, loss) and step < STEPS:
                status = "pruned"
                break
        study.tell(number, status, loss)
        most -= 1
    return steps


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.floats(0, 1))
def test_sampled_numbers_are_rounded_within_their_bounds(low: float, times: float, where: float) -> None:
    axis = Dimension("optim.eps", low=low, high=low * times, log=True)
    value = low * times**where
    text = axis.text(value)
    assert low <= float(text) <= low * times
    assert float(text) == pytest.approx(value, rel=1e-3)
    assert len(text) <= 10 or not low <= float(f"{value:.4g}") <= low * times


def test_range_samples_only_its_listed_values(tmp_path: Path) -> None:
    study = Study(tmp_path, [WIDTH], settings(sampler="random", pruner="none", n_trials=12))
    drawn = {study.ask()[1][0] for _ in range(12)}
    assert drawn == {f"{WIDTH.key}={text}" for text in WIDTH.values}


@pytest.mark.parametrize("seed", range(5))
def test_grid_contains_every_combination_once_in_random_order(tmp_path: Path, seed: int) -> None:
    study = Study(tmp_path, [SIZE, WIDTH], settings(sampler="grid", n_trials=None, seed=seed))
    assert study.n_trials == 9
    points = [tuple(study.ask()[1]) for _ in range(9)]
    every = [(f"model={a}", f"model.n_embd={b}") for a, b in itertools.product(SIZE.values, WIDTH.values)]
    assert sorted(points) == sorted(every)
    assert points != every
    assert grid([SIZE, WIDTH], seed) != grid([SIZE, WIDTH], seed + 1)


def test_grid_rejects_intervals_and_too_many_combinations() -> None:
    with pytest.raises(UserError, match=r"optim.learning_rate: sweep.sampler=grid needs a list of values"):
        grid([SIZE, RATE], 0)
    with pytest.raises(UserError, match="a grid of 531,441 trials"):
        grid([SIZE] * 12, 0)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_interrupted_search_samples_the_same_trials(tmp_path: Path, sampler: str) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    run(Study(whole, [RATE, SIZE], settings(sampler=sampler)), whole)
    for most in (1, 2, 9):
        run(Study(cut, [RATE, SIZE], settings(sampler=sampler)), cut, most)
    found = [Study(folder, [RATE, SIZE], settings(sampler=sampler)).trials() for folder in (whole, cut)]
    assert len(found[0]) == 12
    assert found[0] == found[1]
    assert len({trial.values[RATE.key] for trial in found[0]}) == 12  # and no draw is that of another trial


def test_asha_finds_the_best_of_a_grid_in_a_third_of_its_steps(tmp_path: Path) -> None:
    rates = Dimension(RATE.key, ("1e-4", "3e-4", "1e-3", "2e-3", "5e-3", "1e-2", "3e-2", "1e-1"))
    best = min(loss_at([f"{rates.key}={a}", f"model={b}"], STEPS) for a in rates.values for b in SIZE.values)
    steps = 0
    for seed in range(2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        study = Study(folder, [rates, SIZE], settings(sampler="grid", n_trials=None, seed=seed))
        steps += run(study, folder)
        assert min(trial.best or math.inf for trial in study.trials() if trial.state == "complete") == best
    assert steps <= 2 * 24 * STEPS / 3


@pytest.mark.parametrize(("pruner", "least", "most"), [("none", 0, 0), ("median", 2, 9), ("asha", 6, 11)])
def test_pruned_fraction_is_in_the_expected_range(tmp_path: Path, pruner: str, least: int, most: int) -> None:
    study = Study(tmp_path, [RATE, SIZE], settings(pruner=pruner, sampler="random"))
    run(study, tmp_path)
    pruned = [trial for trial in study.trials() if trial.state == "pruned"]
    assert least <= len(pruned) <= most
    assert all(max(trial.losses) >= INTERVAL for trial in pruned)


def test_nothing_is_pruned_before_min_steps(tmp_path: Path) -> None:
    study = Study(tmp_path, [RATE, SIZE], settings(min_steps=90))
    run(study, tmp_path)
    pruned = [max(trial.losses) for trial in study.trials() if trial.state == "pruned"]
    assert pruned
    assert min(pruned) >= 90


def test_failure_after_an_evaluation_counts_as_pruned_and_an_earlier_one_stays_open(tmp_path: Path) -> None:
    study = Study(tmp_path, [RATE], settings())
    for _ in range(3):
        study.ask()
    TrialPruner(tmp_path / "0").should_prune(10, 9.0)
    study.tell(0, "failed", 9.0)
    study.tell(1, "failed", None)
    study.tell(2, "waiting", None)
    assert (study.ended, study.running) == ([0], [1, 2])
    study.tell(0, "finished", 2.0)  # what has been noted stays
    assert study.trials()[0].state == "pruned"


@pytest.mark.parametrize("torn", [b'{"op_code":5,"worker_id":"torn', b"[" * 100_000 + b"\n"])
def test_incomplete_journal_lines_are_removed(torn: bytes, tmp_path: Path) -> None:
    run(Study(tmp_path, [RATE], settings()), tmp_path, 4)
    before = Study(tmp_path, [RATE], settings()).trials()
    journal = tmp_path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines) + torn)
    assert Study(tmp_path, [RATE], settings()).trials() == before
    assert [json.loads(line) for line in journal.read_bytes().splitlines()]


def test_tpe_is_not_misled_by_a_bad_complete_first_trial(tmp_path: Path) -> None:
    study = Study(tmp_path, [RATE], settings(n_trials=40))
    drawn = []
    for number in range(40):
        _, overrides = study.ask()
        miss = abs(math.log10(float(overrides[0].partition("=")[2]) / 5e-3))
        drawn.append(miss)
        pruner, is_bad = TrialPruner(tmp_path / str(number)), miss > 1
        pruner.should_prune(INTERVAL, 3 + miss)
        if is_bad:
            pruner.should_prune(STEPS, 2.9 + miss)
        study.tell(number, "finished" if is_bad else "pruned", 3 + miss)
    early, late = sorted(drawn[:10]), sorted(drawn[20:])
    assert late[len(late) // 2] < early[len(early) // 2]


def test_importance_ranks_the_keys_that_matter_first(tmp_path: Path) -> None:
    nothing = Dimension("threads", ("1", "2", "3", "4"))
    study = Study(tmp_path, [nothing, RATE], settings(sampler="random", n_trials=24))
    assert study.importance() == (None, {})
    run(study, tmp_path)
    step, shares = study.importance()
    assert step == INTERVAL  # the first evaluation, which all trials reached
    assert next(iter(shares)) == RATE.key
    assert shares[RATE.key] > 2 * shares["threads"]
    assert sum(shares.values()) == pytest.approx(1)


def test_pruner_needs_a_study_and_a_study_needs_keys_and_optuna(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trial_pruner(tmp_path / "0") is None
    with pytest.raises(UserError, match="the search space is empty"):
        Study(tmp_path, [], settings())
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'microgpt-cli\[sweep\]'"):
        Study(tmp_path, [RATE], settings())
    assert not (tmp_path / JOURNAL).exists()


def test_pruned_run_is_saved_and_can_be_resumed(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    study = Study(sweep, [RATE], settings())
    for number in range(2):
        study.ask()
        (sweep / str(number)).mkdir()
    assert not TrialPruner(sweep / "0").should_prune(30, 0.01)  # a trial that will not be beaten
    words = [*TINY, f"data.path={text_file}", "max_steps=90", "eval_interval=15", "checkpoint_interval=0"]
    config = cli.load_config("train", words)
    train.run(config, Invocation(sweep_dir=sweep / "1"))
    result = json.loads((sweep / "1" / "result.json").read_text())
    assert (result["status"], result["step"]) == ("pruned", 30)
    assert (sweep / "1" / "loss.png").exists()
    assert "=== step 30 ===" in (sweep / "1" / "samples.txt").read_text()
    losses = Study(sweep, [RATE], settings()).trials()[1].losses
    assert list(losses) == [15, 30]
    assert losses[30] == result["val_loss"]
    ran = microgpt("train", f"resume={sweep / '1'}", f"data.path={text_file}")
    assert ran.status == 0, ran.err
    whole = microgpt("train", *words, "out_dir=whole")
    assert whole.status == 0
    for name in ("metrics.jsonl", "ckpt/step-00000090/model.safetensors"):
        assert (sweep / "1" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
