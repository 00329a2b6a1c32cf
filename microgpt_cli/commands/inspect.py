"""`microgpt inspect`: what a model makes of a text, position by position, layer by layer, head by head."""

import math
import shutil
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.checkpoints.model_files import load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.colours import alarm, columns, heat_map, padded, wanted
from microgpt_cli.commands.pages import page_path, write_page
from microgpt_cli.commands.prompts import encode_prompt, read_prompt
from microgpt_cli.compute import choose
from microgpt_cli.config import InspectConfig
from microgpt_cli.data.tokenizers import visible
from microgpt_cli.insight.logit_lens import Guess, Inside, focus, look, to_json
from microgpt_cli.insight.pages.logit_lens import inside_page
from microgpt_cli.runs import layout

CANDIDATES = 5
ROWS = 24  # positions that the screen shows, the last ones
CELLS = 16  # of a heat-map on the screen, each way
Name = Callable[[int], str]


def run(config: InspectConfig, invocation: Invocation) -> None:
    """Print the positions, the layers' guesses and the heads' attention, and write the page."""
    path = layout.find_checkpoint(config.ckpt)
    page = page_path(config.out)
    compute = choose(config.device, config.dtype, threads=config.threads)
    loaded = load_model(path, compute.device)
    tokenizer, context = loaded.tokenizer, loaded.config.model.block_size
    prompt = read_prompt(config.prompt, config.prompt_file)
    ids, count = encode_prompt(prompt, tokenizer, min(context, config.max_tokens))
    model = loaded.model.eval()
    print(f"from {loaded.origin}", file=sys.stderr)
    if count > len(ids):
        why = f"the model sees {context:,}" if context <= config.max_tokens else f"max_tokens={config.max_tokens}"
        print(f"the text has {count:,} tokens; looking at the last {len(ids):,}: {why}", file=sys.stderr)
    with compute.autocast():
        seen = look(model, torch.tensor(ids, device=compute.device), CANDIDATES)

    def name(token: int) -> str:
        return visible(tokenizer, token)

    written = None
    if page is not None:
        losses = seen.guesses[-1].losses
        size = loaded.config.model
        summary = [
            ("tokens", f"{len(ids):,}" if count == len(ids) else f"the last {len(ids):,} of {count:,}"),
            ("loss", f"{losses.mean():.3f} nats" if len(losses) else "–"),
            ("perplexity", f"{math.exp(losses.mean()):.2f}" if len(losses) else "–"),
            ("model", f"{size.n_layer} layers, {size.n_head} heads"),
            ("context", f"{context:,}"),
            ("step", loaded.step_text),
        ]
        written = write_page(page, inside_page(str(path), summary, to_json(seen, name)))
    coloured = wanted()
    width = shutil.get_terminal_size().columns
    for part in (
        _positions(seen, name, coloured),
        _layers(seen.guesses, name),
        _heads(seen.attention, coloured, width),
    ):
        print("\n".join(part), end="\n\n")
    if written is not None:
        print(written)


def _positions(seen: Inside, name: Name, coloured: bool) -> list[str]:
    """A line a token: what it cost, and what is expected after it."""
    own, ids = seen.guesses[-1], seen.ids.tolist()
    first = max(0, len(ids) - ROWS)
    names = [name(token) for token in ids]
    wide = max(5, *map(columns, names[first:]))
    losses = [None, *own.losses.tolist()]
    mean = f"loss {own.losses.mean():.4f} nats a token over {len(ids) - 1}; " if len(ids) > 1 else ""
    kept = f"the last {ROWS} of " if first else ""
    lines = [
        f"{mean}{kept}{len(ids)} token{'' if len(ids) == 1 else 's'}:",
        f"{'':6}{padded('token', wide)}   loss  entropy  expected next",
    ]
    for t in range(first, len(ids)):
        loss = losses[t]
        cost = "    –" if loss is None else f"{loss:5.2f}"
        token = alarm(names[t], loss, coloured) + " " * (wide - columns(names[t]))
        lines.append(f"{t + 1:4}  {token}  {cost}  {own.entropy[t]:7.2f}  {_guessed(own, t, name)}")
    return lines


def _guessed(guess: Guess, t: int, name: Name) -> str:
    pairs = zip(guess.tokens[t].tolist(), guess.probs[t].tolist(), strict=True)
    return "  ".join(f"{padded(name(token), 2)}{prob:4.0%}" for token, prob in pairs)


def _layers(guesses: list[Guess], name: Name) -> list[str]:
    lines = ["what each layer would write next (logit lens):"]
    for layer, guess in enumerate(guesses):
        label = f"layer {layer}" if layer else "embedding"
        lines.append(f"{label:>10}  {_guessed(guess, -1, name)}")
    return lines


def _heads(attention: Tensor, coloured: bool, width: int) -> list[str]:
    """A small heat-map of each head, a layer beside the next head until the screen is full."""
    L, H, T, _ = attention.shape
    cells = min(CELLS, T)
    label = 16
    each = max(cells, label) + 2
    across = max(1, min(H, (width - 2) // each))
    small = F.adaptive_max_pool2d(attention.flatten(0, 1)[None], cells)[0]  # (L · H, cells, cells)
    lines = [f"attention of each head, from each token (down) to those before it (across), {T} × {T}:"]
    for layer in range(L):
        for start in range(0, H, across):
            heads = range(start, min(start + across, H))
            maps = [heat_map(small[layer * H + head].tolist(), coloured) for head in heads]
            labels = [f"{layer + 1}.{head + 1} {_focus(attention[layer, head])}" for head in heads]
            lines.append("  " + "".join(f"{label:{each}}" for label in labels).rstrip())
            space = " " * (each - cells)
            lines += ["  " + space.join(row).rstrip() for row in zip(*maps, strict=True)]
    return lines


def _focus(weights: Tensor) -> str:
    found = focus(weights)
    if found is None:
        return ""
    share = {"previous": found.previous, "itself": found.itself, "first": found.first}.get(found.name())
    return f"{found.name()} {share:.0%}" if share is not None else f"{found.distance:.0f} back"
