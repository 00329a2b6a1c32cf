"""Reading runs from their folders, and the table of runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.run_folders import make_run

from microgpt_cli.commands.runs import label
from microgpt_cli.config import TrainConfig
from microgpt_cli.config.schema import absent_values
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout, reading, storage, table
from microgpt_cli.runs.reading import read_run, read_runs
from microgpt_cli.runs.table import render, sort_runs


def test_read_run_matches_its_result_file(trained: Path) -> None:
    [run] = read_runs([trained.parent])
    result = json.loads((trained / "result.json").read_text())
    assert (run.path, run.status, run.problem) == (trained, "finished", None)
    for name in ("step", "val_loss", "best_val_loss", "best_step", "seconds", "tokens_per_sec", "parameters"):
        assert getattr(run, name) == result[name]
    assert run.settings["model.n_embd"] == 16
    (log,) = [reading.val_curve(run)]
    assert [step for step, _ in log] == [10, 20, 30]


@pytest.mark.parametrize("status", ["finished", "stopped_early", "interrupted", "failed"])
def test_status_of_an_ended_run_is_that_of_its_result(status: str, tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "run", status)).status == status


def test_running_killed_and_resumed_runs_are_distinguished(tmp_path: Path) -> None:
    killed = make_run(tmp_path / "killed", None, step=10)
    (killed / "ckpt" / "step-00000015").mkdir(parents=True)
    begun = make_run(tmp_path / "begun", None, step=0)
    gone_on = make_run(tmp_path / "gone_on", "finished", step=20, max_steps=40)
    resumed = make_run(tmp_path / "resumed", "interrupted", step=10)
    (resumed / "metrics.jsonl").write_text('{"step": 10, "val_loss": 3.0}\n{"step": 20, "val_loss": 2.5}\n')
    assert [read_run(run).status for run in (killed, begun, gone_on, resumed)] == ["killed"] * 4
    run = read_run(killed)
    assert (run.step, run.best_val_loss, run.seconds) == (15, 2.0, 1.0)
    assert run.tokens_per_sec == pytest.approx(320)
    assert read_run(begun).best_val_loss is None
    assert read_run(resumed).best_val_loss == 2.5
    for folder in (killed, resumed):
        with layout.locked(folder):
            assert read_run(folder).status == "running"
    assert "15 of 20" in render([run])


def test_checking_the_lock_does_not_block_a_writer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None)
    code = f"import fcntl, time; f = open({str(run / '.lock')!r}); fcntl.flock(f, fcntl.LOCK_SH); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(0.03)"], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        looking.stdout.readline()
        with layout.locked(run):
            assert layout.is_in_use(run)
    assert not layout.is_in_use(run)


DAMAGE = {
    "config.json": [b"", b"{", b"[]", b"\xff", b'{"a": NaN}', b"[" * 5000],
    "result.json": [b"", b"[]", b'{"status": 3}', b'{"status": "fine"}'],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, all in DAMAGE.items() for data in all])
def test_damaged_run_is_listed_with_its_problem(name: str, data: bytes, tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad", None if name == "config.json" else "finished")
    (bad / name).write_bytes(data)
    runs = read_runs([tmp_path])
    assert len(runs) == 2
    assert [run.problem is not None for run in runs] == [True, False]
    for form in table.FORMATS:
        assert "bad" in render(runs, form)
    assert f"damaged: {tmp_path}/bad: {name}: " in render(runs, width=1000)


def test_invalid_numbers_and_control_characters_are_handled(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run\x1b[2J", data__path="\x1b]0;x\x07" + "y" * 5000, seed=[1], model={"n_layer": {}})
    make_run(tmp_path / "other", max_steps="many")
    (run / "result.json").write_text(
        '{"status": "finished", "step": true, "best_val_loss": "1", "seconds": 1e300, "parameters": ' + "9" * 4000 + "}"
    )
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    runs = sort_runs(read_runs([tmp_path]), "data.path")
    assert runs[0].best_val_loss is None
    assert runs[0].parameters is None
    for form in ("table", "md"):
        text = render(runs, form, 80)
        assert text.replace("\n", "").isprintable()
        assert len(text) < 5000


def test_folders_are_searched_recursively_without_following_links(tmp_path: Path) -> None:
    for name in ("b", "sweeps/1/10", "sweeps/1/9", "a"):
        make_run(tmp_path / "outputs" / name)
    (tmp_path / "outputs" / "b" / "ckpt" / "step-00000020").mkdir(parents=True)
    (tmp_path / "outputs" / "b" / "ckpt" / "step-00000020" / "config.json").write_text("{}")
    (tmp_path / "outputs" / "latest").symlink_to("b")
    (tmp_path / "outputs" / "loop").symlink_to(".")
    (tmp_path / "outputs" / "empty").mkdir()
    names = [str(run.path.relative_to("outputs")) for run in read_runs()]
    assert names == ["a", "b", "sweeps/1/9", "sweeps/1/10"]
    assert len(read_runs(["outputs", "outputs/a", tmp_path / "outputs" / "b"])) == 4  # each once
    assert [run.path for run in read_runs(["latest"])] == [Path("outputs/b")]
    with pytest.raises(UserError, match="paths=nope: no such folder"):
        read_runs(["nope"])


def test_only_differing_settings_are_shown_and_no_paths(tmp_path: Path) -> None:
    make_run(tmp_path / "a", out_dir="x", data__cache_dir="x", data__url="u", data__file_name="f", seed=1)
    make_run(tmp_path / "b", out_dir="y", data__cache_dir="y", data__url="v", data__file_name="g", model__n_layer=8)
    runs = read_runs([tmp_path])
    assert table.differing(runs) == ["model.n_layer", "data.file_name"]
    assert table.differing(runs[:1]) == []
    make_run(tmp_path / "c", model__n_layer=4.0, new_key=True)
    runs = read_runs([tmp_path])
    assert "new_key" in table.differing(runs)
    assert [row["new_key"] for row in csv.DictReader(render(runs, "csv").splitlines())] == ["", "", "True"]


def test_key_newer_than_a_run_has_its_legacy_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_absent", lambda: {"young": 3})
    make_run(tmp_path / "old")
    make_run(tmp_path / "new", young=3)
    assert table.differing(read_runs([tmp_path])) == []
    make_run(tmp_path / "newer", young=4)
    assert table.differing(read_runs([tmp_path])) == ["young"]


def test_legacy_defaults_come_from_the_schema() -> None:
    assert {"from_run": None, "logger": []}.items() <= absent_values(TrainConfig).items()


def test_runs_without_a_value_are_sorted_last(tmp_path: Path) -> None:
    for name, loss in (("a", 2.0), ("b", 1.0), ("c", 3.0)):
        make_run(tmp_path / name, loss=loss, optim__learning_rate=1 / loss)
    make_run(tmp_path / "d", None, step=0)
    runs = read_runs([tmp_path])

    def names(by: str) -> str:
        return "".join(run.path.name for run in sort_runs(runs, by))

    assert names("best_val_loss") == names("loss") == "bacd"
    assert names("-loss") == "cabd"
    assert names("learning_rate") == "dcab"
    assert names("-run") == "dcba"
    assert names("tokens/s") == "abcd"
    with pytest.raises(UserError, match=r"sort=losss: no column .*; did you mean"):
        names("losss")


def test_seeds_of_a_configuration_are_grouped_with_mean_and_sd(tmp_path: Path) -> None:
    for rate, losses in ((1e-3, (2.0, 2.02, 2.04)), (3e-3, (1.5, 1.51, 1.52))):
        for seed, loss in enumerate(losses):
            make_run(tmp_path / f"{rate}-{seed}", loss=loss, seed=seed, optim__learning_rate=rate, device=f"d{seed}")
    make_run(tmp_path / "again", loss=1.51, seed=1, optim__learning_rate=3e-3)  # not an independent sample
    make_run(tmp_path / "killed", None, loss=0.1, seed=9, optim__learning_rate=3e-3)
    runs = read_runs([tmp_path])
    first, second = table.configurations(runs)
    assert (first.settings["optim.learning_rate"], first.losses) == (3e-3, (1.5, 1.51, 1.52))
    assert (first.mean, first.sd) == (pytest.approx(1.51), pytest.approx(0.01))
    assert (second.mean, second.sd) == (pytest.approx(2.02), pytest.approx(0.02))
    text = render(runs, width=1000)
    assert "1.5100 ± 0.0100" in text
    assert "0.5100 nats below the second, which is significant (paired t-test over 3 shared seeds: t = 88.3" in text
    page = json.loads(render(runs, "json"))
    assert page["configurations"][0]["seeds"] == [0, 1, 2]
    assert page["verdict"] in text


def test_verdict_needs_several_seeds_and_reports_insignificance(tmp_path: Path) -> None:
    make_run(tmp_path / "a", loss=1.0)
    make_run(tmp_path / "b", loss=2.0, model__n_layer=8)
    text = render(read_runs([tmp_path]))
    assert "t-test" not in text
    assert "±" not in text
    make_run(tmp_path / "a2", loss=3.0, seed=2)
    make_run(tmp_path / "b2", loss=2.5, seed=2, model__n_layer=8)
    assert "which is not significant" in render(read_runs([tmp_path]), width=1000)


@pytest.mark.parametrize(
    ("count", "first_seed", "says"),
    [
        (5, 0, "is significant (paired t-test over 5 shared seeds: t = "),
        (8, 0, "is significant (sign-flip test over 8 shared seeds, p = 0.0078,"),
        (8, 1, "is not significant (Welch's t-test: t = "),
        (8, 100, "is not significant (Welch's t-test: t = "),
    ],
)
def test_configurations_are_compared_by_shared_seeds(tmp_path: Path, count: int, first_seed: int, says: str) -> None:
    """Each seed has a level of its own, ten times the difference between the two rates."""
    for n in range(count):
        make_run(tmp_path / f"a{n}", loss=2 + n / 10, seed=n, optim__learning_rate=1e-3)
        loss = 2 + n / 10 + 0.01 + n / 10_000
        make_run(tmp_path / f"b{n}", loss=loss, seed=first_seed + n, optim__learning_rate=3e-3)
    assert says in render(read_runs([tmp_path]), width=1000)


def test_losses_on_different_texts_have_no_verdict(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / f"a{seed}", loss=1 + seed / 100, seed=seed, data__path="a")
        make_run(tmp_path / f"b{seed}", loss=2 + seed / 100, seed=seed, data__path="b")
    text = render(read_runs([tmp_path]), width=1000)
    assert "Losses are comparable only between runs with the same data.path." in text
    assert "t-test" not in text


def test_settings_wrap_on_a_narrow_terminal(tmp_path: Path) -> None:
    for n in range(3):
        make_run(tmp_path / str(n), model__n_layer=n, model__n_embd=n, batch_size=n, optim__learning_rate=10.0**-n)
    runs = read_runs([tmp_path])
    wide, narrow = render(runs, width=200), render(runs, width=72)
    assert "n_layer=" not in wide
    assert "n_layer=2" in narrow
    assert max(map(len, narrow.splitlines()[2:])) <= 72


def test_markdown_escapes_pipes(tmp_path: Path) -> None:
    make_run(tmp_path / "a|b", seed=2)
    make_run(tmp_path / "c")
    lines = [line for line in render(read_runs([tmp_path]), "md").splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines[:4]} == {8}


def make_sweep(folder: Path, *choices: tuple[str, float]) -> None:
    """A sweep over `arch` and the learning rate, with a run for each choice."""
    jobs = []
    for number, (arch, rate) in enumerate(choices):
        norm, bias = ("layernorm", True) if arch == "article" else ("rmsnorm", False)
        settings = {"model__norm": norm, "model__bias": bias, "optim__learning_rate": rate}
        make_run(folder / str(number), loss=2 + number, **settings)
        jobs.append({"overrides": [f"arch={arch}", f"optim.learning_rate={rate}", "max_steps=20"], "settings": {}})
    space = {"arch": ["article", "modern"], "optim.learning_rate": ["0.01", "0.001"]}
    (folder / "sweep.json").write_text(json.dumps({"space": space, "jobs": jobs}))


def test_swept_group_replaces_the_settings_that_it_implies(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ("article", 0.01), ("modern", 0.01), ("article", 0.001), ("modern", 0.001))
    runs = read_runs([tmp_path / "s"])
    assert table.differing(runs) == ["model.norm", "model.bias", "optim.learning_rate"]
    assert table.shown_keys(runs) == ["arch", "optim.learning_rate"]
    lines = render(runs, width=200).splitlines()
    assert lines[2].split()[:3] == ["run", "arch", "learning_rate"]
    assert lines[4].split()[:3] == ["1", "modern", "0.01"]
    assert [run.path.name for run in sort_runs(runs, "-arch")] == ["1", "3", "0", "2"]
    assert label(runs[3], table.shown_keys(runs), tmp_path) == "s/3  arch=modern  learning_rate=0.001"
    assert json.loads(render(runs, "json"))["runs"][0]["settings"].keys() == set(table.differing(runs))


def test_swept_group_does_not_hide_settings_that_it_does_not_imply(tmp_path: Path) -> None:
    make_sweep(tmp_path / "s", ("article", 0.01), ("modern", 0.01))
    make_run(tmp_path / "s" / "2", model__norm="layernorm", model__bias=False)  # not in the record
    assert table.shown_keys(read_runs([tmp_path / "s"])) == ["model.norm", "model.bias", "optim.learning_rate"]
    (tmp_path / "s" / "sweep.json").write_text('{"space": 3, "jobs": [{}]}')
    assert table.shown_keys(read_runs([tmp_path / "s"])) == ["model.norm", "model.bias", "optim.learning_rate"]


def test_reading_an_ended_run_opens_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        make_run(tmp_path / str(n), loss=n)
    opened: list[Path] = []
    read_bytes = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda path: opened.append(path) or read_bytes(path))
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"opened {path}"))
    monkeypatch.setattr(os, "open", lambda path, *_: pytest.fail(f"opened {path}"))
    assert len(read_runs([tmp_path])) == 20
    assert len(opened) == 40


def test_runs_imports_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    make_run(tmp_path / "outputs" / "a", loss=1.0)
    make_run(tmp_path / "outputs" / "b", None)
    code = (
        "import sys; from microgpt_cli.cli import main as cli; assert cli.main(['runs']) == 0;"
        "assert cli.main(['compare', 'outputs/a', 'outputs/b', 'sample=false', '--cfg', 'job']) == 0;"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules), sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
