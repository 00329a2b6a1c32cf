"""Build self-contained HTML pages; all text is escaped here.

`page("Title", [tag("p", "any text, <escaped>"), …], script=…, data=…)` is a complete HTML file with the stylesheet
page.css, the common code page.js and the page's own script, which finds its data in `data`. The Content-Security-Policy
forbids every request, so a page does not depend on anything outside of its file.
"""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).resolve().parent
VOID = {
    "br",
    "col",
    "hr",
    "img",
    "input",
    "link",
    "meta",
}  # HTML elements without an end tag
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Html(str):
    """HTML source. Any other string is escaped when it is put into a tag."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content]"


def html(content: Content) -> Html:
    """Escape a string, keep `Html` as it is, and concatenate the parts of a list."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        # lone surrogates, from a prompt that is not UTF-8, can't be encoded
        return Html(escape(content.encode("utf-8", "replace").decode()))
    return Html("".join(map(html, content)))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """An element: `tag("a", "text", href="#top", class_="quiet")`.

    Args:
        content: text, which is escaped, elements, or lists of both.
        attributes: `class_` is class and `data_x` is data-x. True: an attribute without a value; False, None: omitted.
    """
    words = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    start = f"<{name}{''.join(words)}>"
    return Html(start if name in VOID else f"{start}{html(content)}</{name}>")


def table(
    head: Iterable[Content], rows: Iterable[Iterable[Content]], numbers: Iterable[int] = (), words: bool = False
) -> Html:
    """A table that scrolls horizontally if it is too wide.

    Args:
        numbers: the right-aligned columns.
        words: the last of four columns is long: it has its own line on a phone.
    """
    right = set(numbers)

    def row(kind: str, cells: Iterable[Content]) -> Html:
        return tag("tr", [tag(kind, cell, class_="n" if i in right else None) for i, cell in enumerate(cells)])

    body = tag("tbody", [row("td", cells) for cells in rows])
    return tag(
        "div",
        tag("table", tag("thead", row("th", head)), body),
        class_="scroll words" if words else "scroll",
        tabindex=0,
    )


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """A grid of names and values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def asset(name: str) -> str:
    """A stylesheet or script in this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def json_script(data: Any) -> Html:
    """Data for the page's script, with `<`, `>` and `&` escaped so that nothing in it can end the element."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Html(f'<script type="application/json" id="data">{text}</script>')


def page(
    title: str, body: Content, *, subtitle: Content = "", script: str = "", style: str = "", data: Any = None
) -> str:
    """A complete HTML file.

    Args:
        title: plain text, the heading and the name of the tab.
        body: the content below the heading.
        subtitle: a line below the title.
        script: JavaScript of the page, which can use `data` and the functions of page.js; trusted.
        style: CSS of the page in addition to page.css; trusted.
        data: JSON data, available to the script as `data`.
    """
    assert "</" not in style
    assert "</script" not in script.lower()
    head = [
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(asset("page.css") + style)),
    ]
    theme = tag("button", "◐", id="theme", type="button", title="light or dark theme", aria_label="light or dark theme")
    subheading = tag("p", subtitle, class_="quiet") if subtitle else ""
    own = Html(asset("page.js") + script)
    parts = [
        tag("header", tag("div", tag("h1", title), subheading), theme),
        tag("main", body),
        json_script(data),
        tag("script", own),
    ]
    return f'<!doctype html>\n<html lang="en">\n<head>{html(head)}</head>\n<body>{html(parts)}</body>\n</html>\n'
