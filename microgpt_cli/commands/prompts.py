"""Read a prompt and encode it."""

import os
from pathlib import Path

from microgpt_cli.data.tokenizers import Tokenizer, unpack
from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def read_prompt(prompt: str, prompt_file: str | None) -> str:
    """The prompt itself, or the text of the prompt file."""
    if prompt_file is None:
        return prompt
    data = storage.read_bytes(Path(os.path.expanduser(prompt_file)))
    # Bytes that are not UTF-8 are kept as surrogates, as on the command line; the char tokenizer rejects them.
    return data.decode("utf-8", "surrogateescape")


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
