"""The page of `microgpt eval per_token=true`: a text coloured by its loss, and where the loss lies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microgpt_cli.insight.pages.charts import line_chart
from microgpt_cli.insight.pages.page import Content, Html, asset, facts, page, table, tag


@dataclass(frozen=True)
class Cost:
    """The tokens of a kind: how they look, how many, nats each, share of the whole loss."""

    name: str
    count: int
    loss: float
    share: float


@dataclass(frozen=True)
class Place:
    """A token that cost much, among its neighbours."""

    number: int  # in the text, the first token being 1
    before: str
    token: str
    after: str
    loss: float
    expected: str


@dataclass(frozen=True)
class Found:
    """Passages of a text that stand in the training text too."""

    text: str  # which text: "the held-out text"
    sentence: str
    rows: Sequence[tuple[str, int, str, str]]  # the words, tokens, where in the text, where in the training text


@dataclass(frozen=True)
class Map:
    """All that the page tells."""

    subtitle: str
    summary: Iterable[tuple[str, str]]
    shown: str  # how much of the text is shown
    data: Mapping[str, Any]  # ids, losses, guesses and names of the shown tokens
    by_token: Sequence[Cost]  # those that cost most in all
    hardest: Sequence[Cost]  # those that cost most each time
    by_context: Sequence[Cost]  # by the token before
    places: Sequence[Place]
    by_position: Sequence[float | None]  # loss after 1 token of context, after 2, …
    levels: Mapping[str, float]  # to compare those with
    context: str  # does longer context help?
    copied: Sequence[Found]


def surprise_page(told: Map) -> str:
    """A whole HTML file."""
    keys = [tag("kbd", key) for key in ("←", "→", "n", "p")]
    points = [(float(i + 1), loss) for i, loss in enumerate(told.by_position) if loss is not None]
    body = [
        facts(told.summary),
        tag("h2", "The text, coloured by its loss"),
        tag(
            "p",
            *(
                "The redder a token, the less the model expected it. ",
                keys[0],
                " ",
                keys[1],
                " move, ",
                keys[2],
                " and ",
            ),
            *(keys[3], " jump to the next and the previous that cost more than 3 nats; or tap a token. ", told.shown),
            class_="quiet",
        ),
        tag("div", id="text", class_="flow", role="listbox", tabindex=0, aria_label="tokens of the text"),
        tag("h2", "Does longer context help?"),
        tag("p", told.context),
        tag("figure", line_chart({"loss": points}, "tokens of context", "loss, nats a token", told.levels)),
        tag("h2", "Where the loss lies"),
        tag(
            "div",
            _costs("Tokens that cost most in all", told.by_token),
            _costs("Tokens that are hardest each time", told.hardest),
            _costs("After which token most is lost", told.by_context),
            class_="columns",
        ),
        tag("h2", "The worst places"),
        table(["loss", "place", "expected", "text"], [_place(place) for place in told.places], [0, 1], words=True),
        tag("h2", "Read before"),
        [_found(found) for found in told.copied],
        tag(
            "nav",
            tag("button", "◀", id="back", type="button", aria_label="the token before"),
            tag("span", "", id="where", aria_live="polite"),
            tag("button", "▶", id="on", type="button", aria_label="the token after"),
            class_="screen",
        ),
    ]
    script, style = asset("text.js") + asset("token_losses.js"), asset("token_losses.css")
    return page("Surprise map", body, subtitle=told.subtitle, script=script, style=style, data=told.data)


def _costs(title: str, costs: Sequence[Cost]) -> Html:
    rows: list[list[Content]] = [
        [tag("code", cost.name), f"{cost.count:,}", f"{cost.loss:.3f}", f"{cost.share:.1%}"] for cost in costs
    ]
    return tag("div", tag("h3", title), table(["token", "times", "loss", "of all"], rows, numbers=[1, 2, 3]))


def _place(place: Place) -> list[Content]:
    words = tag("code", place.before, tag("mark", place.token), place.after)
    number = tag("button", f"{place.number:,}", type="button", class_="jump", data_number=place.number)
    return [f"{place.loss:.2f}", number, tag("code", place.expected), words]


def _found(found: Found) -> list[Html]:
    parts = [tag("h3", found.text), tag("p", found.sentence)]
    if found.rows:
        rows: list[list[Content]] = [[str(n), here, there, tag("code", words)] for words, n, here, there in found.rows]
        parts.append(table(["tokens", "here at", "in training at", "passage"], rows, [0, 1, 2], words=True))
    return parts
