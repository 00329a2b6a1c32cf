"""Checkpoints and tokenizers changed at random, the manifest with them: refused in one line, or sound."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Tried
from hypothesis import strategies as st
from support.hostile import (
    BEST,
    MANIFEST,
    MODEL,
    OPTIM,
    forge,
    guarded,
    hammer,
    mutate_bytes,
    mutate_json,
    tensors,
    use,
)

from microgpt_cli.checkpoints import checkpoint
from microgpt_cli.data import tokenizers
from microgpt_cli.runs import storage


@st.composite
def mutations(draw: Callable[..., Any], whole: dict[str, bytes]) -> tuple[str, bytes, bool]:
    """(file, its new bytes, whether the manifest is made to agree)."""
    name = draw(st.sampled_from([*whole]))
    data = whole[name]
    if name.endswith(".json") and draw(st.integers(0, 3)):
        data = json.dumps(mutate_json(json.loads(data), draw)).encode()
    elif name in (MODEL, OPTIM) and draw(st.integers(0, 3)):
        length = int.from_bytes(data[:8], "little")
        header = mutate_json(json.loads(data[8 : 8 + length]), draw)
        data = tensors(header=json.dumps(header).encode(), data=data[8 + length :])
    else:
        data = mutate_bytes(data, draw)
    return name, data, name not in (MANIFEST, BEST) and draw(st.integers(0, 9)) > 0


PARTS = range(1, 8)  # each of other mutations, so that several processes share them


@pytest.mark.parametrize(
    ("tries", "part"), [(100, 0), *(pytest.param(1000, part, marks=pytest.mark.stress) for part in PARTS)]
)
def test_a_mutated_checkpoint_is_refused_or_sound(
    tries: int, part: int, step: Path, tmp_path: Path, tried: Tried
) -> None:
    paths = {name: step / name for name in (*checkpoint.FILES, MANIFEST)} | {BEST: step.parent / BEST}
    whole = {name: path.read_bytes() for name, path in paths.items()}

    def check(mutation: tuple[str, bytes, bool]) -> None:
        tried("a mutated checkpoint")
        name, data, agrees = mutation
        if agrees:
            forge(step, name, data)
        else:
            paths[name].write_bytes(data)
        try:
            with guarded():
                use(tmp_path / "run")
        finally:
            paths[name].write_bytes(whole[name])
            paths[MANIFEST].write_bytes(whole[MANIFEST])

    hammer(mutations(whole), check, tries, same=part == 0)
    use(tmp_path / "run")


@pytest.mark.parametrize("tries", [100, pytest.param(3000, marks=pytest.mark.stress)], ids=["some", "thousands"])
def test_a_mutated_tokenizer_is_refused_or_gives_text(tries: int, tried: Tried) -> None:
    whole = {"char.json": b'{"format": 1, "kind": "char", "unknown": "error", "chars": "abc\\ufffd"}'}
    whole["byte.json"] = b'{"format": 1, "kind": "byte"}'

    def check(mutation: tuple[str, bytes, bool]) -> None:
        tried("a mutated tokenizer")
        with guarded():
            tokenizer = tokenizers.from_json(storage.parse_json(mutation[1], "f"), "f")
            text = tokenizer.decode(range(min(tokenizer.vocab_size, 100)))
            tokenizer.decode(tokenizers.unpack(tokenizer.encode(text), tokenizer.itemsize)).encode()

    hammer(mutations(whole), check, tries, same=tries == 100)
