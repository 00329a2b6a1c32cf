"""`microgpt inspect`: what it prints, and its page in a real browser."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Run, preset
from support.browser import Browser

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.config import InspectConfig
from microgpt_cli.data.tokenizers import visible
from microgpt_cli.errors import UserError
from microgpt_cli.insight.logit_lens import look, to_json
from microgpt_cli.insight.pages.logit_lens import inside_page
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout

PROMPT = "The fox\n"


def test_it_prints_positions_layers_and_heads_and_writes_a_page(microgpt: Run, trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    ran = microgpt("inspect", str(trained), f"prompt={PROMPT}", "device=cpu")
    assert ran.status == 0, ran.err
    assert "\x1b" not in ran.out  # piped, so plain
    loaded = checkpoint.load(layout.find_checkpoint(str(trained)))
    model = checkpoint.build_model(loaded, torch.device("cpu")).eval()
    ids = torch.tensor([list(loaded.tokenizer.encode(PROMPT))])
    with torch.no_grad():
        logits, loss = model(ids[:, :-1], ids[:, 1:])
    assert f"loss {loss:.4f} nats a token over 7; 8 tokens:" in ran.out
    best = logits[0, -1].softmax(-1).max()
    rows = [line.split() for line in ran.out.splitlines() if re.match(r" +\d+  \S", line)]
    assert [row[1] for row in rows] == ["T", "h", "e", "␣", "f", "o", "x", "↵"]
    assert rows[6][5] == f"{best:.0%}"
    assert re.search(r"^ embedding  .*\n   layer 1  ", ran.out, re.MULTILINE)
    assert re.search(r"^  1\.1 .*1\.2 ", ran.out, re.MULTILINE)
    assert ran.out.rstrip().endswith("page      inspect.html (open it in a browser; it needs no network)")
    assert Path("inspect.html").stat().st_size < 100_000
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_text_longer_than_the_context_is_cropped_aloud(microgpt: Run, trained: Path) -> None:
    Path("p.txt").write_text("The quick brown fox")
    ran = microgpt("inspect", str(trained), "prompt_file=p.txt", "out=null")
    assert "the text has 19 tokens; looking at the last 8: the model sees 8" in ran.err
    assert "page" not in ran.out
    assert list(Path().glob("*.html")) == []
    ran = microgpt("inspect", str(trained), "prompt_file=p.txt", "max_tokens=3")
    assert "looking at the last 3: max_tokens=3" in ran.err
    assert microgpt("inspect", str(trained), "prompt=T").status == 0


def test_what_is_mistaken_costs_a_line_before_any_work(microgpt: Run, trained: Path) -> None:
    for words, line in (
        ([], "prompt is required"),
        (["prompt=a", "prompt_file=b"], "not both"),
        (["prompt=ab李"], "character '李'"),
        (["prompt=a", "out=no/such/x.html"], "out=no/such/x.html: no such folder"),
        (["prompt=a", f"out={trained}"], "a folder; give a file"),
        (["prompt=a", "max_tokens=0"], "must be at least 1"),
    ):
        ran = microgpt("inspect", str(trained), *words)
        assert ran.status == 2
        assert line in ran.err
        assert ran.err.count("\n") == 1 or "李" in line
    with pytest.raises(UserError, match="device=gpu"):
        InspectConfig("latest", "x", None, 1, None, "gpu", "auto", None)


def test_the_page_of_small_at_256_is_under_2_mb() -> None:
    torch.manual_seed(0)
    model = GPT(preset("small", "modern"), 65).eval()
    seen = look(model, torch.randint(65, (256,)), 5)
    assert len(inside_page("x", [], to_json(seen, chr)).encode()) < 2_000_000


@pytest.fixture(scope="module")
def page(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A page about a hostile text, and its data."""
    loaded = checkpoint.load(layout.find_checkpoint(str(trained)))
    model = checkpoint.build_model(loaded, torch.device("cpu")).eval()
    seen = look(model, torch.tensor(list(loaded.tokenizer.encode(PROMPT))), 5)
    data = to_json(seen, lambda token: visible(loaded.tokenizer, token).replace("o", "</script><b>"))
    file = tmp_path_factory.mktemp("page") / "inspect.html"
    file.write_text(inside_page("a <run>", [("loss", "<i>")], data), encoding="utf-8")
    return file, data


def test_the_page_shows_the_numbers_and_is_moved_by_keys(browser: Browser, page: tuple[Path, dict]) -> None:
    file, data = page
    own, names = data["guesses"][-1], data["names"]
    with browser.open(file) as tab:
        assert tab.text("header p") == "a <run>"
        assert tab.js("document.querySelectorAll('#text span').length") == 8
        assert tab.js("document.querySelectorAll('main b b').length") == 0
        assert tab.text("#where").startswith(f"8 of 8 ↵ loss {own['losses'][6]:.2f}; next ")
        for key, at in (("ArrowLeft", 6), ("ArrowLeft", 5), ("ArrowRight", 6), ("ArrowLeft", 5)):
            tab.press(key)
            assert tab.js("at") == at
            assert (
                tab.js("[...document.querySelectorAll('#text .at, #shaded .at')].map(e => e.dataset.at)")
                == [str(at)] * 2
            )
        assert f"loss {own['losses'][5]:.3f} nats" in tab.text("#next")
        bars = tab.js("[...document.querySelectorAll('.bar')].map(e => e.firstChild.textContent)")
        assert bars == [names[str(token)] for token in own["tokens"][5]]
        cells = tab.js("[...document.querySelectorAll('#lens tbody tr')].map(r => r.cells[6].textContent)")
        assert cells == [names[str(guess["tokens"][5][0])] for guess in data["guesses"]]
        assert tab.js("[...Array(6).keys()].reduce((s, to) => s + weight(0, 0, 5, to), 0)") == pytest.approx(
            1, abs=0.02
        )
        tab.js("document.querySelector('#heads button').focus()")
        tab.press("ArrowRight")
        assert tab.js("[at, layer, head]") == [5, 0, 1]
        assert tab.text("#chosen") == "Layer 1, head 2"
        tab.press("ArrowRight")
        assert tab.js("[at, layer, head]") == [5, 0, 0]
        pale = "find('map').getContext('2d').getImageData(0, 7, 8, 1).data.join()"
        before = tab.js(pale)
        tab.click("#relative")
        assert tab.js(pale) != before
        assert tab.js("document.activeElement.id") == "relative"
        tab.press("ArrowRight")
        tab.press("ArrowLeft")
        tab.js("document.activeElement.blur()")
        for key in ("ArrowUp", "ArrowDown"):
            tab.press(key)  # those scroll the page
        assert tab.js("[at, layer, head]") == [5, 0, 0]


def test_the_page_is_moved_by_a_finger_and_fits_a_phone(browser: Browser, page: tuple[Path, dict]) -> None:
    file, data = page
    for dark in (False, True):
        with browser.open(file, width=390, height=800, dark=dark) as tab:
            assert tab.overflow() == 0
            tab.tap("#text-2")
            assert tab.js("at") == 2
            tab.tap("#shaded-1")
            assert tab.js("at") == 1
            tab.tap("#on")
            assert tab.js("at") == 2
            tab.tap("#heads button:last-child")
            assert tab.text("#chosen") == "Layer 1, head 2"
            tab.tap("#map")
            row, column = tab.js("[at, column]")  # the middle of eight cells
            assert {row, column} <= {3, 4}
            read = tab.text("#readout")
            assert read.startswith(f"From “{data['names'][str(data['ids'][row])]}” ({row + 1}) this head looks: ")
            if column <= row:
                assert read.endswith(f"({column + 1}).")
                assert float(read.split("looks: ")[1].split("%")[0]) / 100 == pytest.approx(
                    tab.js("weight(0, 1, at, column)"), abs=0.006
                )
            tab.tap("#theme")
            assert tab.js("isDark()") != dark
