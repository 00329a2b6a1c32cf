"""The front door, as its users meet it: help, mistakes, flags, sweeps, completion."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run

from microgpt_cli import cli

MICROGPT = [sys.executable, "-m", "microgpt_cli"]


def imported(*words: str) -> set[str]:
    """The modules that a command line imports."""
    code = f"import sys; from microgpt_cli import cli; cli.main({list(words)!r}); print('#', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("#")[2].split())


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",)])
def test_the_first_page_imports_neither_torch_nor_hydra(words: tuple[str, ...]) -> None:
    assert not {"torch", "hydra", "omegaconf"} & imported(*words)


@pytest.mark.parametrize("words", [("train", "--help"), ("sample", "--cfg", "job"), ("params", "--info", "defaults")])
def test_pages_about_a_verb_do_not_import_torch(words: tuple[str, ...]) -> None:
    assert "torch" not in imported(*words)


def test_help_lists_every_verb_with_an_example(microgpt: Run) -> None:
    for words in ((), ("--help",), ("-h",)):
        page = microgpt(*words).out
        for name, verb in cli.VERBS.items():
            assert name in page
            assert verb.help in page
            assert verb.example in page


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_lists_its_keys_and_choices(verb: str, microgpt: Run) -> None:
    ran = microgpt(verb, "--help")
    assert ran.status == 0
    for leaf in cli.leaves(cli.VERBS[verb].schema):
        assert f"  {leaf.name} " in ran.out
    for group, choices in cli.group_choices(verb).items():
        assert f"{group}=" in ran.out
        assert all(choice in ran.out for choice in choices)


def test_help_shows_the_defaults_that_typed_choices_give(microgpt: Run) -> None:
    assert "model.n_layer            int    6 " in microgpt("train", "model=small", "--help").out


# One line, exit status 2, no traceback, nothing written: what is typed, and what the line must say.
MISTAKES: list[tuple[list[str], str]] = [
    (["trian"], "did you mean 'train'?"),
    (["max_steps=3"], "the verb comes first: microgpt train max_steps=3"),
    (["--multirun"], "the verb comes first"),
    (["train", "model.n_layr=4"], "did you mean 'model.n_layer'?"),
    (["train", "learning_rate=1"], "did you mean 'optim.learning_rate'?"),
    (["train", "optim=3", "zzz=1"], "unknown key 'zzz'"),
    (["train", "+zzz=1"], "unknown key 'zzz'"),
    (["train", "++model.zzz=1"], "unknown key 'model.zzz'"),
    (["train", "~model"], "not removed"),
    (["train", "word"], "'word' is not of the form key=value"),
    (["train", "--modle"], "unknown flag --modle"),
    (["train", "--cfg"], "--cfg needs a value"),
    (["train", "--resolve"], "--resolve goes with --cfg job"),
    (["train", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
    (["train", "--config-name", "nowhere"], "no config named 'nowhere'"),
    (["train", "model=smal"], "did you mean 'small'? choices: gpt2, "),
    (["train", "experiment=articel"], "did you mean 'article'?"),
    (["train", "model="], "model= needs a value"),
    (["train", "model=micro,mini"], "several values need a sweep; add -m"),
    (["train", "max_steps=1,2"], "add -m"),
    (["train", "model.n_layer=abc"], "model.n_layer=abc: must be of type int"),
    (["train", "model.n_layer=4.5"], "model.n_layer=4.5: must be of type int"),
    (["train", "seed=null"], "seed=null: must be of type int"),
    (["train", "threads=many"], "threads=many: must be of type int or null"),
    (["train", "model.qk_norm=7up"], "must be of type bool"),
    (["train", "model.n_embd=65"], "try model.n_embd=64 or 68"),
    (["train", "arch=modern", "model.n_embd=12"], "must be even, not 3"),
    (["train", "model.n_layer=0"], "model.n_layer=0: must be at least 1"),
    (["train", "model.dropout=1"], "must be below 1"),
    (["train", "model.norm=batchnorm"], "choose one of layernorm, rmsnorm"),
    (["train", "optim.learning_rate=0"], "must be above 0"),
    (["train", "optim.learning_rate=nan"], "must be above 0"),
    (["train", "optim.min_learning_rate=1"], "above optim.learning_rate"),
    (["train", "data.val_fraction=1"], "must be below 1"),
    (["train", "data.path=nope.txt"], "data.path=nope.txt: no such file"),
    (["train", "data.path=empty.txt"], "empty, 0 bytes"),
    (["train", "data.path=short.txt"], "give at least"),
    (["train", "data.path=latin1.txt"], "not UTF-8 text: invalid continuation byte at byte 3"),
    (["train", "data=run"], "data.source=run"),
    (["train", "device=gpu"], "device=gpu: choose one of auto, cpu, cuda"),
    (["train", "device=cpu", "dtype=float16"], "needs a GPU"),
    (["train", "dtype=int8"], "choose one of auto, float32"),
    (["train", "batch_size=0"], "must be at least 1"),
    (["train", "out_dir=full"], "out_dir=full: not empty (it holds x)"),
    (["train", "resume=nope"], "resume=nope: no such folder"),
    (["train", "resume=latest"], "no run under outputs/ yet"),
    (["train", "resume=full"], "no checkpoint in this folder"),
    (["sample"], "make one: microgpt train"),
    (["sample", "nope"], "ckpt=nope: no such folder"),
    (["sample", "full"], "no checkpoint in this folder"),
    (["sample", "model.pt"], "microgpt reads no pickle"),
    (["sample", "a", "b"], "'b' is not of the form key=value"),
    (["sample", "ckpt="], "ckpt=: "),
    (["sample", "temperature=-1"], "must be at least 0"),
    (["sample", "top_p=0"], "must be above 0"),
    (["sample", "top_k=0"], "must be at least 1"),
    (["sample", "stop="], "stop=: "),
    (["sample", "prompt=a", "prompt_file=b"], "not both"),
    (["eval"], "ckpt is required, for example: microgpt eval ckpt=outputs/latest"),
    (["params", "vocab_size=0"], "must be at least 1"),
    (["params", "format=xml"], "choose one of table, plain, json"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], says: str, microgpt: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9" * 1000)
    (tmp_path / "model.pt").write_bytes(b"\x80\x02")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    before = sorted(tmp_path.rglob("*"))
    ran = microgpt(*words)
    assert ran.status == 2
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("microgpt")
    assert ran.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; from microgpt_cli import cli, overrides;"
        "overrides.sort_words = lambda *a: 1 / 0; sys.exit(cli.main(['params']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    "prompt",
    ["O God, O God!", "don't", "李明", "a\nb", "123", "a=b", "${HOME}", 'say "hi"', "C:\\", "#1 = 100%", "1e-3"],
)
def test_a_prompt_arrives_byte_for_byte(prompt: str, trained: Path, microgpt: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", *TINY, "tokenizer=byte", f"data.path={trained.parent / 'my.txt'}", f"out_dir={run}"]
    assert microgpt(*words, "max_steps=1").status == 0
    assert microgpt("sample", str(run), f"prompt={prompt}", "max_new_tokens=0").out == prompt


def test_flags_may_stand_between_overrides(microgpt: Run) -> None:
    out = microgpt("train", "model=mini", "--cfg", "job", "seed=7").out
    assert "n_embd: 128" in out
    assert "seed: 7" in out


def test_a_folder_of_ones_own_configs(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "nano.yaml").write_text(
        "n_layer: 1\nn_head: 1\nn_embd: 8\nblock_size: 4\ndropout: 0.0\n"
    )
    assert "n_embd: 8" in microgpt("train", "--config-dir", "my", "model=nano", "--cfg", "job").out
    assert microgpt("params", "model=nano", "--config-dir=my", "format=plain").status == 0


def test_a_mistake_in_ones_own_config_is_one_line(microgpt: Run, tmp_path: Path) -> None:
    (tmp_path / "my" / "model").mkdir(parents=True)
    (tmp_path / "my" / "model" / "bad.yaml").write_text("n_layr: 1\n")
    ran = microgpt("params", "--config-dir", "my", "model=bad")
    assert ran.status == 2
    assert "n_layr" in ran.err
    assert ran.err.count("\n") == 1


def test_a_sweep_gives_each_job_a_run_folder_of_its_own(microgpt: Run, text_file: Path, tmp_path: Path) -> None:
    words = [*TINY, f"data.path={text_file}", "max_steps=2"]
    ran = microgpt("train", "optim.learning_rate=1e-3,3e-3", "-m", *words, "optim.min_learning_rate=0")
    assert ran.status == 0, ran.err
    [sweep] = (tmp_path / "outputs" / "sweeps").iterdir()
    for job in ("0", "1"):
        assert (sweep / job / "result.json").is_file()
        assert (sweep / job / ".hydra" / "config.yaml").is_file()
    assert "=" not in str(sweep.relative_to(tmp_path))


def test_a_sweep_of_a_verb_that_leaves_nothing_leaves_nothing(microgpt: Run, tmp_path: Path) -> None:
    ran = microgpt("params", "-m", "model=micro,mini", "format=plain")
    assert ran.status == 0
    assert ran.out.count("lm_head") == 2
    assert list(tmp_path.iterdir()) == []


def complete(line: str) -> str:
    env = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    return subprocess.run([*MICROGPT, "-sc", "query=bash"], env=env, capture_output=True, text=True, check=True).stdout


def test_completion_of_verbs_groups_choices_and_keys() -> None:
    assert complete("microgpt tr").split() == ["train"]
    assert set(complete("microgpt ").split()) == set(cli.VERBS)
    assert complete("microgpt train model=mi").split() == ["model=micro", "model=mini"]
    assert "optim.learning_rate=" in complete("microgpt train optim.lea")


def test_completion_can_be_installed(microgpt: Run) -> None:
    assert "complete" in microgpt("-sc", "install=bash").out
    assert "eval" in microgpt("-sc").err


def test_the_module_runs_too() -> None:
    done = subprocess.run([*MICROGPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("microgpt ")


def test_a_reader_that_has_enough_ends_it_quietly() -> None:
    done = subprocess.run(
        f"{sys.executable} -m microgpt_cli params depth=3 | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_python_3_14_checks_help_texts_and_hydra_passes_a_lazy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if action.help is not None and "%" in action.help:  # TypeError for what is no string
            raise ValueError("badly formed help string")

    monkeypatch.setattr(argparse.ArgumentParser, "_check_help", strict, raising=False)
    cli._mend_argparse()
    mended = argparse.ArgumentParser._check_help  # type: ignore[attr-defined]
    mended(None, argparse.Action([], "x", help=object()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="badly formed"):
        mended(None, argparse.Action([], "x", help="%"))


def test_a_broken_plugin_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "site" / "hydra_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("raise ValueError('mutable default')\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([*MICROGPT, "params"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Hydra plugin is broken" in done.stderr
    assert "mutable default" in done.stderr
