"""The encoded text of a run, cached for the jobs of a sweep in one process."""

import functools
from pathlib import Path

from torch import Tensor

from microgpt_cli.commands.console import bytes_bar
from microgpt_cli.config import DataConfig, TokenizerConfig
from microgpt_cli.data.corpus import Corpus, Stamp, open_corpus
from microgpt_cli.data.dataset import build_tokenizer, encode
from microgpt_cli.data.tokenizers import Tokenizer

MAX_CACHED = 2  # texts: a sweep over two of them encodes each once


def read(
    data: DataConfig, kind: TokenizerConfig, tokenizer: Tokenizer | None = None
) -> tuple[Corpus, Tokenizer, Tensor, str]:
    """Corpus, tokenizer, token ids (N,), which are read-only, and the sha256 of the text.

    Args:
        data: the text.
        kind: the tokenizer to build from it.
        tokenizer: used instead, when a run is resumed.
    """
    with bytes_bar("reading the text") as progress:
        corpus = open_corpus(data, progress)
        if tokenizer is not None:
            return corpus, tokenizer, *encode(corpus, tokenizer, Path(data.cache_dir), progress)
    with corpus.unchanged():
        return corpus, *_encoded(corpus, corpus.stamp(), kind.kind, kind.unknown, data.cache_dir)


@functools.lru_cache(maxsize=MAX_CACHED)
def _encoded(corpus: Corpus, _stamp: Stamp, kind: str, unknown: str, cache_dir: str) -> tuple[Tokenizer, Tensor, str]:
    with bytes_bar("reading the text") as progress:
        tokenizer = build_tokenizer(TokenizerConfig(kind, unknown), corpus, Path(cache_dir), progress)
        return tokenizer, *encode(corpus, tokenizer, Path(cache_dir), progress)
