"""The outputs that README and docs show are what the program prints; docs/outputs.py writes them."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import TINY, Run

ROOT = Path(__file__).resolve().parent.parent


def load_outputs() -> ModuleType:
    """docs/outputs.py as a module: docs/ is no package."""
    spec = importlib.util.spec_from_file_location("outputs", ROOT / "docs/outputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["outputs"] = module
    spec.loader.exec_module(module)
    return module


outputs = load_outputs()
BLOCKS = [(page, block) for page in outputs.PAGES for block in outputs.blocks(page.read_text(encoding="utf-8"))]
FIXED = [(page, block) for page, block in BLOCKS if block.kind == "output"]
RUNS = [(page, block) for page, block in BLOCKS if block.kind == "run"]


def name_of(value: object) -> str:
    return value.name if isinstance(value, Path) else getattr(value, "command", "")


def shown(page: str, command: str) -> str:
    """What a page shows for a command of a run."""
    [block] = [block for path, block in RUNS if path.name == page and block.command == command]
    return str(block.shown).removeprefix("```text\n").removesuffix("```\n")


@pytest.mark.parametrize(("page", "block"), FIXED, ids=name_of)
def test_output_is_what_the_command_prints(
    page: Path, block: "outputs.Block", microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", outputs.COLUMNS)
    monkeypatch.delenv("XDG_CACHE_HOME")
    ran = microgpt(*block.words)
    assert ran.status == 0, ran.err
    assert block.shown == block.render(ran.out), f"{page.name}: run python docs/outputs.py"


def test_there_are_outputs_of_both_kinds() -> None:
    assert len(FIXED) >= 15
    assert len(RUNS) >= 8
    assert all(block.shown for _, block in FIXED + RUNS), "a block is empty: run python docs/outputs.py runs"


def test_no_marker_is_misspelt() -> None:
    """Every comment about an output is a marker that the script understands, and every block is closed."""
    for page in outputs.PAGES:
        text = page.read_text(encoding="utf-8")
        found = outputs.blocks(text)
        assert sum(text.count(f"<!-- {kind}") for kind in ("output", "run", "setup")) == len(found), page.name
        for block in found:
            outputs.pick([], block.lines)
        assert text.count(outputs.END) == sum(block.kind != "setup" for block in found), page.name


def test_every_chapter_is_read_by_the_script() -> None:
    assert set(outputs.PAGES) == {ROOT / "README.md", *(ROOT / "docs").glob("*.md")}


def test_train_prints_the_labels_that_the_readme_shows(text_file: Path, microgpt: Run) -> None:
    ran = microgpt("train", *TINY, f"data.path={text_file}", "max_steps=30", "eval_interval=10")
    printed = ran.out + ran.err
    readme = shown("README.md", "microgpt train")
    assert outputs.header_labels(readme) == outputs.header_labels(printed)
    assert outputs.result_labels(readme) == outputs.result_labels(printed)


def test_the_glossary_defines_every_label_of_train() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    readme = shown("README.md", "microgpt train")
    labels = [*outputs.header_labels(readme), *outputs.result_labels(readme), "step"]
    assert [name for name in labels if f"\n## {name}\n" not in glossary and f"**{name}**" not in glossary] == []


def test_pick_takes_slices_and_patterns_and_marks_gaps() -> None:
    lines = list("abcdef")
    assert outputs.pick(lines, "") == lines
    assert outputs.pick(lines, ":2, -1:") == ["a", "b", "…", "f"]
    assert outputs.pick(lines, "1:3") == ["…", "b", "c", "…"]
    assert outputs.pick(lines, ":1, /[ce]/") == ["a", "…", "c", "…", "e", "…"]
    with pytest.raises(ValueError, match="3 is no slice"):
        outputs.pick(lines, ":2, 3")


def test_rewriting_replaces_blocks_and_nothing_else() -> None:
    page = (
        "# Title\n\n<!-- setup: microgpt a -->\n<!-- output: microgpt b; lines :1 -->\n<!-- end of output -->\n"
        "text\n<!-- run: microgpt c -->\n```text\n$ microgpt c\nold\n```\n<!-- end of output -->\nend\n"
    )
    once = outputs.rewrite(page, lambda block: block.render("one\ntwo") if block.kind == "output" else None)
    assert once == page.replace("lines :1 -->\n", "lines :1 -->\n```text\n$ microgpt b\none\n…\n```\n")
    assert outputs.rewrite(once, lambda block: block.shown or None) == once
    assert [block.words for block in outputs.blocks(page)] == [["a"], ["b"], ["c"]]
