"""A page that needs nothing but itself, and the one place where text becomes HTML.

`page("Title", [tag("p", "any text, <escaped>"), …], script=…, data=…)` is a whole HTML file: one stylesheet (page.css),
the little that every page does (page.js), then the page's own script, which finds `data` parsed. Its
Content-Security-Policy forbids every request, so that a page opened from a disk ten years on shows the same.
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
}  # of HTML; an SVG element without its end would hold the next
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


class Html(str):
    """Text that is HTML already. Any other text is escaped where it enters a tag."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content]"


def html(content: Content) -> Html:
    """Text, escaped; or `Html`, as it is; or the parts of a list one after another."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        # half of a surrogate pair, as a prompt of odd bytes brings it, is no character that a file can hold
        return Html(escape(content.encode("utf-8", "replace").decode()))
    return Html("".join(map(html, content)))


def tag(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """An element: `tag("a", "text", href="#top", class_="quiet")`.

    Args:
        content: what stands in it: text, which is escaped, or elements, or lists of both.
        attributes: `class_` is class and `data_x` is data-x. True: an attribute without a value; False and None: none.
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
    """A table that scrolls sideways where it is too wide.

    Args:
        numbers: the columns that are set flush right.
        words: the last of four columns is long: on a phone it has a line of its own.
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
    """Names and values in a grid: what a page is about, at a glance."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_="facts")


def asset(name: str) -> str:
    """A stylesheet or a script of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def json_script(data: Any) -> Html:
    """Data for the page's script. Nothing in it can end the element: `<` is written as its code."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Html(f'<script type="application/json" id="data">{text}</script>')


def page(
    title: str, body: Content, *, subtitle: Content = "", script: str = "", style: str = "", data: Any = None
) -> str:
    """A whole HTML file.

    Args:
        title: plain text, the heading and the name of the tab.
        body: what stands under the heading.
        subtitle: a line under the title: of which model, of when.
        script: JavaScript of the page, run at the end with `data` and the functions of page.js; our own text, trusted.
        style: CSS of the page beside the common one; our own text, trusted.
        data: anything JSON can say; in the script it is `data`.
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
    theme = tag("button", "◐", id="theme", type="button", title="light or dark", aria_label="light or dark")
    under = tag("p", subtitle, class_="quiet") if subtitle else ""
    own = Html(asset("page.js") + script)
    parts = [
        tag("header", tag("div", tag("h1", title), under), theme),
        tag("main", body),
        json_script(data),
        tag("script", own),
    ]
    return f'<!doctype html>\n<html lang="en">\n<head>{html(head)}</head>\n<body>{html(parts)}</body>\n</html>\n'
