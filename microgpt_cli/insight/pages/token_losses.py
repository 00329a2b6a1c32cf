"""The page of `microgpt eval per_token=true`: a text coloured by its loss, and the loss by token and context."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microgpt_cli.insight.pages.charts import line_chart
from microgpt_cli.insight.pages.page import Content, Html, asset, facts, page, table, tag


@dataclass(frozen=True)
class TokenRow:
    """The losses of a token, or after a token: its text, count, mean loss, share of the total loss."""

    name: str
    count: int
    loss: float
    share: float


@dataclass(frozen=True)
class WorstToken:
    """A token with a high loss, and its neighbours."""

    number: int  # position in the text, from 1
    before: str
    token: str
    after: str
    loss: float
    predicted: str


@dataclass(frozen=True)
class OverlapReport:
    """Passages of a text that are also in the training text."""

    text: str  # which text: "the validation text"
    sentence: str
    rows: Sequence[tuple[str, int, str, str]]  # the passage, tokens, position in the text, position in training


@dataclass(frozen=True)
class LossReport:
    """The contents of the page."""

    subtitle: str
    summary: Iterable[tuple[str, str]]
    shown: str  # how much of the text is shown
    data: Mapping[str, Any]  # ids, losses, predictions and names of the shown tokens
    by_token: Sequence[TokenRow]  # highest total loss first
    hardest: Sequence[TokenRow]  # highest mean loss first
    by_context: Sequence[TokenRow]  # by preceding token
    worst_tokens: Sequence[WorstToken]
    by_position: Sequence[float | None]  # loss with 1 token of context, with 2, …
    levels: Mapping[str, float]  # baselines
    context: str  # whether longer context helps
    overlaps: Sequence[OverlapReport]


def token_loss_page(report: LossReport) -> str:
    """A complete HTML file."""
    keys = [tag("kbd", key) for key in ("←", "→", "n", "p")]
    points = [(float(i + 1), loss) for i, loss in enumerate(report.by_position) if loss is not None]
    body = [
        facts(report.summary),
        tag("h2", "The text, coloured by its loss"),
        tag(
            "p",
            *(
                "The redder a token, the higher its loss. ",
                keys[0],
                " ",
                keys[1],
                " select the previous or next token, ",
                keys[2],
                " and ",
            ),
            *(keys[3], " the next or previous one with a loss above 3 nats; or tap a token. ", report.shown),
            class_="quiet",
        ),
        tag("div", id="text", class_="flow", role="listbox", tabindex=0, aria_label="tokens of the text"),
        tag("h2", "Does longer context help?"),
        tag("p", report.context),
        tag("figure", line_chart({"loss": points}, "tokens of context", "loss, nats per token", report.levels)),
        tag("h2", "Loss by token"),
        tag(
            "div",
            _token_table("Highest total loss", report.by_token),
            _token_table("Highest mean loss", report.hardest),
            _token_table("Preceding tokens with the highest total loss", report.by_context),
            class_="columns",
        ),
        tag("h2", "Tokens with the highest loss"),
        table(
            ["loss", "position", "predicted", "text"],
            [_worst_token(worst) for worst in report.worst_tokens],
            [0, 1],
            words=True,
        ),
        tag("h2", "Overlap with the training text"),
        [_overlap(overlap) for overlap in report.overlaps],
        tag(
            "nav",
            tag("button", "◀", id="back", type="button", aria_label="previous token"),
            tag("span", "", id="where", aria_live="polite"),
            tag("button", "▶", id="on", type="button", aria_label="next token"),
            class_="screen",
        ),
    ]
    script, style = asset("text.js") + asset("token_losses.js"), asset("token_losses.css")
    return page("Token losses", body, subtitle=report.subtitle, script=script, style=style, data=report.data)


def _token_table(title: str, rows: Sequence[TokenRow]) -> Html:
    cells: list[list[Content]] = [
        [tag("code", row.name), f"{row.count:,}", f"{row.loss:.3f}", f"{row.share:.1%}"] for row in rows
    ]
    return tag("div", tag("h3", title), table(["token", "count", "mean loss", "of total"], cells, numbers=[1, 2, 3]))


def _worst_token(worst: WorstToken) -> list[Content]:
    text = tag("code", worst.before, tag("mark", worst.token), worst.after)
    number = tag("button", f"{worst.number:,}", type="button", class_="jump", data_number=worst.number)
    return [f"{worst.loss:.2f}", number, tag("code", worst.predicted), text]


def _overlap(overlap: OverlapReport) -> list[Html]:
    parts = [tag("h3", overlap.text), tag("p", overlap.sentence)]
    if overlap.rows:
        rows: list[list[Content]] = [
            [str(n), here, there, tag("code", words)] for words, n, here, there in overlap.rows
        ]
        parts.append(table(["tokens", "position", "in training", "passage"], rows, [0, 1, 2], words=True))
    return parts
