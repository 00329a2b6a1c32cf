"""`microgpt diagram`: draw the architecture of a model, from the trace of a forward pass."""

import sys

from microgpt_cli.commands import Invocation
from microgpt_cli.commands.model_source import described, traced
from microgpt_cli.config import DiagramConfig
from microgpt_cli.errors import UserError
from microgpt_cli.insight import diagram_svg, diagram_text
from microgpt_cli.insight.diagram import diagram
from microgpt_cli.runs import outputs, plots


@outputs.text_beside
def run(config: DiagramConfig, invocation: Invocation) -> None:
    """Draw the model given by the config groups or by a run, on the terminal and to `out`."""
    if (
        config.out is not None
        and not config.out.lower().endswith((".svg", ".png"))
        and not outputs.is_special(config.out)
    ):
        raise UserError(f"out={config.out}: a picture's name ends in .svg or .png")
    target = None if config.out is None else outputs.file_to_write(config.out)
    missing = plots.missing() if target is not None and target.suffix.lower() == ".png" else ""
    if missing:
        raise UserError(f"out={config.out}: {missing}, or give a name that ends in .svg")
    what = diagram(*traced(described(config, invocation), config.batch, config.time, "auto"))
    if target is not None:
        drawing = diagram_svg.draw(what)
        drawn = (
            diagram_svg.png(drawing, config.theme)
            if target.suffix.lower() == ".png"
            else diagram_svg.svg(drawing, config.theme).encode()
        )
        try:
            outputs.write(target, drawn)
        except OSError as error:
            raise UserError(f"out={config.out}: {error.strerror or error}") from error
    print(diagram_text.text(what))
    if target is not None:
        print(f"written to {config.out}", file=sys.stderr)
