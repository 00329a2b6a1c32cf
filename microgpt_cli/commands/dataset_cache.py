"""The text of a run, encoded; the jobs of a sweep that run in one process share it."""

import functools
from pathlib import Path

from torch import Tensor

from microgpt_cli.commands.console import bytes_bar
from microgpt_cli.config import DataConfig, TokenizerConfig
from microgpt_cli.data.corpus import Corpus, Stamp, open_corpus
from microgpt_cli.data.dataset import build_tokenizer, encode
from microgpt_cli.data.tokenizers import Tokenizer

KEPT = 2  # texts in memory: a sweep over two of them encodes each once


def read(
    data: DataConfig, kind: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> tuple[Corpus, Tokenizer, Tensor, str]:
    """The corpus that a config names, its tokenizer, its token ids (N,), only to be read, and the sha256 of its text.

    Args:
        data: where the text comes from.
        kind: the tokenizer to build from it.
        tokenizer: the one to use instead: that of a run which is resumed.
    """
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(data, progress)
        if tokenizer is not None:
            return corpus, tokenizer, *encode(corpus, tokenizer, Path(data.cache_dir), progress)
    with corpus.unchanged():
        return corpus, *_encoded(corpus, corpus.stamp(), kind.kind, kind.unknown, data.cache_dir)


@functools.lru_cache(maxsize=KEPT)
def _encoded(corpus: Corpus, _stamp: Stamp, kind: str, unknown: str, cache_dir: str) -> tuple[Tokenizer, Tensor, str]:
    with bytes_bar("reading the text") as progress:
        tokenizer = build_tokenizer(TokenizerConfig(kind, unknown), corpus, Path(cache_dir), progress)
        return tokenizer, *encode(corpus, tokenizer, Path(cache_dir), progress)
