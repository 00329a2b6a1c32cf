"""Write the outputs that README.md and docs/ show, as the program prints them.

    python docs/outputs.py                          # outputs that are equal on every machine: seconds
    python docs/outputs.py runs [shakespeare=FILE]  # outputs of runs too: about five minutes on two cores
    python docs/outputs.py PAGE …                   # of some pages alone

A page (README.md, docs/cli.md) holds blocks between two comments:

    <!-- output: microgpt params; lines :9 -->     equal on every machine; tests/test_docs_outputs.py compares it
    <!-- run: microgpt train; lines :9, -6: -->    of a run on this machine: losses, dates and times vary
    <!-- end of output -->

`lines` picks slices of the output, as Python writes them, and /patterns/; an ellipsis stands for what is left out.
The first line of a block is its command. `<!-- setup: COMMAND -->` runs a command of `microgpt` and shows nothing. The
commands of all pages run in one temporary folder, in the order of `PAGES`: a run that one page makes is there for the
next.
"""

import contextlib
import io
import itertools
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from microgpt_cli.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
USE = [
    "cli",
    "keys",
    "runs",
    "sampling",
    "understanding",
    "sweeps",
    "learning-rate",
    "performance",
    "trackers",
    "python",
]
OTHER = ["reliability", "architecture", "glossary", "native-wheels"]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ["index", *USE, *OTHER])]
END = "<!-- end of output -->\n"
BLOCK = re.compile(
    r"<!-- (?P<kind>output|run|setup): (?P<command>[^\n;]+)(?:; lines (?P<lines>[^\n]+))? -->\n"
    rf"(?:(?P<shown>(?:```text\n(?:(?!```)[^\n]*\n)*```\n)?){re.escape(END)})?"
)
COLUMNS = "100"  # width of a terminal, for tables and help that fit themselves to it
HOME = "/home/ada"  # stands for the temporary folder
NOTES_WORDS = ["apple", "bread", "candle", "door", "evening", "forest", "garden", "house", "island", "jacket", "lamp"]


def notes() -> str:
    """A text about which doctor has something to say: invisible characters, a Windows line end, repeated passages."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(NOTES_WORDS, k=9)).capitalize() + "." for _ in range(1000)]
    lines += lines[:60]  # the end of the text, where the validation split is, repeats its beginning
    return "\ufeff" + lines[0] + "\r\n\u200b" + "\n".join(lines[1:]) + "\n"


@dataclass(frozen=True)
class Block:
    """One marked place of a page."""

    kind: str
    command: str  # with "microgpt" as its first word
    lines: str  # "" for all
    shown: str  # the fenced text

    @property
    def words(self) -> list[str]:
        """The words after `microgpt`."""
        return shlex.split(self.command)[1:]

    def render(self, output: str) -> str:
        """The fenced text for what the command printed."""
        chosen = pick(output.rstrip().splitlines(), self.lines)
        return "\n".join(["```text", f"$ {self.command}", *(line.rstrip() for line in chosen), "```", ""])


def pick(lines: Sequence[str], slices: str) -> list[str]:
    """The lines in a list of slices and patterns such as `:9, /^step/, -3:`, with an ellipsis for each gap.

    Raises:
        ValueError: the list is not one of slices and patterns.
    """
    if not slices:
        return list(lines)
    kept: set[int] = set()
    for part in slices.split(","):
        part = part.strip()
        if part.startswith("/") and part.endswith("/"):
            kept |= {number for number, line in enumerate(lines) if re.search(part[1:-1], line)}
            continue
        first, colon, last = part.partition(":")
        if not colon:
            raise ValueError(f"lines {slices}: {part} is no slice; as in :9, /^step/, -3: (no comma in a pattern)")
        kept |= set(range(*slice(int(first) if first else None, int(last) if last else None).indices(len(lines))))
    chosen: list[str] = []
    for number, line in enumerate(lines):
        if number in kept:
            chosen.append(line)
        elif number == 0 or number - 1 in kept:
            chosen.append("…")
    return chosen


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(found["kind"], found["command"], found["lines"] or "", found["shown"] or "")
        for found in BLOCK.finditer(text)
    ]


def rewrite(text: str, render: Callable[[Block], str | None]) -> str:
    """A page with each block replaced by what `render` gives for it; None keeps it as it is."""

    def replaced(found: re.Match[str]) -> str:
        [block] = blocks(found[0])
        rendered = render(block)
        marker = found[0].partition("\n")[0] + "\n"
        return found[0] if rendered is None else f"{marker}{rendered}{END}"

    return BLOCK.sub(replaced, text)


def header_labels(output: str) -> list[str]:
    """The labels of the lines that `microgpt train` prints before its first step: up to the one of the run's folder."""
    words = [line.split()[0] for line in output.splitlines() if line.strip() and not line.startswith("$")]
    return words[: words.index("run") + 1]


def result_labels(output: str) -> list[str]:
    """The labels of what it prints after its last sample, each once."""
    last = output.rstrip().rpartition("\n\n")[2]
    return list(dict.fromkeys(line.split()[0] for line in last.splitlines() if line.strip() and line[0] not in "…`"))


def print_of(words: Sequence[str]) -> str:
    """What a command prints, run in this process."""
    os.environ["COLUMNS"] = COLUMNS
    os.environ.pop("XDG_CACHE_HOME", None)  # the help prints the cache's folder
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.main(words)
    if status:
        sys.exit(f"microgpt {shlex.join(words)}: exit status {status}")
    return printed.getvalue()


def print_of_run(command: str, folder: Path) -> str:
    """What a command prints to standard output and standard error, run in `folder`."""
    print(f"$ {command}", file=sys.stderr)
    program = Path(sys.executable).with_name("microgpt")
    words = [str(program), *shlex.split(command)[1:]]
    environment = os.environ | {"COLUMNS": COLUMNS}
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{command}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout.replace(str(folder), HOME)


def main(arguments: Sequence[str]) -> None:
    """Rewrite the pages that are named, or all of them."""
    with_runs = "runs" in arguments
    given = dict(word.split("=", 1) for word in arguments if "=" in word)
    named = {(Path.cwd() / word).resolve() for word in arguments if word != "runs" and "=" not in word}
    if set(given) - {"shakespeare"} or named - set(PAGES):
        sys.exit(__doc__)
    for block in itertools.chain(*(blocks(page.read_text(encoding="utf-8")) for page in PAGES)):
        pick([], block.lines)  # a mistake is told before minutes of runs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        (folder / "notes.txt").write_bytes(notes().encode())
        if "shakespeare" in given:
            (folder / "data").mkdir()
            shutil.copy(given["shakespeare"], folder / "data" / "tinyshakespeare.txt")

        def render(block: Block) -> str | None:
            if block.kind == "output":
                return block.render(print_of(block.words))
            if not with_runs:
                return None
            printed = print_of_run(block.command, folder)
            return block.render(printed) if block.kind == "run" else None

        for page in PAGES:
            before = page.read_text(encoding="utf-8")
            if named and page not in named:
                rewrite(before, lambda block: render(block) if block.kind == "setup" else None)
                continue
            after = rewrite(before, render)
            if after != before:
                page.write_text(after, encoding="utf-8")
                print(f"written: {page.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
