"""The front door, as its users meet it: start-up, help, flags, sweeps, completion. Mistakes: test_mistakes.py."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, Run

from microgpt_cli.cli import composing, multirun
from microgpt_cli.cli import main as cli

MICROGPT = [sys.executable, "-m", "microgpt_cli"]


def imported(*words: str) -> set[str]:
    """The modules that a command line imports."""
    code = f"import sys; from microgpt_cli.cli import main as cli; cli.main({list(words)!r}); print('#', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("#")[2].split())


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",)])
def test_the_first_page_imports_neither_torch_nor_hydra(words: tuple[str, ...]) -> None:
    assert not {"torch", "hydra", "omegaconf"} & imported(*words)


@pytest.mark.parametrize("words", [("train", "--help"), ("sample", "--cfg", "job"), ("params", "--info", "defaults")])
def test_pages_about_a_verb_do_not_import_torch(words: tuple[str, ...]) -> None:
    assert "torch" not in imported(*words)


FIRST_STEP = """
import sys
from microgpt_cli.cli import main as cli
from microgpt_cli.training.trainer import Stepped, Trainer

run = Trainer.run

def watched(self):
    for event in run(self):
        if isinstance(event, Stepped):
            print("#", *sys.modules, file=sys.stderr)
        yield event

Trainer.run = watched
cli.main(sys.argv[1:])
"""


def test_what_takes_long_to_import_is_not_there_at_the_first_step(text_file: Path) -> None:
    words = ["train", *TINY, f"data.path={text_file}", "max_steps=1"]
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, *words], capture_output=True, text=True, check=True)
    modules = set(done.stderr.rpartition("#")[2].split())
    assert {"torch", "hydra", "microgpt_cli.commands.train"} <= modules
    dear = {"torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "sympy", "networkx", "matplotlib", "PIL"}
    assert not modules & (dear | {"optuna", "joblib", "wandb", "trackio", "microgpt_cli.cli.multirun"})


COLLECTOR = """
import gc, sys
from microgpt_cli.cli import main as cli
sys.argv = ["microgpt", "runs", "nowhere"]
cli.main(sys.argv[1:] if {by_program} else None)
print(gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize("by_program", [True, False])
def test_the_collector_rests_while_a_command_starts_and_never_in_a_program_of_others(by_program: bool) -> None:
    code = COLLECTOR.format(by_program=by_program)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(not by_program)]


def test_the_compiler_has_nothing_to_say_at_the_end() -> None:
    """Where nothing is cleared away when the process ends, triton prints a list of what it calls leaked."""
    pytest.importorskip("triton")
    code = "from microgpt_cli.cli import gc_control; gc_control.pause(); import triton; gc_control.resume()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_replay_needs_no_torch(trained: Path) -> None:
    assert "torch" not in imported("replay", str(trained))


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
    assert re.search(r"^  model.n_layer +int +6$", microgpt("train", "model=small", "--help").out, re.MULTILINE)


def test_text_that_a_terminal_lacks_costs_no_traceback() -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*MICROGPT, "--help"], env=env, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"microgpt VERB key=value ?" in done.stdout


def test_a_bug_shows_its_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; from microgpt_cli.cli import main as cli, overrides;"
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
    multirun.patch_argparse()
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
    assert "broken Hydra plugin" in done.stderr
    assert "mutable default" in done.stderr


def test_an_error_that_ctrl_c_has_caused_is_told_as_ctrl_c(microgpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("half restored")

    monkeypatch.setattr(composing, "compose", cut_off)
    ran = microgpt("params")
    assert (ran.status, ran.err) == (130, "interrupted\n")
