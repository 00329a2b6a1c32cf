"""Every relative link and anchor in the documentation exists, and the site builds without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/recipes.md"]
EXTERNAL = re.compile(r"[a-z]+:")
# What a browser loads by itself when it opens a page.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//"""
    r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|icon)["']?[^>]*\bhref=["']?(?:https?:)?//"""
)


def prose(page: Path) -> str:
    """A page without its code, in which a bracket is no link."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "`code`", text)


def links(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that are in this repository."""
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'\b(?:src|href)="([^"]+)"', text)
    return [target for target in targets if not EXTERNAL.match(target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs name them where both agree."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_there_are_links_to_check() -> None:
    assert sum(len(links(page)) for page in PAGES) > 60
    assert "#the-keyvalue-cache" in "".join(links(ROOT / "docs/glossary.md"))


def test_every_chapter_is_linked_from_the_readme_and_the_index() -> None:
    chapters = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    for page in (ROOT / "README.md", ROOT / "docs/index.md"):
        linked = {Path(target.partition("#")[0]).name for target in links(page)}
        assert chapters - linked == set()


def test_every_chapter_begins_with_a_command() -> None:
    for page in {*(ROOT / "docs").glob("*.md")} - {ROOT / "docs/native-wheels.md"}:  # which plans what is not there yet
        after_title = page.read_text(encoding="utf-8").partition("\n\n")[2]
        assert after_title.startswith("    "), page.name


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: pip install -e '.[docs]'")
def test_the_site_builds_and_loads_nothing_from_a_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 12
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page
