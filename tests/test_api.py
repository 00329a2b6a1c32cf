"""The public Python API: lazily imported, small, and what docs/python.md shows."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TEXT, Run

import microgpt_cli
from microgpt_cli import GPT, ModelConfig, TrainConfig, generate, load_run, train
from microgpt_cli.cli import main as cli
from microgpt_cli.data.tokenizers import CharTokenizer
from microgpt_cli.errors import UserError
from microgpt_cli.runs import layout

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text(TEXT)
    assert len(BLOCKS) == 5
    Path("page.py").write_text("\n".join(BLOCKS))
    runpy.run_path("page.py")
    assert (tmp_path / "outputs" / "latest").exists()


def test_every_name_is_there_and_no_other() -> None:
    for name in microgpt_cli.__all__:
        assert getattr(microgpt_cli, name).__name__ == name
    assert set(microgpt_cli.__all__) <= set(dir(microgpt_cli))
    assert not hasattr(microgpt_cli, "nothing")


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = {*sys.modules}; import microgpt_cli; print(*({*sys.modules} - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["microgpt_cli"]


def test_a_model_of_defaults_is_the_article_s() -> None:
    assert sum(p.numel() for p in GPT(ModelConfig()).parameters()) == 209_729


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.n_embd=33"):
        ModelConfig(n_embd=33)
    with pytest.raises(UserError, match="trains no run"):
        train(TrainConfig(lr_find=True))


def test_a_loaded_run_names_where_it_comes_from(trained: Path) -> None:
    loaded = load_run(trained)
    model, tokenizer = loaded
    assert (loaded.path, loaded.step) == (layout.find_checkpoint(str(trained)), 30)
    assert isinstance(tokenizer, CharTokenizer)
    assert not model.training


@pytest.mark.parametrize("words", [[], ["top_k=3"], ["top_p=0.5"], ["temperature=0"], ["stop=e"]])
def test_generate_writes_what_sample_writes(words: list[str], trained: Path, microgpt: Run) -> None:
    ran = microgpt("sample", str(trained), "prompt=The ", "max_new_tokens=40", "device=cpu", *words)
    kinds = {"top_k": int, "top_p": float, "temperature": float, "stop": str}
    given = {key: kinds[key](value) for key, value in (word.split("=") for word in words)}
    assert generate(*load_run(trained), "The ", max_new_tokens=40, **given) == ran.out


def test_defaults_of_generate_are_those_of_sample() -> None:
    config = cli.load_config("sample", [])
    for name, parameter in inspect.signature(generate).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert parameter.default == getattr(config, name), name


def test_training_equals_the_command_bit_for_bit(
    text_file: Path, tmp_path: Path, microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from microgpt_cli.config import DataConfig

    words = [f"data.path={text_file}", "model.n_layer=1", "batch_size=4", "max_steps=6", "device=cpu"]
    assert microgpt("train", *words, "out_dir=by_command").status == 0
    size = ModelConfig(n_layer=1)
    data = DataConfig(path=str(text_file), source="path")
    ran = train(TrainConfig(size, data, batch_size=4, max_steps=6, device="cpu", out_dir=str(tmp_path / "by_program")))
    ours, theirs = load_run(ran.folder).model, load_run(layout.find_run("by_command", "ckpt")).model
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
