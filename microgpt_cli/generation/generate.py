"""A model goes on from a prompt, token by token."""

from collections.abc import Callable, Iterator, Sequence

import torch

from microgpt_cli.generation.sampling import Draws, Sampler
from microgpt_cli.model.gpt import GPT


@torch.no_grad()
def generate(
    model: GPT, prompt: Sequence[int], max_new_tokens: int, sampler: Sampler, draws: Draws, num_samples: int = 1
) -> Iterator[list[int]]:
    """Continuations of one prompt, as in the article: the context is cropped to the last `block_size` tokens.

    Args:
        model: in eval mode, where there is dropout.
        prompt: at least one token id.

    Yields:
        The next token of each of the `num_samples` samples.
    """
    device = model.token_embedding_table.weight.device
    idx = torch.tensor([list(prompt)] * num_samples, device=device)  # (B, T)
    for _ in range(max_new_tokens):
        idx = idx[:, -model.config.block_size :]
        logits, _ = model(idx)  # (B, T, V)
        tokens = sampler.choose(logits[:, -1], draws.next())
        yield tokens
        idx = torch.cat((idx, torch.tensor(tokens, device=device)[:, None]), dim=1)


def cut_at(pieces: Iterator[str], stop: str | None) -> Iterator[str]:
    """Pass text on as it comes, and end before `stop` appears; what could be its beginning is held back."""
    held = ""
    for piece in pieces:
        held += piece
        if stop is None:
            yield held
            held = ""
            continue
        found = held.find(stop)
        if found >= 0:
            yield held[:found]
            return
        keep = next((n for n in range(min(len(stop) - 1, len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


def text_of(columns: Iterator[list[int]], row: int, text_stream: Callable[[Sequence[int], bool], str]) -> Iterator[str]:
    """The text of one sample, in whole characters, as its tokens come."""
    for tokens in columns:
        yield text_stream([tokens[row]], False)
    yield text_stream([], True)
