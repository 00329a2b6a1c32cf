"""What people type first, who come from other tools, is answered with the key that they mean."""

from pathlib import Path

import pytest
from conftest import Run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train data=my.txt", "data=my.txt: that is a file: data.path=my.txt"),
        ("train data=./my.txt", "data=./my.txt: that is a file: data.path=./my.txt"),
        ("train data=folder", "data=folder: that is a file: data.path=folder"),
        ("train data=gone.txt", "that is a file: data.path=gone.txt"),
        ("train -m data=my.txt", "that is a file: data.path=my.txt"),
        ("doctor data=my.txt", "that is a file: data.path=my.txt"),
        ("eval data=my.txt", "that is a file: data.path=my.txt"),
        ("train my.txt", "that is a file: data.path=my.txt"),
        ("train ./my.txt", "that is a file: data.path=./my.txt"),
        ("train gone.txt", "that is a file: data.path=gone.txt"),
        ("train https://example.org/my.txt", "is an address: download it, then give data.path=FILE"),
        ("train data.path = my.txt", "data.path needs a value: data.path=VALUE, without spaces"),
        ("train model small", "model needs a value: model=VALUE"),
        ("train steps=3", "did you mean 'max_steps'?"),
        ("train epochs=3", "did you mean 'max_steps'?"),
        ("train max_iters=3", "did you mean 'max_steps'?"),
        ("train lr=3", "did you mean 'optim.learning_rate'?"),
        ("train optim.lr=3", "did you mean 'optim.learning_rate'?"),
        ("train lr", "did you mean 'optim.learning_rate'?"),
        ("train epochs", "did you mean 'max_steps'?"),
        ("train context=64", "did you mean 'model.block_size'?"),
        ("train text=my.txt", "did you mean 'data.path'?"),
        ("train dataset=my.txt", "did you mean 'data.path'?"),
        ("train batch=3", "did you mean 'batch_size'?"),
        ("train layers=3", "did you mean 'model.n_layer'?"),
        ("train out=x", "did you mean 'out_dir'?"),
        ("sample temp=1", "did you mean 'temperature'?"),
        ("sample n=1", "did you mean 'num_samples'?"),
        ("sample length=1", "did you mean 'max_new_tokens'?"),
        ("sample text=hello", "did you mean 'prompt'?"),
        ("sample model=x", "did you mean 'ckpt'?"),
        ("train --model small", "options are given as key=value, as in model=small"),
        ("train --max-steps=3", "options are given as key=value, as in max_steps=3"),
        ("train --hepl", "did you mean '--help'?"),
    ],
)
def test_the_key_that_is_meant_is_named(microgpt: Run, tmp_path: Path, words: str, says: str) -> None:
    (tmp_path / "my.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    ran = microgpt(*words.split())
    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1
