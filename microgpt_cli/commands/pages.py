"""Write HTML pages to files."""

from pathlib import Path

from microgpt_cli.errors import UserError
from microgpt_cli.runs import outputs


def write_page(target: Path, text: str) -> str:
    """Write a page, and return the line to print.

    The caller prints after writing, because `| head` may end a command at any line that it prints.
    """
    try:
        outputs.write(target, text.encode())
    except OSError as error:
        raise UserError(f"out={target}: {error.strerror or error}; choose another file with out=") from error
    return f"page      {target} (open it in a browser; it needs no network)"
