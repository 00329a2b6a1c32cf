"""Words → Hydra overrides: whatever the shell passes in one argument arrives byte for byte."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from microgpt_cli.cli.overrides import nearest, quote, sort_words
from microgpt_cli.config.schema import Leaf
from microgpt_cli.errors import UserError

LEAVES = {
    "prompt": Leaf("prompt", "str", False, "", ()),
    "ckpt": Leaf("ckpt", "str", True, "", ()),
    "model.n_layer": Leaf("model.n_layer", "int", False, "", ()),
    "paths": Leaf("paths", "list", False, "", ()),
}
GROUPS = {"model": ["micro", "mini"]}
PARSER = OverridesParser.create()


def arrives(text: str) -> str:
    """What Hydra's parser and OmegaConf make of a quoted text."""
    config = OmegaConf.create({"prompt": ""})
    OmegaConf.update(config, "prompt", PARSER.parse_override(f"prompt={quote(text)}").value())
    return config.prompt


@given(st.text(alphabet=st.one_of(st.sampled_from("a\\'\"${}:,= \n\t[]()é李"), st.characters(codec="utf-8"))))
@settings(max_examples=500, deadline=None)
def test_any_text_arrives_as_typed(text: str) -> None:
    assert arrives(text) == text


@pytest.mark.parametrize(
    "text", ["O God, O God!", "don't", "李明", "a\nb", "123", "a=b", "${HOME}", "", "\\", "\\${x}'"]
)
def test_named_texts_arrive_as_typed(text: str) -> None:
    assert arrives(text) == text


def sort(*words: str, positional: tuple[str, ...] = ("ckpt",)):
    return sort_words(words, LEAVES, GROUPS, positional)


def test_flags_may_stand_anywhere() -> None:
    words = sort("model=micro", "-m", "model.n_layer=1,2", "--config-dir", "x")
    assert words.flags == ("--multirun", "--config-dir", "x")
    assert words.overrides == ("model=micro", "model.n_layer=1,2")
    assert words.typed == ("model", "model.n_layer")


def test_a_bare_word_fills_the_positional_key() -> None:
    assert sort("outputs/x").overrides == ("ckpt='outputs/x'",)


def test_null_empties_a_key_that_may_be_empty_and_is_text_elsewhere() -> None:
    assert sort("ckpt=null").overrides == ("ckpt=null",)
    assert sort("prompt=null").overrides == ("prompt='null'",)


def test_in_a_sweep_text_with_commas_is_several_values() -> None:
    assert sort("-m", "ckpt=a,b").overrides == ("ckpt=a,b",)
    assert sort("ckpt=a,b").overrides == ("ckpt='a,b'",)


def test_bare_words_fill_a_list() -> None:
    words = sort("a b", "model=micro", "it's", positional=("paths",))
    assert words.overrides == ("model=micro", r"paths=['a b','it\'s']")
    assert words.typed == ("model", "paths")


@pytest.mark.parametrize(
    ("typed", "lists"),
    [
        ("a", [["a"]]),
        ("[a,b]", [["a", "b"]]),
        ("[a, 'b']", [["a", "b"]]),
        ("[]", [[]]),
        ("null", [[]]),
        ("a,b", [["a", "b"]]),
        ("a=1,${b}", [["a=1", "${b}"]]),
    ],
)
def test_a_list_needs_no_brackets_around_one(typed: str, lists: list[list[str]]) -> None:
    assert arrived(sort(f"paths={typed}")) == lists


def arrived(words) -> list[list[str]]:
    """The lists that Hydra's parser and OmegaConf make of the one override."""
    override = PARSER.parse_override(words.overrides[0])
    texts = [f"paths={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else []
    found = []
    for text in texts or words.overrides:
        config = OmegaConf.create({"paths": []})
        OmegaConf.update(config, "paths", PARSER.parse_override(text).value())
        found.append(list(config.paths))
    return found


@pytest.mark.parametrize(
    ("typed", "lists"), [("a,b", [["a"], ["b"]]), ("a,[a,b]", [["a"], ["a", "b"]]), ("[],[b]", [[], ["b"]])]
)
def test_in_a_sweep_a_comma_stands_between_lists(typed: str, lists: list[list[str]]) -> None:
    assert arrived(sort("-m", f"paths={typed}")) == lists


def test_hydras_own_keys_pass_untouched() -> None:
    assert sort("hydra/launcher=joblib", "hydra.verbose=true").overrides == (
        "hydra/launcher=joblib",
        "hydra.verbose=true",
    )


def test_a_plus_changes_nothing_for_a_known_key() -> None:
    assert sort("+model.n_layer=3").overrides == ("model.n_layer=3",)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.n_layr=3"], "did you mean 'model.n_layer'?"),
        (["n_layer=3"], "did you mean 'model.n_layer'?"),
        (["++zzz=3"], "unknown key 'zzz'"),
        (["model.n_layer=1,2"], "add -m"),
        (["model.n_layer="], "needs a value"),
        (["~model"], "can't be removed"),
        (["--multirn"], "did you mean '--multirun'?"),
        (["--cfg"], "--cfg needs a value"),
        (["a", "b"], "'b' is not of the form key=value"),
    ],
)
def test_mistakes_are_named(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        sort(*words)


def test_nearest_looks_at_the_last_part_too() -> None:
    assert nearest("learning_rate", ["optim.learning_rate", "optim.min_learning_rate"]) == "optim.learning_rate"
