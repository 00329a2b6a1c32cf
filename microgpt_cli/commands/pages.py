"""Where the commands put their HTML pages."""

import os
from pathlib import Path

from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def page_path(out: str | None) -> Path | None:
    """Where a page goes. Raises `UserError`, before any work is done, for a place where no file can be."""
    if out is None:
        return None
    target = Path(os.path.expanduser(out))
    if os.path.isdir(target) or not os.path.isdir(target.absolute().parent):
        what = "a folder" if os.path.isdir(target) else "no such folder"
        raise UserError(f"out={out}: {what}; give a file in a folder that exists")
    return target


def write_page(target: Path, text: str) -> str:
    """Put a page there, and give the line that says so.

    Write first and print after: `| head` ends a command at any line that it prints.
    """
    try:
        storage.replace(target, text.encode())
    except OSError as error:
        raise UserError(f"out={target}: {error.strerror or error}; give another place with out=") from error
    return f"page      {target} (open it in a browser; it needs no network)"
