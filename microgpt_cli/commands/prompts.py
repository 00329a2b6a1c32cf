"""Where a prompt comes from, and the tokens that a model sees of it."""

import os
from pathlib import Path

from microgpt_cli.data.tokenizers import Tokenizer, unpack
from microgpt_cli.errors import UserError
from microgpt_cli.runs import storage


def read_prompt(prompt: str, prompt_file: str | None) -> str:
    """The prompt that was typed, or the text of a file."""
    if prompt_file is None:
        return prompt
    data = storage.read_bytes(Path(os.path.expanduser(prompt_file)))
    # What is not UTF-8 stays, as in words from the command line, and is refused by tokenizers that need characters.
    return data.decode("utf-8", "surrogateescape")


def encode_prompt(prompt: str, tokenizer: Tokenizer, context: int) -> tuple[list[int], int]:
    """The last `context` token ids, and how many there are in all; a prompt of nothing begins a new line."""
    if prompt == "":
        return [tokenizer.start_id], 1
    try:
        encoded = tokenizer.encode(prompt)
    except UserError as error:
        raise UserError(f"prompt: {error}") from None
    size = tokenizer.itemsize
    return unpack(encoded[-context * size :], size), len(encoded) // size
