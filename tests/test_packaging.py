"""The wheel carries conf/ and works away from any checkout; an editable install reads the checkout's conf/."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from microgpt_cli.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent


def test_a_checkout_reads_its_own_conf() -> None:
    assert cli.CONF == ROOT / "conf"


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
