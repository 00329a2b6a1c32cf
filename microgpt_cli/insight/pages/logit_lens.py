"""The page of `microgpt inspect`: a text, and at each of its positions what every layer and head made of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from microgpt_cli.insight.pages.page import asset, facts, page, tag


def inside_page(subtitle: str, summary: Iterable[tuple[str, str]], data: Mapping[str, Any]) -> str:
    """A whole HTML file.

    Args:
        subtitle: which model.
        summary: names and values to show at the top.
        data: what `inspection.inside.to_json` gives.
    """
    keys = [tag("kbd", "←"), " ", tag("kbd", "→"), " move through the text, or tap a token."]
    body = [
        facts(summary),
        tag("h2", "The text, as the model was surprised by it"),
        tag("p", "The redder a token, the less it was expected from those before it. ", *keys, class_="quiet"),
        tag("div", id="text", class_="flow", role="listbox", tabindex=0, aria_label="tokens of the text"),
        tag("div", id="next", class_="card", aria_live="polite"),
        tag("h2", "Layer by layer"),
        tag(
            "p",
            "What the model would say next if it ended after each layer (its last norm and head on what the layer left "
            "in the residual, “logit lens”). The stronger the colour, the surer; underlined is what did come next.",
            class_="quiet",
        ),
        tag("div", id="lens", class_="scroll", tabindex=0),
        tag("div", id="layers", class_="scroll", tabindex=0),
        tag("h2", "Attention"),
        tag(
            "p",
            "Where each head looks: from a position (row, from the top) to itself and those before it (columns). "
            "Choose a head; with the keyboard, ",
            *[tag("kbd", key) for key in "↑↓←→"],
            " once one has the focus.",
            class_="quiet",
        ),
        tag(
            "button",
            "scale each row to its largest",
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
            tag("button", "◀", id="back", type="button", aria_label="the token before"),
            tag("span", "", id="where"),
            tag("button", "▶", id="on", type="button", aria_label="the token after"),
            class_="screen",
        ),
    ]
    return page(
        "Inside the model",
        body,
        subtitle=subtitle,
        script=asset("text.js") + asset("logit_lens.js"),
        style=asset("logit_lens.css"),
        data=data,
    )
