"""Resuming on another machine, or with another engine, says that bits can differ; older runs resume without a word."""

from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.checkpoints.meta import engine_of
from microgpt_cli.engines.cpu import build

WORDS = ["model.n_layer=1", "batch_size=2", "eval_interval=0", "sample_interval=0", "data.path=my.txt", "threads=1"]


def test_a_resumed_run_names_another_processor_kernels_and_engine(
    microgpt: Run, text_file: Path, cheap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert microgpt("train", *WORDS, "device=cpu", "max_steps=2", "out_dir=run").status == 0
    same = microgpt("train", "resume=run", "max_steps=3")
    assert same.status == 0, same.err
    assert "not bit-identical" not in same.out
    native = "engine    native" in same.out
    monkeypatch.setattr(build, "processor", lambda: "Another CPU")
    monkeypatch.setattr(build, "build_hash", lambda: "0123456789abcdef")
    other = microgpt("train", "resume=run", "max_steps=4", "engine=torch" if native else "engine=auto")
    assert other.status == 0, other.err
    [note] = [line for line in other.out.splitlines() if "not bit-identical" in line]
    assert "→ Another CPU" in note
    assert not native or "engine native → torch" in note


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"compile": "native"}, ("native", "false")),
        ({"compile": True}, ("torch", "true")),
        ({"compile": False}, ("torch", "false")),
        ({"engine": "native", "compile": False}, ("native", "false")),
        ({}, ("torch", "false")),
    ],
)
def test_the_engine_of_older_checkpoints(meta: dict[str, object], expected: tuple[str, str]) -> None:
    assert engine_of(meta) == expected
