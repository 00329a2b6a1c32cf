"""README and docs tell the truth: their commands compose, their tables list what there is, their extras exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
# Commands in examples begin with `$ microgpt` or are indented; a comment may follow.
COMMANDS = sorted(set(re.findall(r"^(?:\$| {4}) ?microgpt (?!VERB)(.+?)(?:\s+#.*)?$", TEXT, re.MULTILINE)))


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_composes(command: str, microgpt: Run) -> None:
    words = [word for word in shlex.split(command) if word != "-m"]
    words = [word for word in words if not word.startswith("sweep.") and "interval(" not in word]  # of a search alone
    words = [word.partition(",")[0] if "=" in word and "," in word and "prompt" not in word else word for word in words]
    asks_help = "--help" in words
    ran = microgpt(*words, *([] if asks_help else ["--cfg", "job"]))
    assert ran.status == 0, ran.err


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_readme_has_one_command_that_ends_in_pytest() -> None:
    """`.ci/run` takes it from there."""
    [command] = re.findall(r"^ {4}(.* pytest)$", README, re.MULTILINE)
    assert "-e '.[dev]'" in command


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_the_table_of_groups_is_conf(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for group, choices in cli.group_choices("train").items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{group}` | `"))
        assert set(re.findall(r"`([\w-]+)`", row.split("|")[2])) == set(choices) - {"run"}


@pytest.mark.parametrize("page", ["README.md", "docs/cli.md"])
def test_the_table_of_verbs_is_complete(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [verb for verb in cli.VERBS if f"\n| `{verb}` |" not in text] == []


def test_the_list_of_keys_has_every_verb() -> None:
    text = (ROOT / "docs/keys.md").read_text(encoding="utf-8")
    missing = {verb for verb in cli.VERBS if f"<!-- output: microgpt {verb} --help -->" not in text}
    assert missing == {"doctor"}  # whose keys are those of train


def test_the_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name.strip() for names in re.findall(r"'?\.\[([\w, ]+)\]'?", TEXT) for name in names.split(",")}
    assert named - set(extras) == set()
    assert "microgpt-cli[" not in TEXT  # the name on the package index is not ours


def test_the_figures_of_speed_are_those_of_the_measured_table() -> None:
    section = README.partition("\n## Speed\n")[2].partition("\n## ")[0]
    measured = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    cells = [cell for row in re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:] for cell in row.split("|")[2:-1]]
    figures = [figure for cell in cells if (figure := re.match(r" ([\d.,]+)", cell))]
    assert len(figures) == 9
    assert [figure[1] for figure in figures if figure[1] not in measured] == []


def test_the_test_files_that_the_workflow_names_exist() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"tests/test_\w+\.py", workflow))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
