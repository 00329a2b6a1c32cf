"""The wheel carries conf/ and works away from any checkout; an editable install reads the checkout's conf/."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from microgpt_cli.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent


def test_a_checkout_reads_its_own_conf() -> None:
    assert cli.CONF == ROOT / "conf"


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [
        *project["dependencies"],
        *(word for extra in project["optional-dependencies"].values() for word in extra),
    ]
    names = {re.split(r"[^\w.-]", word)[0].lower() for word in declared}
    imported: set[str] = set()
    for package in ("microgpt_cli", "hydra_plugins"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    imported.add(node.module.partition(".")[0])
    others = imported - {*sys.stdlib_module_names, "microgpt_cli", "hydra_plugins"}
    assert {{"yaml": "pyyaml", "hydra": "hydra-core"}.get(name, name) for name in others} <= names


@pytest.mark.slow
def test_the_wheel_runs_away_from_the_checkout(tmp_path: Path) -> None:
    """Build it, unpack it, and run it with this environment's libraries from another folder."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site/microgpt_cli/conf/train.yaml").is_file()
    code = (
        "import sys; sys.path.insert(0, 'site'); from microgpt_cli.cli import main as cli;"
        "assert 'site' in str(cli.CONF), cli.CONF; sys.exit(cli.main(sys.argv[1:]))"
    )
    assert (tmp_path / "site/hydra_plugins/microgpt_sweeper/grid.py").is_file()
    for words in (
        ["train", "-m", "max_steps=1,2", "device=cpu"],
        ["sample", "max_new_tokens=5"],
        ["params", "model=gpt2"],
    ):
        subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, check=True)
