"""Matplotlib is optional: without it a command says so once and does the rest, or refuses what is only a picture."""

import sys
from pathlib import Path

import pytest
from conftest import TINY, Run

MISSING = "matplotlib is not installed (pip install matplotlib)"


@pytest.fixture(autouse=True)
def hidden(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matplotlib be missing, once there is a run that was trained with it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def short(text_file: Path) -> list[str]:
    return [*TINY, f"data.path={text_file}", "max_steps=4", "eval_tokens=64"]


def test_train_leaves_no_picture_and_ends_well(microgpt: Run, short: list[str], tmp_path: Path) -> None:
    ran = microgpt("train", *short, "out_dir=run")
    assert ran.status == 0, ran.err
    assert ran.out.count("matplotlib is") == 1
    assert f"\nnote      no loss.png: {MISSING}\n" in ran.out
    assert "plot      " not in ran.out
    assert not (tmp_path / "run/loss.png").exists()
    assert (tmp_path / "run/result.json").exists()


def test_a_failing_run_says_why_it_failed(microgpt: Run, short: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "here")

    monkeypatch.setattr("microgpt_cli.commands.train.sample_text", fail)
    ran = microgpt("train", *short)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "No space left" in ran.err


def test_a_sweep_ends_well(microgpt: Run, short: list[str], tmp_path: Path) -> None:
    ran = microgpt("train", "-m", *short, "seed=1,2", "hydra.sweep.dir=sweep")
    assert ran.status == 0, ran.err
    for number in range(2):
        assert (tmp_path / f"sweep/{number}/train.log").read_text(encoding="utf-8").count(MISSING) == 1


def test_a_search_ends_well(microgpt: Run, short: list[str], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = [
        "seed=range(1,4)",
        "sweep.n_trials=2",
        "sweep.pruner=none",
        "hydra/sweeper=optuna",
        "hydra.sweep.dir=search",
    ]
    ran = microgpt("train", "-m", *short, *search)
    assert ran.status == 0, ran.err
    assert f"note      no search.png: {MISSING}\n" in ran.out


def test_lr_find_draws_on_the_terminal_alone(
    microgpt: Run, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt_cli.training.lr_find.STEPS", 40)
    ran = microgpt("train", *TINY, f"data.path={text_file}", "lr_find=true")
    assert f"note      no plot: {MISSING}\n" in ran.out
    assert "Traceback" not in ran.err
    assert not list(tmp_path.rglob("*.png"))


def test_compare_prints_the_rest(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    ran = microgpt("compare", str(trained), str(trained))
    assert ran.status == 0, ran.err
    assert f"curves    not drawn: {MISSING}\n" in ran.out
    assert "best val loss" in ran.out
    ran = microgpt("compare", str(trained), str(trained), f"out={tmp_path}")
    assert (ran.status, ran.out, ran.err) == (2, "", f"microgpt compare: out={tmp_path}: {MISSING}\n")


def test_what_is_only_a_picture_is_refused(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    ran = microgpt("runs", str(trained), "plot=true")
    assert (ran.status, ran.out, ran.err) == (2, "", f"microgpt runs: plot=true: {MISSING}\n")
    ran = microgpt("diagram", str(trained), "out=x.png")
    said = f"microgpt diagram: out=x.png: {MISSING}, or give a name that ends in .svg\n"
    assert (ran.status, ran.out, ran.err) == (2, "", said)
    assert microgpt("diagram", str(trained), "out=x.svg").status == 0
    assert microgpt("runs", str(trained)).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.svg"]


def test_one_that_is_broken_is_told_from_one_that_is_missing(
    microgpt: Run, trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib/__init__.py").write_text("raise ImportError('built for another numpy')")
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.syspath_prepend(str(tmp_path))
    ran = microgpt("runs", str(trained), "plot=true")
    assert ran.err == "microgpt runs: plot=true: matplotlib can't be imported: built for another numpy\n"
