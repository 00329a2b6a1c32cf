"""The diagram shows the traced model: its boxes, sums and arrows, without overlaps."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest
import torch
from conftest import ARCHES, Run, preset
from torch import Tensor

from microgpt_cli.insight import diagram_svg, diagram_text
from microgpt_cli.insight.diagram import Box, Diagram, Part, Repeat, Sum, boxes, diagram
from microgpt_cli.insight.diagram_svg import Line, Rect, Text
from microgpt_cli.insight.trace import trace
from microgpt_cli.model.accounting import meta_model, total_parameters
from microgpt_cli.model.gpt import GPT
from microgpt_cli.model.layers import Block

BIG = {"n_layer": 48, "n_head": 25, "n_embd": 1600, "block_size": 1024}


def drawn(arch: str, **changes: object) -> Diagram:
    model = GPT(preset("micro", arch, **changes), 65)
    return diagram(model, trace(model, 4, model.config.block_size))


def drawn_big(arch: str) -> Diagram:
    """The sizes of gpt2-xl with few blocks."""
    model = meta_model(preset("gpt2-xl", arch, n_layer=2), 50257)
    return diagram(model, trace(model, 16, 1024))


def repeated(what: Diagram) -> Repeat:
    [part] = [part for part in what.parts if isinstance(part, Repeat)]
    return part


def total(parts: list[Part]) -> int:
    counts = [part.count * total(part.parts) for part in parts if isinstance(part, Repeat)]
    own = [box.parameters for box in boxes([part for part in parts if not isinstance(part, Repeat)])]
    return sum(counts) + sum(own)


@pytest.mark.parametrize("arch", ARCHES)
def test_parameters_of_the_boxes_sum_to_those_of_the_model(arch: str) -> None:
    what = drawn(arch)
    assert total(what.parts) == what.parameters == total_parameters(GPT(preset("micro", arch), 65))


def test_boxes_of_the_article_model() -> None:
    what = drawn("article")
    token, join, block, norm, head = what.parts
    assert isinstance(token, Box)
    assert (token.title, token.role, token.inside) == ("Token embedding", "embedding", ["V × C = 65 × 64"])
    assert isinstance(join, Sum)
    assert [box.title for box in join.side_boxes] == ["Position embedding"]
    assert isinstance(block, Repeat)
    assert (block.name, block.count, block.parameters) == ("Block", 4, 49_792)
    assert [(type(part).__name__, part.skips) for part in block.parts] == [
        *(("Box", []), ("Box", []), ("Sum", [-1])),
        *(("Box", []), ("Box", []), ("Sum", [2])),
    ]
    assert [box.title for box in boxes(block.parts)] == ["LayerNorm", "Causal self attention", "LayerNorm", "MLP"]
    assert [box.name for box in boxes([norm, head])] == ["ln_f", "lm_head"]
    assert not any(box.tied for box in boxes(what.parts))


# What of a model must be seen in its picture, and what must not
KINDS = {
    "article": (
        ["Position embedding", "LayerNorm", "ReLU", "2,048"],
        ["rotary", "QK-norm", "tied", "RMSNorm", "GELU", "²"],
    ),
    "gpt2": (
        ["Position embedding", "LayerNorm", "GELU", "tied", "same weights"],
        ["rotary", "QK-norm", "RMSNorm", "ReLU"],
    ),
    "modern": (
        ["rotary: q and k", "QK-norm: RMSNorm", "ReLU²"],
        ["Position embedding", "LayerNorm", "tied", "same weights"],
    ),
}


@pytest.mark.parametrize("arch", ARCHES)
def test_each_architecture_has_its_own_diagram(arch: str) -> None:
    what = drawn(arch)
    there, missing = KINDS[arch]
    svg = "".join(ElementTree.fromstring(diagram_svg.svg(diagram_svg.draw(what), "auto")).itertext())
    for page in (diagram_text.text(what), svg):
        assert [words for words in there if words not in page] == []
        assert [words for words in missing if words in page] == []
        for words in ("(B, T) = (4, 32)", "(B, T, C) = (4, 32, 64)", "logits (B, T, V) = (4, 32, 65)", "softmax"):
            assert words in page


def parallel(self: Block, x: Tensor) -> Tensor:
    return x + self.attention(self.ln1(x)) + self.mlp(self.ln2(x))


def test_diagram_follows_a_changed_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block with parallel attention and MLP, as in GPT-J."""
    monkeypatch.setattr(Block, "forward", parallel)
    parts = repeated(drawn("article")).parts
    assert [part.skips for part in parts] == [[], [], [-1], [-1], [], [2]]
    assert diagram_svg.svg(diagram_svg.draw(drawn("article")), "light").count('class="plus"') == 3


def test_different_blocks_are_drawn_separately() -> None:
    model = GPT(preset("micro", "article"), 65)
    model.blocks[1].mlp = torch.nn.Identity()
    what = diagram(model, trace(model, 1, 4))
    assert [part.count for part in what.parts if isinstance(part, Repeat)] == [1, 1, 2]
    diagram_svg.draw(what)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("arch", ARCHES)
def test_shapes_do_not_overlap(arch: str, big: bool) -> None:
    drawing = diagram_svg.draw(drawn_big(arch) if big else drawn(arch))
    rects = [each for each in drawing.shapes if isinstance(each, Rect) and each.role != "frame"]
    assert len(rects) >= 8
    for a, b in combinations(rects, 2):
        beside = a.x + a.width < b.x or b.x + b.width < a.x
        assert beside or a.y + a.height < b.y or b.y + b.height < a.y
    spans = []
    for words in (each for each in drawing.shapes if isinstance(each, Text)):
        width = len(words.words) * words.size * 0.6
        left = words.x - {"start": 0, "middle": width / 2, "end": width}[words.anchor]
        assert left > 0
        assert left + width < diagram_svg.WIDTH
        spans.append((words, left, left + width))
        for rect in rects:
            outside = words.y < rect.y or words.y - words.size * 0.75 > rect.y + rect.height
            inside = rect.y < words.y - words.size * 0.75 and words.y < rect.y + rect.height
            assert outside or inside or left > rect.x + rect.width or left + width < rect.x, words
    for (a, left, right), (b, other_left, other_right) in combinations(spans, 2):
        assert abs(a.y - b.y) > 10 or right < other_left or other_right < left, (a, b)
    points = [point for each in drawing.shapes if isinstance(each, Line) for point in each.points]
    assert all(0 < x < diagram_svg.WIDTH and 0 < y < drawing.height for x, y in points)


@pytest.mark.parametrize("arch", ARCHES)
def test_text_fits_80_columns_and_has_every_box(arch: str) -> None:
    for what in (drawn(arch), drawn_big(arch)):
        lines = diagram_text.text(what).splitlines()
        assert max(map(len, lines)) <= 84
        named = [box.name for box in boxes(what.parts)]
        assert [name for name in named if not any(name in line for line in lines)] == []
        assert sum("⊕" in line for line in lines) == 2 + (arch != "modern")
        assert sum("►" in line for line in lines) == 2 + (arch != "modern")


def test_svg_is_self_contained_with_light_and_dark_themes() -> None:
    drawing = diagram_svg.draw(drawn("article"))
    pages = {theme: diagram_svg.svg(drawing, theme) for theme in ("auto", "light", "dark")}
    assert "prefers-color-scheme:dark" in pages["auto"]
    assert pages["light"] != pages["dark"]
    for page in pages.values():
        assert len(page) < 20_000
        assert not re.search(r"href|url\(|@import|<script|<image", page)
    light, dark = (diagram_svg.png(drawing, theme) for theme in ("auto", "dark"))
    assert light != dark
    for png in (light, dark):
        assert png.startswith(b"\x89PNG")
        assert int.from_bytes(png[16:20], "big") == 2 * diagram_svg.WIDTH


def test_diagram_command_writes_the_files(microgpt: Run, trained: Path, tmp_path: Path) -> None:
    ran = microgpt("diagram")
    assert (ran.status, ran.err) == (0, "written to diagram.svg\n")
    assert "Block × 4" in ran.out
    assert ElementTree.parse(tmp_path / "diagram.svg").getroot().tag.endswith("svg")
    ran = microgpt("diagram", str(trained), "out=run.PNG", "theme=dark", "batch=2")
    assert "(B, T, C) = (2, 8, 16)" in ran.out
    assert (tmp_path / "run.PNG").read_bytes().startswith(b"\x89PNG")
    ran = microgpt("diagram", "out=null", "arch=gpt2")
    assert (ran.status, ran.err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diagram.svg", "run.PNG"]


def test_readme_diagrams_match_the_command(microgpt: Run, tmp_path: Path) -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    microgpt("diagram", "out=now.svg")
    is_same = (tmp_path / "now.svg").read_bytes() == (docs / "diagram.svg").read_bytes()
    assert is_same  # else: microgpt diagram out=docs/diagram.svg
