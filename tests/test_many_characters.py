"""Every verb on texts whose ids take 16 and 32 bits: torch lacks many operations for the narrow unsigned types."""

import os
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY, Run

from microgpt_cli.cli import main as cli

COUNTS = (300, 70_000)
VERBS = {
    "train": ["train", "resume=COPY", "max_steps=6", "sample_interval=2"],
    "doctor": ["doctor", *TINY, "data.path=TEXT"],
    "doctor beyond memory": ["doctor", *TINY, "data.path=TEXT"],
    "sample": ["sample", "ckpt=RUN", "max_new_tokens=9"],
    "sample a prompt": ["sample", "ckpt=RUN", "prompt=一丁", "num_samples=2", "max_new_tokens=9", "cache=false"],
    "eval": ["eval", "ckpt=RUN", "split=val"],
    "eval per_token": ["eval", "ckpt=RUN", "per_token=true", "out=page.html"],
    "eval another text": ["eval", "ckpt=RUN", "data.path=other.txt", "per_token=true"],
    "inspect": ["inspect", "ckpt=RUN", "prompt=一丁七", "out=page.html"],
    "compare": ["compare", "RUN", "RUN", "sample=true", "max_new_tokens=9"],
    "report": ["report", "RUN", "out=page.html"],
    "runs": ["runs", "RUN"],
    "replay": ["replay", "RUN"],
    "verify": ["verify", "ckpt=RUN/ckpt/step-00000002", "replay=2"],
    "lr_find": ["train", *TINY, "data.path=TEXT", "lr_find=true", "max_steps=12"],
    "profile": ["train", *TINY, "data.path=TEXT", "profile=true", "out_dir=profiled"],
}


@pytest.fixture(scope="module", params=COUNTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text of so many different characters and a run on it."""
    home = tmp_path_factory.mktemp(f"many{request.param}")
    points = [point for point in range(0x4E00, 0x4E00 + request.param + 2048) if not 0xD800 <= point <= 0xDFFF]
    chars = [chr(point) for point in points[: request.param]]
    text = "".join("一" + char for char in chars * -(-40_000 // request.param))
    (home / "text.txt").write_text(text, encoding="utf-8")
    (home / "other.txt").write_text(text[200:600], encoding="utf-8")
    before = Path.cwd()
    os.chdir(home)
    try:
        words = [
            "train",
            *TINY,
            "data.path=text.txt",
            "data.val_fraction=0.02",
            "max_steps=4",
            "eval_interval=2",
            "checkpoint_interval=2",
        ]
        assert cli.main([*words, "eval_tokens=64", "sample_interval=2", f"out_dir={home}/run"]) == 0
    finally:
        os.chdir(before)
    return home


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb(microgpt: Run, made: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(made)
    if verb == "doctor beyond memory":
        monkeypatch.setattr("microgpt_cli.commands.doctor.IN_MEMORY_BYTES", 200_000)
    if verb == "train":
        shutil.copytree("run", "copy")
    names = {"RUN": "run", "COPY": "copy", "TEXT": "text.txt"}
    words = [re.sub("|".join(names), lambda name: names[name[0]], word) for word in VERBS[verb]]
    ran = microgpt(*words)
    assert ran.status == 0, ran.err


def test_characters_that_are_held_out_alone_are_named(microgpt: Run) -> None:
    chars = "".join(chr(0x4E00 + i % 300) for i in range(40_000))
    Path("text.txt").write_text(chars + "龘龙" * 300, encoding="utf-8")
    ran = microgpt("doctor", *TINY, "data.path=text.txt")
    assert ran.status == 0, ran.err
    assert "unseen    2 characters" in ran.out
    assert "'龘' '龙'" in ran.out or "'龙' '龘'" in ran.out
