"""YAML in a folder given with --config-dir: code by definition, but a mistake in it is still one line."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Run, Tried
from hypothesis import strategies as st
from support.hostile import CPU_SECONDS, guarded, hammer, mutate_bytes

from microgpt_cli.cli import main as cli
from microgpt_cli.cli import own_configs

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WHOLE = "n_head: 1\nn_embd: 8\nblock_size: 4\ndropout: 0.0\n"  # all that a model needs but for n_layer
YAML_CASES = {
    "an alias bomb": (BOMB, "more than 2,000 values with aliases expanded"),
    "an alias of itself": ("a: &a [*a]\n", "more than 2,000 values"),
    "deep": ("[" * 5000, "nested deeper than 20 levels"),
    "huge": ("# " + "x" * 70_000, "larger than 65,536 bytes"),
    "an object": ('!!python/object/apply:os.system ["touch canary"]\n', "could not determine a constructor"),
    "a module": ("n_layer: !!python/module:os\n", "could not determine a constructor"),
    "a target": ("_target_: os.system\ncommand: touch canary\n", "Key '_target_' not in 'ModelConfig'"),
    "the environment": (
        f"{WHOLE}n_layer: ${{oc.env:MICROGPT_NONE}}\n",
        "Environment variable 'MICROGPT_NONE' not found",
    ),
    "an interpolation of nothing": (f"{WHOLE}n_layer: ${{nope}}\n", "Interpolation key 'nope' not found"),
    "half an interpolation": ("n_layer: ${\n", "no viable alternative"),
    "half a list": ("n_layer: [1\n", "expected ',' or ']'"),
    "a tabulator": ("\t- x\n", "cannot start any token"),
    "a key twice": ("n_layer: 1\nn_layer: 2\n", "found duplicate key n_layer"),
    "a key that is none": ("? {a: b}\n: c\n", "found unhashable key"),
    "two documents": ("n_layer: 1\n---\nn_layer: 2\n", "expected a single document"),
    "a list": ("- 1\n", "list is not a subclass of ModelConfig"),
    "a text": ("just text\n", "Key 'just text' not in 'ModelConfig'"),
    "a date": ("n_layer: 2024-01-01\n", "could not be converted to Integer"),
    "5,000 digits": (f"n_layer: {'9' * 5000}\n", "Exceeds the limit"),
    "not a number": ("n_layer: .nan\n", "could not be converted to Integer"),
    "too little": ("n_layer: 1\n", "is required"),
    "nothing": ("", "is required"),
    "a default that is none": ("defaults: [nope]\n", "no such choice"),
    "defaults that are none": ("defaults: 3\n", "defaults must be a list"),
    "half a package": ("# @package\nn_layer: 1\n", "Expected header format"),
    # PyYAML in Python takes it, and the one in C does not
    "half a surrogate pair": ('position: "\\ud800"\n', ("is required", "invalid Unicode character escape code")),
}


TOO_DEEP = {
    "brackets": "[" * 5000,
    "brackets, closed": "n_layer: " + "[" * 900 + "]" * 900,
    "a bracket a line": "[\n" * 5000,
    "mappings": "{a: " * 5000,
    "a mapping a line": "{\na:\n" * 500,
    "dashes": "- " * 5000,
    "question marks": "? " * 5000,
    "indentation": "".join(f"{' ' * level}a:\n" for level in range(300)),
    "both": "a:\n" + "".join(f"{' ' * level}- b: \n" for level in range(1, 12)) + " " * 40 + "[" * 10,
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file of one's own: `--config-dir my model=own`."""
    path = tmp_path / "my" / "model" / "own.yaml"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(("text", "says"), YAML_CASES.values(), ids=YAML_CASES)
def test_a_mistake_in_ones_own_yaml_is_one_line(
    text: str, says: str | tuple[str, ...], own: Path, microgpt: Run, tmp_path: Path, tried: Tried
) -> None:
    tried("a kept hostile file")
    own.write_text(text)
    began = time.process_time()
    ran = microgpt("params", "--config-dir", "my", "model=own")
    assert time.process_time() - began < CPU_SECONDS
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert any(text in ran.err for text in ((says,) if isinstance(says, str) else says))
    assert [path.name for path in tmp_path.iterdir()] == ["my"]


def parser_that_fails(after: int, error: Exception) -> Callable[..., Any]:
    """`yaml.parse`, failing once it has handed out so many events."""
    parse = yaml.parse

    def fails(text: str, Loader: Any) -> Iterator[Any]:
        yield from itertools.islice(parse(text, Loader=Loader), after)
        raise error

    return fails


@pytest.mark.parametrize("text", TOO_DEEP.values(), ids=TOO_DEEP)
@pytest.mark.parametrize("after", [0, 10, None], ids=["at once", "after some events", "as installed"])
@pytest.mark.parametrize(
    "error", [yaml.scanner.ScannerError("exceeded maximum depth"), RecursionError(), MemoryError()]
)
def test_deep_yaml_is_named_whatever_the_parser_does(
    text: str, after: int | None, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    if after is not None:
        monkeypatch.setattr(yaml, "parse", parser_that_fails(after, error))
    assert own_configs.too_much(text) == "nested deeper than 20 levels"


@pytest.mark.parametrize(
    "blind", sorted(own_configs.LOADERS, key=lambda loader: loader.__name__), ids=lambda loader: loader.__name__
)
def test_aliases_are_counted_if_only_one_of_the_parsers_takes_the_file(
    blind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of the two reads the file later is the choice of OmegaConf."""
    parse, fails = yaml.parse, parser_that_fails(0, yaml.scanner.ScannerError())
    monkeypatch.setattr(yaml, "parse", lambda text, Loader: (fails if Loader is blind else parse)(text, Loader=Loader))
    assert own_configs.too_much(BOMB) == "more than 2,000 values with aliases expanded"


def test_what_the_parser_refuses_is_not_called_deep_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml, "parse", parser_that_fails(0, yaml.scanner.ScannerError()))
    for path in sorted(cli.CONF.rglob("*.yaml")):
        assert own_configs.too_much(path.read_text(encoding="utf-8")) == ""
    assert own_configs.too_much("- [a, b]\n- {c: d}\n" * 500) == ""


def test_a_file_that_only_the_loader_finds_too_deep_is_one_line(
    own: Path, microgpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_configs, "too_much", lambda text: "")
    own.write_text("[" * 900 + "]" * 900)
    ran = microgpt("params", "--config-dir", "my", "model=own")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "nested too deeply" in ran.err


def test_yaml_that_is_not_utf8_is_named(own: Path, microgpt: Run) -> None:
    own.write_bytes(b"n_layer: \xff\n")
    assert (
        "my/model/own.yaml: not UTF-8 text: invalid start byte at byte 9"
        in microgpt("params", "--config-dir", "my", "model=own").err
    )


def test_aliases_in_reason_are_welcome(own: Path, microgpt: Run) -> None:
    own.write_text("n_layer: &n 2\nn_head: *n\nn_embd: 8\nblock_size: 4\ndropout: 0.0\n")
    assert "8 × 2" not in microgpt("params", "--config-dir", "my", "model=own", "format=plain").err
    assert microgpt("params", "--config-dir", "my", "model=own").status == 0


def test_a_callback_in_ones_own_yaml_is_not_called_where_hydra_only_composes(microgpt: Run, tmp_path: Path) -> None:
    path = tmp_path / "my" / "experiment" / "own.yaml"
    path.parent.mkdir(parents=True)
    shell = "{_target_: subprocess.call, args: [touch, canary]}"
    path.write_text(f"# @package _global_\nhydra: {{callbacks: {{x: {shell}}}, job_logging: {{x: {shell}}}}}\n")
    ran = microgpt("train", "--config-dir", "my", "experiment=own", "data.path=nope.txt")
    assert "no such file" in ran.err
    assert not list(tmp_path.rglob("canary"))


YAML_WORDS = (
    "n_layer",
    "n_head: ",
    "n_embd: 8",
    "dropout: 0.0",
    ": ",
    "\n",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&a ",
    "*a",
)
YAML_WORDS += (
    "!!python/object/apply:os.system [x]",
    "!!binary ",
    "${",
    "}",
    "${oc.env:HOME}",
    "${model}",
    "_target_: x",
)
YAML_WORDS += (
    "defaults:",
    "<<: ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "---",
    "...",
    "\t",
    "\0",
    "\x85",
    "é",
    "???",
    "1e999",
    "~",
)
YAML_WORDS += ("hydra: ", "@package _global_", "99999999999999999999", ".nan", "on", "2024-01-01", "%", "@", "`")


@pytest.mark.parametrize(
    ("tries", "part"), [(20, 0), *(pytest.param(250, part, marks=pytest.mark.stress) for part in (1, 2))]
)
def test_mutated_yaml_is_refused_or_composes(
    tries: int, part: int, own: Path, capfd: pytest.CaptureFixture[str], tried: Tried
) -> None:
    whole = (cli.CONF / "model" / "micro.yaml").read_bytes()
    words = st.lists(st.sampled_from(YAML_WORDS) | st.text(max_size=3), max_size=8).map("".join)

    @st.composite
    def texts(draw: Callable[..., Any]) -> bytes:
        at = draw(st.integers(0, len(whole)))
        if draw(st.booleans()):
            return mutate_bytes(whole, draw)
        return whole[:at] + draw(words).encode("utf-8", "surrogatepass") + whole[at:]

    def check(text: bytes) -> None:
        tried("a mutated YAML")
        own.write_bytes(text)
        with guarded():
            status = cli.main(["params", "--config-dir", "my", "model=own", "format=plain"])
            captured = capfd.readouterr()
            assert (status, captured.err.count("\n")) in ((0, 0), (2, 1)), captured.err

    hammer(texts(), check, tries, same=part == 0)
