"""The shared room of the pages: escaping, and what every page does in a real browser."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.browser import Browser

from microgpt_cli.insight.pages.charts import line_chart, ticks
from microgpt_cli.insight.pages.page import facts, html, json_script, page, table, tag

HOSTILE = '</script><script>document.title = "broken"</script><img src=x onerror=\'document.title = "broken"\'>&amp;"'


@given(st.text(st.characters()))
def test_no_text_becomes_markup(text: str) -> None:
    for made in (html(text), tag("p", text)[3:-4], tag("p", title=text)[10:-6]):
        assert not set(made) & set("<>\"'")
    made = json_script({"text": text})
    inside = made.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert not set(inside) & set("<>&")
    assert inside.isascii()
    assert json.loads(inside) == {"text": text}


def test_elements_nest_and_attributes_are_said_once() -> None:
    assert tag("p", "a < b ", tag("b", "c")) == "<p>a &lt; b <b>c</b></p>"
    assert tag("td", ["x", tag("br")], class_="n", data_row=3, hidden=True, id=None) == (
        '<td class="n" data-row="3" hidden>x<br></td>'
    )
    assert '<td>a</td><td class="n">1</td>' in table(["name", "n"], [["a", "1"]], numbers=[1])
    assert facts([("loss", "1.5")]) == '<dl class="facts"><div><dt>loss</dt><dd>1.5</dd></div></dl>'


def test_no_number_that_json_lacks_gets_in() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        page("x", "", data=float("nan"))


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_in_a_browser(browser: Browser, tmp_path: Path, dark: bool) -> None:
    """Hostile text stays text, the switch of light and dark works, nothing is wider than a phone."""
    file = tmp_path / "page.html"
    script = "document.querySelector('main').append(el('p', {id: 'made'}, data.text));"
    body = [tag("p", HOSTILE, id="given"), tag("p", "x" * 300), table(["a"], [["x" * 300]])]
    file.write_text(page(HOSTILE, body, subtitle=HOSTILE, script=script, data={"text": HOSTILE}), encoding="utf-8")
    with browser.open(file, width=390, dark=dark) as tab:
        assert tab.js("document.title") == HOSTILE
        for selector in ("h1", "#given", "#made"):
            assert tab.js(f"document.querySelector('{selector}').textContent") == HOSTILE
        assert tab.js("document.querySelectorAll('img').length") == 0
        assert tab.overflow() == 0
        assert tab.js("isDark()") == dark
        tab.js("document.addEventListener('theme', () => { window.seen = [...(window.seen || []), isDark()]; })")
        tab.call("Page.printToPDF")
        assert tab.js("window.seen") == [False, dark]
        colours = [tab.js("getComputedStyle(document.body).backgroundColor")]
        tab.tap("#theme")
        colours.append(tab.js("getComputedStyle(document.body).backgroundColor"))
        assert sum(map(int, colours[dark][4:-1].split(","))) > 600 > sum(map(int, colours[not dark][4:-1].split(",")))


def test_a_tab_knows_nothing_of_the_one_before(browser: Browser, tmp_path: Path) -> None:
    """The switch of light and dark is remembered; here no test may find what another left."""
    file = tmp_path / "page.html"
    file.write_text(page("x", ""), encoding="utf-8")
    for _ in range(2):
        with browser.open(file, width=390) as tab:
            assert tab.js("isDark()") is False
            tab.tap("#theme")
            assert tab.js("isDark()") is True


def test_the_fixture_notices_errors_and_requests(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    for wrong in ("nothing.here", "console.error('x')", "new Image().src = 'https://example.com/'"):
        file.write_text(page("x", "", script=wrong), encoding="utf-8")
        with pytest.raises(AssertionError), browser.open(file):
            pass
    file.write_text("<img src='other.png'>", encoding="utf-8")
    with pytest.raises(AssertionError), browser.open(file):
        pass


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    made = ticks(low, low + span)
    assert 1 <= len(made) <= 8
    assert made == sorted(set(made))
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in made)


def test_a_chart_has_its_lines_and_leaves_out_what_is_no_number() -> None:
    chart = line_chart(
        {"train <": [(0, 3.0), (1, float("nan")), (2, 1.0)], "val": [(1, 2.0)]}, "step", "loss", {"bigram": 2.5}
    )
    assert chart.count("<polyline") == 2
    assert "train &lt;" in chart
    assert "bigram 2.500" in chart
    [points] = re.findall(r'<polyline points="([^"]+ [^"]+)"', chart)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1
    assert y0 < y1  # down is up in SVG
    assert "<polyline" in line_chart({"nothing": []}, "x", "y")
    assert "<polyline" in line_chart({"flat": [(1, 1), (2, 1)]}, "x", "y")
