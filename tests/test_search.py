"""`hydra/sweeper=optuna`: parsing, sampling and launching, and resuming after a kill."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run, instead
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.microgpt_sweeper.search import dimension_of
from microgpt_cli.errors import UserError
from microgpt_cli.sweeps import record
from microgpt_cli.sweeps.study import JOURNAL, Dimension, first_rung

pytest.importorskip("optuna")

RATES = "optim.learning_rate=tag(log,interval(1e-4,1e-1))"
STATE_SET, EVALUATED, RUNNING = 6, 7, 0  # in the lines of Optuna's journal
SHORT = ["max_steps=24", "eval_interval=4", "eval_tokens=64", "optim.warmup_steps=0", "checkpoint_interval=0"]


def dimension(word: str) -> Dimension:
    [override] = OverridesParser.create().parse_overrides([word])
    return dimension_of(override)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("lr=tag(log,interval(1e-4,1e-1))", Dimension("lr", (), 1e-4, 1e-1, None, True)),
        ("lr=interval(0,1)", Dimension("lr", (), 0.0, 1.0)),
        ("n=int(interval(2,8))", Dimension("n", (), 2, 8)),
        ("n=tag(log,int(interval(1,64)))", Dimension("n", (), 1, 64, None, True)),
        ("n=range(2,9,3)", Dimension("n", ("2", "5", "8"), 2, 8, 3)),
        ("n=range(3)", Dimension("n", ("0", "1", "2"), 0, 2, 1)),
        ("x=range(0,0.3,0.1)", Dimension("x", ("0.0", "0.1", "0.2"), 0.0, 0.2, 0.1)),
        ("model=micro,mini", Dimension("model", ("micro", "mini"))),
        ("model=choice(micro,mini)", Dimension("model", ("micro", "mini"))),
        ("lr=1e-3,3e-3", Dimension("lr", ("0.001", "0.003"))),
    ],
)
def test_dimensions_are_parsed_from_hydras_grammar(word: str, expected: Dimension) -> None:
    found = dimension(word)
    assert (found.key, found.values, found.log) == (expected.key, expected.values, expected.log)
    assert (found.low, found.high, found.step) == pytest.approx((expected.low, expected.high, expected.step))
    assert found.is_integer == expected.is_integer


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lr=interval(1,0)", "give the lower bound first"),
        ("n=range(5,1)", "contains no numbers"),
        ("lr=tag(log,interval(0,1))", "needs numbers above 0"),
        ("n=tag(log,range(2,9,2))", "and no step"),
        ("lr=tag(log,choice(1,2))", "a list can.t be logarithmic"),
        ("lr=tag(lgo,interval(1,2))", "unknown tag lgo"),
    ],
)
def test_invalid_dimensions_are_rejected(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        dimension(word)


def test_first_rung_is_after_the_warm_up() -> None:
    assert first_rung(2000, 250, 50) == 250
    assert first_rung(300, 25, 50) == 50
    assert first_rung(300, 25, 60) == 75
    assert first_rung(300, 25, 0) == 25
    assert first_rung(300, 100, 500) == 100


@pytest.fixture
def words(text_file: Path) -> list[str]:
    return [*TINY, *SHORT, f"data.path={text_file}"]


def outcome(sweep: Path) -> list[tuple[list[str], str, int, float]]:
    """The overrides, status, step and best loss of each job."""
    found = []
    for number, job in enumerate(record.read(sweep).jobs):
        result = json.loads((sweep / str(number) / "result.json").read_text())
        found.append((job.overrides, result["status"], result["step"], result["best_val_loss"]))
    return found


def test_search_prunes_reports_resumes_and_extends(microgpt: Run, words: list[str], tmp_path: Path) -> None:
    ran = microgpt("train", "-m", RATES, "arch=article,modern", "sweep.n_trials=6", *words, "hydra.sweep.dir=whole")
    assert ran.status == 0, ran.err
    whole = outcome(tmp_path / "whole")
    statuses = [status for _, status, _, _ in whole]
    assert len(whole) == 6
    assert set(statuses) == {"finished", "pruned"}
    assert all((step == 24) == (status == "finished") for _, status, step, _ in whole)
    assert (
        f"6 trials, {statuses.count('pruned')} of them pruned: {sum(step for _, _, step, _ in whole)} steps" in ran.out
    )
    assert "6 of 6 done" in ran.out
    assert "damaged" not in ran.out
    assert (tmp_path / "whole" / "search.png").read_bytes().startswith(b"\x89PNG")

    # As a SIGKILL leaves it that came when trial 2 had been drawn and not noted, and 1 had not ended.
    cut = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    noted = record.read(cut)
    noted.jobs = noted.jobs[:2]
    noted.settings["sweep.n_trials"] = 3
    noted.write(cut)
    lines = [json.loads(line) for line in (cut / JOURNAL).read_bytes().splitlines()]
    evaluated = next(i for i, line in enumerate(lines) if line["op_code"] == EVALUATED and line["trial_id"] == 2)
    ended = [
        line for line in lines if line["op_code"] == STATE_SET and line["state"] != RUNNING and line["trial_id"] > 0
    ]
    kept = [json.dumps(line) + "\n" for line in lines[:evaluated] if line not in ended]
    (cut / JOURNAL).write_text("".join(kept))
    (cut / "1" / "result.json").unlink()
    for number in range(2, 6):
        shutil.rmtree(cut / str(number))
    finished = (cut / "0" / "result.json").stat().st_mtime_ns
    ran = microgpt("train", "-m", "sweep.resume=cut")
    assert ran.status == 0, ran.err
    assert outcome(cut) == whole[:3]
    assert (cut / "0" / "result.json").stat().st_mtime_ns == finished  # it was not run again
    ran = microgpt("train", "-m", "sweep.resume=cut", "sweep.n_trials=4")
    assert ran.status == 0, ran.err
    assert outcome(cut) == whole[:4]
    refused = microgpt("train", "-m", "sweep.resume=cut", "sweep.pruner=median")
    assert refused.status == 2
    assert "sweep.pruner asha → median" in refused.err


def test_grid_search_runs_every_combination_two_at_a_time(microgpt: Run, words: list[str], tmp_path: Path) -> None:
    grid = ("sweep.sampler=grid", "optim.learning_rate=1e-3,1e-2", "model.n_layer=range(1,3)")
    ran = microgpt("train", "-m", *instead(words, *grid, "sweep.at_once=2", "hydra.sweep.dir=grid"))
    assert ran.status == 0, ran.err
    swept = ("optim.learning_rate", "model.n_layer")
    jobs = [overrides for overrides, *_ in outcome(tmp_path / "grid")]
    points = {tuple(word for word in overrides if word.startswith(swept)) for overrides in jobs}
    assert len(points) == 4


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["sweep.n_trials=3"], "the search space is empty"),
        ([RATES, "sweep.sampler=grid"], "optim.learning_rate: sweep.sampler=grid needs a list of values"),
        ([RATES, "sweep.pruner=ahsa"], "sweep.pruner=ahsa: did you mean 'asha'?"),
        ([RATES, "sweep.n_trials=0"], "sweep.n_trials=0: must be at least 1"),
        ([RATES, "sweep.n_trails=3"], "did you mean 'sweep.n_trials'?"),
        ([RATES, "eval_interval=0"], "gives no evaluation before max_steps=24; use eval_interval=2"),
        (["optim.learning_rate=tag(log,interval(1e-4,1e-1))", "optim.min_learning_rate=1e-3"], "above optim.learning_"),
        (["model.n_head=range(1,4)", "sweep.n_trials=2"], "cannot be split over model.n_head=3"),
        (["model=micro,minni", "sweep.n_trials=2"], "minni"),
        (["lr_find=true", "seed=1,2"], "run it without -m"),
    ],
)
def test_invalid_input_prints_one_line_and_writes_nothing(
    microgpt: Run, words: list[str], tmp_path: Path, typed: list[str], says: str
) -> None:
    ran = microgpt("train", "-m", *instead(words, *typed))
    assert ran.status == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_missing_optuna_prints_the_install_command(
    microgpt: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ran = microgpt("train", "-m", RATES, *words)
    assert ran.status == 2
    assert "pip install 'microgpt-cli[sweep]'" in ran.err
    assert ran.err.count("\n") == 1
