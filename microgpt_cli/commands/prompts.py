"""Read a prompt and encode it."""

import os
import stat
from pathlib import Path

from microgpt_cli.data.tokenizers import Tokenizer, unpack
from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def read_prompt(prompt: str, prompt_file: str | None) -> str:
    """The prompt itself, or the text of the prompt file."""
    if prompt_file is None:
        return prompt
    path = Path("/dev/stdin" if prompt_file == "-" else os.path.expanduser(prompt_file))
    data = _from_pipe(path) if _is_pipe(path) else storage.read_bytes(path)
    # Bytes that are not UTF-8 are kept as surrogates, as on the command line; the char tokenizer rejects them.
    return data.decode("utf-8", "surrogateescape")


def _is_pipe(path: Path) -> bool:
    """Whether a prompt is piped or typed in; a named pipe is not, which nobody may ever write to."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    is_open = str(path) == "/dev/stdin" or str(path).startswith("/dev/fd/")
    return is_open and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))


def _from_pipe(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(storage.JSON_BYTES + 1)
    if len(data) > storage.JSON_BYTES:
        raise UserError(f"{path}: more than the limit of {storage.JSON_BYTES:,} bytes come out of it")
    return data


def encode_prompt(prompt: str, tokenizer: Tokenizer, context: int) -> tuple[list[int], int]:
    """The last `context` token ids, and the total number of ids; an empty prompt starts a new line."""
    if prompt == "":
        return [tokenizer.start_id], 1
    try:
        encoded = tokenizer.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt: {error}") from None
    size = tokenizer.itemsize
    return unpack(encoded[-context * size :], size), len(encoded) // size
