"""`microgpt report`: what a run came to, on one page, as a real browser shows it."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Run
from support.browser import Browser

from microgpt_cli.cli import main as cli
from microgpt_cli.errors import UserError
from microgpt_cli.insight.pages.report import MOST_POINTS, Chart, Curve, thinned
from microgpt_cli.runs import layout
from microgpt_cli.runs.run_summary import read_about
from microgpt_cli.runs.samples import Sample, append_sample

OVERFIT = [(step, 3 - step / 100 if step <= 100 else 1.5 + step / 200) for step in range(20, 401, 20)]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run that overfits from step 100 on, with three samples, one of which is hostile."""
    folder = Path(shutil.copytree(trained, tmp_path / "a run"))
    lines = [{"step": step, "tokens": step, "val_loss": loss} for step, loss in OVERFIT]
    for step in range(5, 401, 5):
        lines.append({"step": step, "tokens": step, "loss": 3 - step / 200, "learning_rate": 1e-3, "grad_norm": 1.0})
    lines.sort(key=lambda line: (line["step"], "val_loss" in line))
    (folder / layout.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / layout.SAMPLES).unlink()
    for step, text in ((100, "first"), (200, "</script><img src=x onerror=alert(1)>"), (300, "the last")):
        append_sample(folder, Sample(step, text))
    return folder


def report(microgpt: Run, folder: Path, *words: str) -> Path:
    ran = microgpt("report", str(folder), *words)
    assert ran.status == 0, ran.err
    assert ran.out.startswith("page ")
    return folder / "report.html"


def test_the_page_has_what_a_reader_wants(microgpt: Run, run: Path) -> None:
    page = report(microgpt, run).read_text(encoding="utf-8")
    for part in ("What differs from the defaults", "Where the parameters are", "Where the time went", "What to type"):
        assert part in page
    assert "Overfitting since step 100" in page
    assert "counting pairs of characters" in page
    for name in ("token_embedding_table", "position_embedding_table", "blocks", "ln_f", "lm_head"):
        assert name in page
    for work in ("training steps", "evaluating", "sampling", "saving"):
        assert f"<span>{work}</span>" in page
    assert "model.n_embd" in page


def test_the_command_to_reproduce_gives_the_same_config(microgpt: Run, run: Path) -> None:
    page = report(microgpt, run).read_text(encoding="utf-8")
    typed = re.findall(r"<code>microgpt (.*?)</code>", page)
    again = next(shlex.split(words.replace("&#x27;", "'")) for words in typed if "data.path" in words)
    made = dataclasses.asdict(cli.load_config("train", again[1:]))
    stored = json.loads((run / "config.json").read_text())
    places = {"out_dir": None, "resume": None, "from_run": None, "data": {}}
    assert made | places == stored | places
    assert made["data"]["path"] == stored["data"]["path"]
    for words in typed:
        verb, *rest = shlex.split(words.replace("&#x27;", "'"))
        assert microgpt(verb, *rest, "--cfg", "job").status == 0


def test_what_was_typed_is_shown_only_if_it_still_gives_the_run(microgpt: Run, run: Path) -> None:
    typed = run / ".hydra" / "overrides.yaml"

    def shown() -> str:
        return re.findall(r"<code>(microgpt train .*?)</code>", report(microgpt, run).read_text(encoding="utf-8"))[-1]

    words = typed.read_text()
    assert shown().startswith("microgpt train model.n_layer=1 model.n_head=2")  # as it was typed
    assert "out_dir" not in shown()
    for lie in (
        f"{words}- max_steps=31\n",
        f"{words}- zzz=1\n",
        f"{words}- seed=${{oc.env:HOME}}\n",
        "3",
        "[",
        f"{words}- model=x\n",
    ):
        typed.write_text(lie)
        assert "max_steps=30" in shown()
        assert "oc.env" not in shown()
        assert "zzz" not in shown()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_in_a_browser(microgpt: Run, run: Path, browser: Browser, width: int, dark: bool) -> None:
    with browser.open(report(microgpt, run), width=width, dark=dark) as tab:
        assert tab.overflow() <= 0
        assert tab.js("document.querySelectorAll('.chart-box svg').length") == 4
        assert "overfitting from here" in tab.js("document.querySelector('#loss svg').textContent")
        names = tab.js(
            "[...document.querySelectorAll('#loss .level-name')].map((name) => name.textContent.split(' ')[0])"
        )
        assert names == ["uniform", "unigram", "bigram"]
        assert tab.text("#sample") == "the last"
        assert tab.text("#frame-name").startswith("step 300, val_loss ")
        assert tab.js("document.images.length") == 0


def test_values_follow_mouse_finger_and_keys(microgpt: Run, run: Path, browser: Browser) -> None:
    page = report(microgpt, run)
    with browser.open(page) as tab:
        assert "step" not in tab.text("#loss .readout")
        x, y = tab.middle("#loss svg")
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        middle = tab.text("#loss .readout")
        assert re.search(r"step (19|20|21)\d", middle), middle
        tab.js("document.querySelector('#loss svg').focus()")
        items = "[...document.querySelectorAll('#loss .item')].map((item) => item.innerText)"
        tab.press("Home")
        assert tab.js(items) == ["step 5", "train 2.975"]
        tab.press("End")
        assert tab.js(items) == ["step 400", "held out 3.5", "train 1"]
        tab.press("ArrowLeft")
        assert tab.js(items)[0] == "step 395"
    with browser.open(page, width=390) as tab:
        tab.tap("#norm svg")
        assert "gradient norm" in tab.text("#norm .readout")


def test_the_film_slides_and_plays(microgpt: Run, run: Path, browser: Browser) -> None:
    with browser.open(report(microgpt, run)) as tab:
        tab.js("document.getElementById('frame').focus()")
        tab.press("ArrowLeft")
        assert tab.text("#sample") == "</script><img src=x onerror=alert(1)>"
        assert tab.text("#frame-name").startswith("step 200")
        tab.press("Home")
        assert tab.text("#sample") == "first"
        tab.js("window.setInterval = (f) => { f(); f(); return 1; }")  # no test waits for a clock
        tab.click("#play")
        assert tab.text("#sample") == "the last"


def test_on_paper_charts_are_drawn_for_the_sheet_and_nothing_slides(microgpt: Run, run: Path, browser: Browser) -> None:
    with browser.open(report(microgpt, run)) as tab:
        tab.js("dispatchEvent(new Event('beforeprint'))")
        tab.call("Emulation.setEmulatedMedia", media="print")
        assert tab.js("document.querySelector('#loss svg').viewBox.baseVal.width") == 700
        assert tab.js("getComputedStyle(document.querySelector('.film')).display") == "none"
        assert "first" in tab.text(".paper")
        assert tab.call("Page.printToPDF")["data"]


def test_a_name_is_text(microgpt: Run, run: Path, browser: Browser) -> None:
    hostile = run.rename(run.with_name("<b onclick=alert(1)>$x"))
    with browser.open(report(microgpt, hostile)) as tab:
        assert tab.text("h1") == "<b onclick=alert(1)>$x"


def test_a_run_that_is_older_or_has_hardly_begun_has_a_page_too(microgpt: Run, run: Path, browser: Browser) -> None:
    for name in (layout.ABOUT, layout.METRICS, layout.TIMINGS, layout.SAMPLES, layout.RESULT):
        (run / name).unlink()
        with browser.open(report(microgpt, run)) as tab:
            assert tab.text("h1") == "a run"
            assert "What to type" in tab.text("main")


def test_a_damaged_about_is_one_line(microgpt: Run, run: Path) -> None:
    about = json.loads((run / layout.ABOUT).read_text())
    for change in ({"unit": 3}, {"train_tokens": -1}, {"baselines": {"uniform": 1.0}}, {"parts": {"a": "b"}}):
        (run / layout.ABOUT).write_text(json.dumps(about | change))
        ran = microgpt("report", str(run))
        assert (ran.status, ran.err.count("\n")) == (2, 1)
        assert "about.json: damaged" in ran.err
    with pytest.raises(UserError):
        read_about(run)


def test_the_page_goes_where_it_is_asked_to(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    before = sorted(trained.iterdir())
    assert microgpt("report", str(trained), f"out={tmp_path}/r.html").status == 0
    assert (tmp_path / "r.html").stat().st_size < 100_000
    assert sorted(trained.iterdir()) == before


def test_a_sweep_has_its_table_its_curves_and_its_settings(
    microgpt: Run, trained: Path, tmp_path: Path, browser: Browser
) -> None:
    for number, (rate, width, loss) in enumerate([(1e-3, 16, 2.5), (1e-2, 16, 2.4), (1e-2, 32, 2.3)]):
        job = Path(shutil.copytree(trained, tmp_path / "sweep" / str(number)))
        config = json.loads((job / "config.json").read_text())
        config["optim"]["learning_rate"], config["model"]["n_embd"] = rate, width
        (job / "config.json").write_text(json.dumps(config))
        result = json.loads((job / "result.json").read_text())
        (job / "result.json").write_text(json.dumps(result | {"best_val_loss": loss}))
    with browser.open(report(microgpt, tmp_path / "sweep"), width=390) as tab:
        assert tab.overflow() <= 0
        rows = tab.js("[...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].innerText)")
        assert rows == ["2", "1", "0"]
        assert tab.js("document.querySelectorAll('.chart-box svg').length") == 3
        assert "Best val_loss against optim.learning_rate" in tab.text("main")
        assert tab.js("document.querySelectorAll('#loss polyline').length") == 3


def test_a_long_curve_is_thinned_to_means() -> None:
    assert thinned([(1, 2.0), (2, 4.0)]) == [[1, 2.0], [2, 4.0]]
    many = thinned([(step, float(step % 2)) for step in range(10 * MOST_POINTS)])
    assert len(many) == MOST_POINTS
    assert {y for _, y in many} == {0.5}


def test_one_outlier_does_not_press_a_curve_flat() -> None:
    points = [(step, 2.0 + step % 7 / 10) for step in range(200)]
    calm = Chart("c", "c", [Curve("", "--c1", points)]).data()["high"]
    assert Chart("c", "c", [Curve("", "--c1", [*points, (201, 1e6)])]).data()["high"] == calm


def test_it_does_not_import_torch(trained: Path, tmp_path: Path) -> None:
    words = ["report", str(trained), f"out={tmp_path}/r.html"]
    code = f"import sys; from microgpt_cli.cli import main as cli; cli.main({words!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    assert (tmp_path / "r.html").exists()
    assert "torch" not in done.stdout.split()


def test_a_run_costs_little_for_its_report(trained: Path) -> None:
    """Beside the log of its steps a run notes one line a pause, and one file."""
    pauses = [line for line in (trained / layout.TIMINGS).read_text().splitlines() if "tokens_per_sec" not in line]
    assert len(pauses) == 3 + 3 + 2  # evaluations, checkpoints, samples on the way
    assert (trained / layout.ABOUT).stat().st_size < 2000
