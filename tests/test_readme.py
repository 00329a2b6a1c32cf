"""The README tells the truth: its commands compose, its file map is the tree, its groups are those in conf/."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import Run

from microgpt_cli.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^\$ microgpt (.+?)(?:\s+#.*)?$", README.replace("\\\n", ""), re.MULTILINE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_tour_composes(command: str, microgpt: Run) -> None:
    words = [word for word in shlex.split(command) if word != "-m"]
    words = [word for word in words if not word.startswith("sweep.") and "interval(" not in word]  # of a search alone
    words = [word.partition(",")[0] if "=" in word and "," in word and "prompt" not in word else word for word in words]
    ran = microgpt(*words, "--cfg", "job")
    assert ran.status == 0, ran.err


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def test_the_file_map_is_the_tree() -> None:
    listed = set(re.findall(r"\b\w+\.py\b", README.partition("## The files")[2].partition("\n## ")[0]))
    there = {path.name for path in (ROOT / "microgpt_cli").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert listed == there


def test_the_groups_are_those_of_conf() -> None:
    section = README.partition("## The groups")[2].partition("\n## ")[0]
    for group, choices in cli.group_choices("train").items():
        row = next(line for line in section.splitlines() if line.startswith(f"| `{group}` |"))
        listed = set(re.findall(r"`([\w-]+)`", row.split("|")[2]))
        assert listed == set(choices) - {"run"}


def test_every_verb_has_its_row() -> None:
    for verb in cli.VERBS:
        assert f"| `{verb}` |" in README
