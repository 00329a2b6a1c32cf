"""`microgpt eval`: the loss of a trained model over a whole text, beside n-gram baselines."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from microgpt_cli.checkpoints.model_files import Description, load_model
from microgpt_cli.commands import Invocation
from microgpt_cli.commands.console import bytes_bar, duration
from microgpt_cli.commands.token_losses import WORST, Evaluated, report_token_losses
from microgpt_cli.compute import Compute, choose
from microgpt_cli.config import DataConfig, EvalConfig
from microgpt_cli.data.baselines import count_baselines
from microgpt_cli.data.corpus import Corpus, open_corpus
from microgpt_cli.data.dataset import encode, split
from microgpt_cli.data.tokenizers import CharTokenizer, Tokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.insight.token_losses import LossBreakdown, token_losses
from microgpt_cli.model.gpt import GPT
from microgpt_cli.runs import layout, outputs
from microgpt_cli.training.trainer import evaluate

PIECE_TOKENS = 1 << 20  # processed at once


@outputs.text_beside
def run(config: EvalConfig, invocation: Invocation) -> None:
    """Print loss, perplexity, bits per character, bits per byte and the baselines."""
    path = layout.find_checkpoint(config.ckpt)
    page = None if config.out is None else outputs.file_to_write(config.out) if config.per_token else None
    compute = choose(config.device, config.dtype, threads=config.threads)
    loaded = load_model(path, compute.device)
    tokenizer, block_size = loaded.tokenizer, loaded.config.model.block_size
    data, own = _data(config.data, loaded)
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(data, progress)
        ids, text_sha256 = encode(corpus, tokenizer, Path(data.cache_dir), progress)
    trained_on = own if loaded.meta is None else text_sha256 == loaded.meta["text_sha256"]
    if own and not trained_on:
        raise UserError(
            f"{corpus.name}: the text has changed since the run; give the text to evaluate on with data.path="
        )
    which = config.split if config.split != "auto" else "val" if trained_on else "all"
    part = _part(ids, which, loaded.config.data.val_fraction, block_size)
    splits = split(ids, loaded.config.data.val_fraction, block_size) if trained_on else None
    counted = splits.train if splits else part
    model = loaded.model.eval()
    breakdown = (
        LossBreakdown(tokenizer.vocab_size, block_size, config.shown_tokens, WORST) if config.per_token else None
    )
    nats, tokens, began = 0.0, 0, time.perf_counter()
    with tqdm(total=len(part) - 1, unit="token", unit_scale=True, disable=None, leave=False, delay=0.5) as bar:
        for nats_here, count in _losses(model, part, compute, config.batch_size, breakdown):
            nats, tokens = nats + nats_here, tokens + count
            bar.update(count)
    seconds = time.perf_counter() - began
    loss = nats / tokens
    characters, size = _characters_and_bytes(part[1:], tokenizer)
    replaced = 0
    if isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "replace":
        first = 1 + (len(ids) - len(part) if which == "val" else 0)
        size, replaced = _bytes_and_replaced(corpus, tokenizer, first, first + len(part) - 1)
    baselines = count_baselines(counted, part, tokenizer.vocab_size)
    what = {"val": "the validation split", "train": "the training split", "all": "the whole text"}[which]
    print(f"from {loaded.origin}", file=sys.stderr)
    print(f"data                {corpus.name}, {what}")
    print(f"evaluated           {tokens:,} tokens, context {block_size}, in {duration(seconds)}")
    if replaced:
        share = f"{replaced:,} characters ({replaced / characters:.2%})"
        print(f"replaced            {share} are not in the vocabulary, counted as U+FFFD")
    print(f"loss                {loss:.4f} nats per token")
    print(f"perplexity          {math.exp(min(loss, 700)):.3f}")
    print(f"bits per character  {nats / math.log(2) / characters:.4f}")
    print(f"bits per byte       {nats / math.log(2) / size:.4f}")
    source = "the run's training split" if trained_on else "this text itself"
    print(f"uniform baseline    {baselines.uniform:.4f} nats per token")
    print(f"unigram baseline    {baselines.unigram:.4f}, counted on {source}")
    print(f"bigram baseline     {baselines.bigram:.4f}")
    if breakdown is not None:
        run_folder = path.parent.parent if path.parent.name == layout.CHECKPOINTS else path
        text = Evaluated(part, tokenizer, what, splits, which == "val", run_folder, baselines)
        summary = [
            ("loss", f"{loss:.4f} nats"),
            ("perplexity", f"{math.exp(min(loss, 700)):.3f}"),
            ("bits per character", f"{nats / math.log(2) / characters:.4f}"),
            ("bits per byte", f"{nats / math.log(2) / size:.4f}"),
            ("tokens", f"{tokens:,}"),
            ("step", loaded.step_text),
        ]
        report_token_losses(breakdown, text, f"{corpus.name}, {what}, read by {path}", summary, page)


def _losses(
    model: GPT, part: Tensor, compute: Compute, batch_size: int, breakdown: LossBreakdown | None
) -> Iterator[tuple[float, int]]:
    """Sums of nats and their numbers of tokens; `breakdown` also collects every token's loss."""
    if breakdown is None:
        for nats, count in evaluate(model, part, compute, batch_size):
            yield nats.item(), count
        return
    for piece in token_losses(model, part, compute, batch_size):
        breakdown.add(piece)
        yield piece.losses.double().sum().item(), piece.losses.numel()


def _data(given: DataConfig, loaded: Description) -> tuple[DataConfig, bool]:
    """The text to evaluate on, and whether it is the run's own, the default."""
    if given.path is None and given.source == "run":
        stored = loaded.config.data
        return replace(stored, folder=given.folder, cache_dir=given.cache_dir), True
    return given, False


def _part(ids: Tensor, which: str, val_fraction: float, block_size: int) -> Tensor:
    if which == "all":
        if len(ids) < 2:
            raise UserError(f"data: {len(ids)} tokens; evaluation needs at least 2")
        return ids
    splits = split(ids, val_fraction, block_size)
    return splits.val if which == "val" else splits.train


def _bytes_and_replaced(corpus: Corpus, tokenizer: CharTokenizer, first: int, last: int) -> tuple[int, int]:
    """The bytes of the characters from `first` to before `last`, and how many of them the vocabulary lacks."""
    known = dict.fromkeys(map(ord, tokenizer.chars))
    size, replaced, position = 0, 0, 0
    for text in corpus.text_chunks():
        piece = text[max(0, first - position) : max(0, last - position)]
        size += len(piece.encode())
        replaced += len(piece.translate(known))
        position += len(text)
    return size, replaced


def _characters_and_bytes(part: Tensor, tokenizer: Tokenizer) -> tuple[int, int]:
    """The numbers of characters and of bytes that these tokens encode."""
    if tokenizer.kind == "byte":
        # in UTF-8 each byte but a continuation byte (0b10xxxxxx) starts a character
        continuation = sum(((piece & 0xC0) == 0x80).sum().item() for piece in part.split(PIECE_TOKENS))
        return max(1, len(part) - int(continuation)), len(part)
    assert isinstance(tokenizer, CharTokenizer)
    widths = torch.tensor([len(char.encode("utf-8")) for char in tokenizer.chars])  # (V,)
    return len(part), int(sum(widths[piece.long()].sum().item() for piece in part.split(PIECE_TOKENS)))
