"""What the site takes from outside docs/: MkDocs calls these functions, see mkdocs.yml.

Pages link to each other by relative paths, so that the links work on any host of the repository. In the site the files
outside docs/ keep their path below the root, and links are rewritten to match.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = ["CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/recipes.md"]
PICTURES = "benchmarks/results/*.svg"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures outside docs/."""
    for path in [*(ROOT / name for name in OUTSIDE), *ROOT.glob(PICTURES)]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite links: from docs/ to a file outside it, and from there into docs/."""
    if page.file.src_uri in OUTSIDE:
        return re.sub(r"\]\(docs/", "](", markdown)
    return re.sub(r"\]\(\.\./", "](", markdown)
