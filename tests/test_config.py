"""Types and ranges live in the dataclasses, values in `conf/`, and the defaults of programs are the same."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from conftest import ARCHES, SIZES, Run, preset

from microgpt_cli.cli import main as cli
from microgpt_cli.cli.verb import Verb
from microgpt_cli.config import CompareConfig, TokenizerConfig, TrainConfig
from microgpt_cli.config.device import check_device
from microgpt_cli.config.schema import from_json, leaves
from microgpt_cli.errors import UserError


@pytest.mark.parametrize("verb", cli.VERBS.values(), ids=cli.VERBS)
def test_every_key_has_a_meaning(verb: Verb) -> None:
    assert all(leaf.meaning for leaf in leaves(verb.schema))


@pytest.mark.parametrize("verb", sorted(set(cli.VERBS) - {"doctor"}))  # whose defaults are those of train
def test_the_groups_of_the_schema_are_those_of_the_defaults_list(verb: str) -> None:
    listed = yaml.safe_load((cli.CONF / f"{verb}.yaml").read_text(encoding="utf-8"))["defaults"]
    assert list(cli.group_choices(verb)) == [name for entry in listed if isinstance(entry, dict) for name in entry]


def test_defaults_of_programs_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cli.load_config("train", []) == TrainConfig()


@pytest.mark.parametrize(
    "schema", dict.fromkeys(verb.schema for verb in cli.VERBS.values() if verb.schema is not TrainConfig)
)
def test_what_programs_do_not_make_has_no_defaults(schema: type) -> None:
    for item in dataclasses.fields(schema):
        assert item.default is item.default_factory is dataclasses.MISSING


def test_no_default_of_a_program_stands_in_for_a_value_that_yaml_lacks(microgpt: Run, tmp_path: Path) -> None:
    own = tmp_path / "my" / "optim" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("kind: muon\n")
    ran = microgpt("train", "--config-dir", "my", "optim=own")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "optim.adamw_learning_rate is required" in ran.err


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arch", ARCHES)
def test_every_size_composes_with_every_kind(size: str, arch: str, microgpt: Run) -> None:
    ran = microgpt("params", f"model={size}", f"arch={arch}", "format=json")
    assert ran.status == 0
    assert json.loads(ran.out)["total"] > 0


@pytest.mark.parametrize("path", sorted((cli.CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes_and_says_how_to_run_it(path, microgpt: Run) -> None:
    assert f"# microgpt train experiment={path.stem} " in path.read_text(encoding="utf-8")
    assert microgpt("train", f"experiment={path.stem}", "data=shakespeare", "--cfg", "job").status == 0


@pytest.mark.parametrize(("group", "choice"), [(p.parent.name, p.stem) for p in sorted(cli.CONF.glob("*/[!_]*.yaml"))])
def test_every_choice_composes(group: str, choice: str, microgpt: Run) -> None:
    assert microgpt("train", f"{group}={choice}", "--cfg", "job").status == 0


def test_an_experiment_wins_over_defaults_and_loses_to_what_is_typed(microgpt: Run) -> None:
    plain = microgpt("train", "experiment=nanogpt_cpu", "--cfg", "job").out
    assert "n_embd: 128" in plain
    assert "batch_size: 12" in plain
    typed = microgpt("train", "batch_size=5", "model=small", "experiment=nanogpt_cpu", "--cfg", "job").out
    assert "n_embd: 384" in typed
    assert "batch_size: 5" in typed


def test_heads_that_do_not_divide_the_width_name_both_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"model\.n_embd=65.*model\.n_head=4.*64 or 68"):
        preset("micro", "article", n_embd=65)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_devices_that_are_none(device: str) -> None:
    with pytest.raises(UserError, match="device="):
        check_device(device)


def test_from_json_names_what_is_wrong() -> None:
    good = {"kind": "char", "unknown": "error"}
    assert from_json(TokenizerConfig, good, "f") == TokenizerConfig("char", "error")
    for bad, says in (
        ({"kind": "char"}, "tokenizer.unknown is missing"),
        (good | {"x": 1}, "tokenizer.x is unknown"),
        (good | {"kind": 3}, "tokenizer.kind=3 must be of type str"),
        ([], "must be an object"),
        (good | {"kind": "${oc.env:HOME}"}, "choose one of"),
    ):
        with pytest.raises(UserError, match=says):
            from_json(TokenizerConfig, bad, "f", "tokenizer.")


def test_a_list_of_texts_is_checked_item_by_item() -> None:
    good = {
        "sample": True,
        "prompt": "",
        "max_new_tokens": 1,
        "temperature": 1.0,
        "seed": 1,
        "device": "cpu",
        "out": None,
    }
    assert from_json(CompareConfig, good | {"paths": ["a", "b"]}, "f").paths == ["a", "b"]
    for bad in ("a", [1, 2], [["a"]], None):
        with pytest.raises(UserError, match=r"paths=.* must be of type list"):
            from_json(CompareConfig, good | {"paths": bad}, "f")
    with pytest.raises(UserError, match="needs a value"):
        from_json(CompareConfig, good | {"paths": ["a", ""]}, "f")


def test_a_stored_config_comes_back(trained) -> None:
    stored = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    config = from_json(TrainConfig, stored, "f")
    assert dataclasses.asdict(config) == stored
