"""`microgpt inspect`: predictions and attention of a model for a text, by position, layer and head."""

import math
import shutil
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from microgpt_cli.checkpoints.model_files import load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.colours import columns, has_colours, heat_map, padded, shade_loss
from microgpt_cli.commands.pages import write_page
from microgpt_cli.commands.prompts import encode_prompt, read_prompt
from microgpt_cli.compute import choose
from microgpt_cli.config import InspectConfig
from microgpt_cli.data.tokenizers import visible
from microgpt_cli.insight.logit_lens import LayerProbe, Prediction, head_pattern, probe_layers, to_json
from microgpt_cli.insight.pages.logit_lens import logit_lens_page
from microgpt_cli.runs import layout, outputs

CANDIDATES = 5
ROWS = 24  # last positions shown on the terminal
CELLS = 16  # rows and columns of a heat map on the terminal
Name = Callable[[int], str]


@outputs.text_beside
def run(config: InspectConfig, invocation: Invocation) -> None:
    """Print the positions, the layers' predictions and the heads' attention, and write the page."""
    path = layout.find_checkpoint(config.ckpt)
    page = None if config.out is None else outputs.file_to_write(config.out)
    compute = choose(config.device, config.dtype, threads=config.threads)
    loaded = load_model(path, compute.device)
    tokenizer, context = loaded.tokenizer, loaded.config.model.block_size
    prompt = read_prompt(config.prompt, config.prompt_file)
    ids, count = encode_prompt(prompt, tokenizer, min(context, config.max_tokens))
    model = loaded.model.eval()
    print(f"from {loaded.origin}", file=sys.stderr)
    if count > len(ids):
        why = f"the context is {context:,}" if context <= config.max_tokens else f"max_tokens={config.max_tokens}"
        print(f"the text has {count:,} tokens; using only the last {len(ids):,}: {why}", file=sys.stderr)
    with compute.autocast():
        seen = probe_layers(model, torch.tensor(ids, device=compute.device), CANDIDATES)

    def name(token: int) -> str:
        return visible(tokenizer, token)

    written = None
    if page is not None:
        losses = seen.predictions[-1].losses
        size = loaded.config.model
        summary = [
            ("tokens", f"{len(ids):,}" if count == len(ids) else f"the last {len(ids):,} of {count:,}"),
            ("loss", f"{losses.mean():.3f} nats" if len(losses) else "–"),
            ("perplexity", f"{math.exp(losses.mean()):.2f}" if len(losses) else "–"),
            ("model", f"{size.n_layer} layers, {size.n_head} heads"),
            ("context", f"{context:,}"),
            ("step", loaded.step_text),
        ]
        written = write_page(page, logit_lens_page(str(path), summary, to_json(seen, name)))
    coloured = has_colours()
    width = shutil.get_terminal_size().columns
    for part in (
        _positions(seen, name, coloured),
        _layers(seen.predictions, name),
        _heads(seen.attention, coloured, width),
    ):
        print("\n".join(part), end="\n\n")
    if written is not None:
        print(written)


def _positions(seen: LayerProbe, name: Name, coloured: bool) -> list[str]:
    """One line per token: its loss, and the most probable next tokens."""
    own, ids = seen.predictions[-1], seen.ids.tolist()
    first = max(0, len(ids) - ROWS)
    names = [name(token) for token in ids]
    wide = max(5, *map(columns, names[first:]))
    losses = [None, *own.losses.tolist()]
    mean = f"loss {own.losses.mean():.4f} nats per token over {len(ids) - 1}; " if len(ids) > 1 else ""
    kept = f"the last {ROWS} of " if first else ""
    lines = [
        f"{mean}{kept}{len(ids)} token{'' if len(ids) == 1 else 's'}:",
        f"{'':6}{padded('token', wide)}   loss  entropy  predicted next",
    ]
    for t in range(first, len(ids)):
        loss = losses[t]
        loss_text = "    –" if loss is None else f"{loss:5.2f}"
        token = shade_loss(names[t], loss, coloured) + " " * (wide - columns(names[t]))
        lines.append(f"{t + 1:4}  {token}  {loss_text}  {own.entropy[t]:7.2f}  {_format_predictions(own, t, name)}")
    return lines


def _format_predictions(prediction: Prediction, t: int, name: Name) -> str:
    pairs = zip(prediction.tokens[t].tolist(), prediction.probs[t].tolist(), strict=True)
    return "  ".join(f"{padded(name(token), 2)}{prob:4.0%}" for token, prob in pairs)


def _layers(predictions: list[Prediction], name: Name) -> list[str]:
    lines = ["next-token predictions of each layer (logit lens):"]
    for layer, prediction in enumerate(predictions):
        label = f"layer {layer}" if layer else "embedding"
        lines.append(f"{label:>10}  {_format_predictions(prediction, -1, name)}")
    return lines


def _heads(attention: Tensor, coloured: bool, width: int) -> list[str]:
    """A small heat map of each head, as many side by side as fit."""
    L, H, T, _ = attention.shape
    cells = min(CELLS, T)
    label = 16
    each = max(cells, label) + 2
    across = max(1, min(H, (width - 2) // each))
    small = F.adaptive_max_pool2d(attention.flatten(0, 1)[None], cells)[0]  # (L · H, cells, cells)
    lines = [f"attention of each head, from each token (rows) to itself and earlier tokens (columns), {T} × {T}:"]
    for layer in range(L):
        for start in range(0, H, across):
            heads = range(start, min(start + across, H))
            maps = [heat_map(small[layer * H + head].tolist(), coloured) for head in heads]
            labels = [f"{layer + 1}.{head + 1} {_pattern(attention[layer, head])}" for head in heads]
            lines.append("  " + "".join(f"{label:{each}}" for label in labels).rstrip())
            space = " " * (each - cells)
            lines += ["  " + space.join(row).rstrip() for row in zip(*maps, strict=True)]
    return lines


def _pattern(weights: Tensor) -> str:
    found = head_pattern(weights)
    if found is None:
        return ""
    share = {"previous": found.previous, "itself": found.itself, "first": found.first}.get(found.name())
    return f"{found.name()} {share:.0%}" if share is not None else f"{found.distance:.0f} back"
