"""The page of `microgpt inspect`: the predictions of every layer and the attention of every head at each position."""

from collections.abc import Iterable, Mapping
from typing import Any

from microgpt_cli.insight.pages.page import asset, facts, page, tag


def logit_lens_page(subtitle: str, summary: Iterable[tuple[str, str]], data: Mapping[str, Any]) -> str:
    """A whole HTML file.

    Args:
        subtitle: which model.
        summary: names and values at the top.
        data: from `insight.logit_lens.to_json`.
    """
    keys = [tag("kbd", "←"), " ", tag("kbd", "→"), " select the previous or next token, or tap one."]
    body = [
        facts(summary),
        tag("h2", "Loss of each token"),
        tag("p", "The redder a token, the higher its loss. ", *keys, class_="quiet"),
        tag("div", id="text", class_="flow", role="listbox", tabindex=0, aria_label="tokens of the text"),
        tag("div", id="next", class_="card", aria_live="polite"),
        tag("h2", "Predictions of each layer (logit lens)"),
        tag(
            "p",
            "The most probable next token after each layer: the final norm and head applied to the residual stream. "
            "The colour shows the probability; correct predictions are underlined.",
            class_="quiet",
        ),
        tag("div", id="lens", class_="scroll", tabindex=0),
        tag("div", id="layers", class_="scroll", tabindex=0),
        tag("h2", "Attention"),
        tag(
            "p",
            "Attention weights of each head, from a position (row) to itself and earlier positions (columns). "
            "Select a head; ",
            *[tag("kbd", key) for key in "↑↓←→"],
            " move between heads when one is focused.",
            class_="quiet",
        ),
        tag(
            "button",
            "scale each row to its maximum",
            id="relative",
            type="button",
            aria_pressed="false",
            class_="screen",
        ),
        tag(
            "div",
            tag("div", tag("div", id="heads", aria_label="heads"), class_="scroll"),
            tag(
                "div",
                tag("h3", "", id="chosen"),
                tag("div", tag("canvas", id="map"), tag("div", id="row"), tag("div", id="column"), id="mapbox"),
                tag("p", "", id="readout", class_="quiet", aria_live="polite"),
                tag("div", id="shaded", class_="flow"),
            ),
            class_="columns",
        ),
        tag(
            "nav",
            tag("button", "◀", id="back", type="button", aria_label="previous token"),
            tag("span", "", id="where"),
            tag("button", "▶", id="on", type="button", aria_label="next token"),
            class_="screen",
        ),
    ]
    return page(
        "Model inspection",
        body,
        subtitle=subtitle,
        script=asset("text.js") + asset("logit_lens.js"),
        style=asset("logit_lens.css"),
        data=data,
    )
