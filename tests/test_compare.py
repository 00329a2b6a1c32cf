"""`microgpt runs` and `microgpt compare`, end to end."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run
from support.run_folders import make_run

from microgpt_cli.runs import plots


def widths(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))


def test_the_table_lists_what_the_folders_hold(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "train" / "a")
    make_run(tmp_path / "outputs" / "train" / "b", "failed", loss=9.0)
    ran = microgpt("runs")
    assert ran.status == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "In outputs/train/"
    assert [line.split()[0] for line in lines[2:5]] == ["run", "a", "b"]
    assert "failed" in lines[4]
    assert json.loads(microgpt("runs", "format=json").out)["runs"][0]["status"] == "finished"
    assert "outputs/train/b" not in microgpt("runs", "filter=status=finished").out
    nothing = microgpt("runs", "filter=status=running")
    assert (nothing.status, nothing.out) == (0, "")
    assert "none of 2 runs matches" in nothing.err
    assert microgpt("runs", "outputs/train/a", str(tmp_path / "outputs/train/b"), "format=csv").out.count("\n") == 3


def test_plots_lie_beside_the_runs_and_are_named(microgpt: Run, tmp_path: Path) -> None:
    for n, rate in enumerate((1e-4, 1e-3, 1e-2)):
        run = make_run(tmp_path / "sweep" / str(n), loss=n + 1, optim__learning_rate=rate, model__norm="$x$" + "y" * n)
        (run / "metrics.jsonl").write_text('{"step": 1, "val_loss": 3.0}\n{"step": 2, "val_loss": 2.0}\n')
    ran = microgpt("runs", "sweep", "plot=true")
    assert ran.status == 0, ran.err
    for name in ("runs.png", "swept.png"):
        assert f"sweep/{name}" in ran.out
        assert (tmp_path / "sweep" / name).read_bytes().startswith(b"\x89PNG")
    (tmp_path / "drawn").mkdir()
    ran = microgpt("runs", "sweep/1", "plot=true", "out=drawn", "format=csv")
    assert (tmp_path / "drawn" / "runs.png").is_file()
    assert not (tmp_path / "drawn" / "swept.png").exists()  # nothing differs
    assert ran.out.count("\n") == 2
    assert microgpt("runs", "sweep").out.count("2.0000")  # a plot among them is no run


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1e-4, 1e-3, 1e-2], True),
        ([1e-3, 3e-3, 1e-2], True),
        ([64, 128, 256], True),
        ([1e-3, 1e-1], True),
        ([0.1, 0.2, 0.3, 0.4], False),
        ([0.0, 0.1, 1.0], False),
        ([1, 2], False),
        ([3], False),
    ],
)
def test_an_axis_is_logarithmic_where_its_values_are(values: list[float], log: bool) -> None:
    assert plots.is_spread_logarithmically(values) == log


def test_more_runs_than_colours_are_drawn_in_grey(
    microgpt: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(13):
        make_run(tmp_path / str(n), loss=n + 1)
    seen = []
    monkeypatch.setattr(plots, "draw_curves", lambda path, curves, title, grey: seen.append((curves, title, grey)))
    assert microgpt("runs", ".", "plot=true").status == 0
    [(curves, title, grey)] = seen
    assert (len(curves), len(grey), title) == (10, 3, "13 runs, the best 10 in colour")


def test_two_runs_side_by_side(
    microgpt: Run, trained: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths(monkeypatch, 100)
    shutil.copytree(trained, tmp_path / "one")
    words = [*TINY, f"data.path={text_file}", "max_steps=4", "eval_interval=2", "tokenizer=byte", "out_dir=two"]
    assert microgpt("train", *words).status == 0
    ran = microgpt("compare", "one", "two/ckpt/step-00000004", "prompt=The ", "max_new_tokens=20")
    assert ran.status == 0, ran.err
    assert ran.out.startswith("A  one\nB  two\n")
    rows = {line[:14].strip(): line.split()[-2:] for line in ran.out.splitlines()}
    assert rows["max_steps"] == ["30", "4"]
    assert rows["kind"] == ["char", "byte"]
    assert rows["best val loss"][0] == f"{json.loads((trained / 'result.json').read_text())['best_val_loss']:.4f}"
    assert "⠉" in ran.out or "⠒" in ran.out
    assert "curves    compare.png" in ran.out
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    alone = microgpt("sample", "one", "prompt=The ", "max_new_tokens=20", "seed=1337").out
    assert f"\n{alone.splitlines()[0].rstrip()} " in ran.out


def test_a_run_that_cannot_write_says_why_and_the_other_does(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "one")
    make_run(tmp_path / "two", None)
    ran = microgpt("compare", "one", "two", "prompt=The ", "max_new_tokens=5")
    assert ran.status == 0, ran.err
    assert "The " in ran.out
    assert "no checkpoint" in " ".join(ran.out.split())
    assert "prompt=" not in microgpt("compare", "one", "two", "sample=false").out


def test_runs_that_lie_where_nobody_may_write_are_compared(microgpt: Run, tmp_path: Path) -> None:
    for name in "ab":
        make_run(tmp_path / name)
    (tmp_path / ".compare.png.tmp").mkdir()  # root may write everywhere, so this stands in the way
    ran = microgpt("compare", "a", "b", "sample=false")
    assert ran.status == 0, ran.err
    assert "curves    not written: " in ran.out
    assert "best val loss" in ran.out
    assert microgpt("compare", "a", "b", "sample=false", "out=.").status == 2


def test_where_braille_cannot_be_shown_letters_draw(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from microgpt_cli.commands import Invocation
    from microgpt_cli.commands.compare import run
    from microgpt_cli.config import CompareConfig

    for name in "ab":
        shutil.copytree(trained, tmp_path / name)
    monkeypatch.setattr("microgpt_cli.runs.terminal_plot.has_braille", lambda encoding: False)
    run(CompareConfig(["a", "b"], False, "", 1, 1.0, 1, "cpu", None), Invocation())
    picture = capfd.readouterr().out.partition("against the step\n")[2].partition("curves")[0]
    assert picture.isascii()
    assert {"b", "A", "B"} <= set(picture)


def test_an_unreadable_folder_is_passed_over(microgpt: Run, tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "a")
    closed = tmp_path / "outputs" / "closed"
    closed.mkdir(mode=0o000)
    ran = microgpt("runs")
    os.chmod(closed, 0o700)
    assert ran.status == 0
    assert "finished" in ran.out
