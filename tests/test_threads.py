"""How many CPU threads a command uses, and how they wait for each other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY, Run

from microgpt_cli import compute, threads
from microgpt_cli.cli import main as cli


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def system(root: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A folder with `proc` and `sys` as Linux has them."""
    written = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 30 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n"
V1_FOLDER = "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("", "", {}, None),
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", V2, {"sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3.0),
        (
            "0::/a/b\n",
            V2,
            {"sys/fs/cgroup/a/b/cpu.max": "400000 100000", "sys/fs/cgroup/a/cpu.max": "50000 100000"},
            0.5,
        ),
        ("0::/../elsewhere\n", V2, {"sys/fs/cgroup/cpu.max": "200000 100000"}, 2.0),
        ("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "damaged"}, None),
        (
            "4:cpu,cpuacct:/docker/1f\n0::/docker/1f\n",
            V1.format(root="/docker/1f"),
            {f"{V1_FOLDER}/cpu.cfs_quota_us": "100000\n", f"{V1_FOLDER}/cpu.cfs_period_us": "100000\n"},
            1.0,
        ),
        (
            "4:cpu,cpuacct:/\n",
            V1.format(root="/"),
            {f"{V1_FOLDER}/cpu.cfs_quota_us": "-1\n", f"{V1_FOLDER}/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        (
            "5:memory:/x\n4:cpu,cpuacct:/slurm/job\n",
            V1.format(root="/"),
            {f"{V1_FOLDER}/slurm/cpu.cfs_quota_us": "250000\n", f"{V1_FOLDER}/slurm/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
    ],
)
def test_cpu_quota_is_the_smallest_of_a_group_and_its_parents(
    groups: str, mounts: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    assert threads.cpu_quota(system(tmp_path, groups, mounts, files)) == quota


@pytest.mark.parametrize(
    ("environ", "quota", "affinity", "count", "reason"),
    [
        ({}, None, 8, 8, "8 cores"),
        ({}, "150000", 8, 2, "CPU quota 1.5 of 8 cores"),
        ({}, "20000", 8, 1, "CPU quota 0.2 of 8 cores"),
        ({}, "600000", 3, 3, "CPU affinity: 3 of 8 cores"),
        ({"OMP_NUM_THREADS": "1"}, "150000", 8, 1, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "4,2"}, None, 8, 4, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "8"}, None, 8, 8, "OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "many"}, None, 8, 8, "8 cores"),
        ({"OMP_NUM_THREADS": "0"}, None, 8, 8, "8 cores"),
    ],
)
def test_limit_is_the_smallest_and_says_which(
    environ: dict[str, str],
    quota: str | None,
    affinity: int,
    count: int,
    reason: str,
    tmp_path: Path,
    eight_cores: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    root = system(tmp_path, "0::/\n", V2, {"sys/fs/cgroup/cpu.max": f"{quota or 'max'} 100000\n"})
    limit = threads.limit(environ, root)
    assert (limit.count, limit.reason, limit.is_asked) == (count, reason, reason == "OMP_NUM_THREADS")


@pytest.mark.parametrize(
    ("words", "noted", "expected"),
    [
        (["model=micro"], None, (8, "8 cores", False)),
        (["model=micro", "threads=3"], 5, (3, "as asked", True)),
        (["model=micro"], 5, (5, "as recorded in the checkpoint", False)),
        (["model=micro"], 64, (8, "8 cores", False)),
        (TINY, None, (1, "this model is too small to use 8", False)),
        (TINY, 2, (2, "as recorded in the checkpoint", False)),
    ],
)
def test_choice_of_threads(
    words: list[str],
    noted: int | None,
    expected: tuple[int, str, bool],
    eight_cores: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "cpu_quota", lambda _: None)
    config = cli.load_config("train", words)
    chosen = compute.choose_threads(config.threads, config.model, config.batch_size, noted)
    assert (chosen.count, chosen.reason, chosen.is_asked) == expected


@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_threads_line_says_what_decided(
    verb: str, microgpt: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch, cheap: None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = [*TINY, "data.path=my.txt", "max_steps=2", "out_dir=run"]
    assert "threads   1 (OMP_NUM_THREADS)" in microgpt(verb, *common).out


@pytest.mark.parametrize("user", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_spinning_is_limited_unless_the_user_has_said_how_threads_wait(user: str) -> None:
    environ: dict[str, str] = {}
    threads.limit_spinning(environ)
    assert environ == threads.SPINS
    environ = {user: "1"}
    threads.limit_spinning(environ)
    assert environ == {user: "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("start", ["-m microgpt_cli", "-c import~sys;from~microgpt_cli.cli.main~import~main;main()"])
def test_command_limits_spinning_before_torch_is_loaded(start: str) -> None:
    """OpenMP reads the environment when it is loaded: the variable must be set when `import torch` begins."""
    hook = (
        "import os, sys, importlib.abc\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print('SPINS', os.environ.get('GOMP_SPINCOUNT'), flush=True); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
    )
    run = f"import runpy, sys; sys.argv = ['microgpt', 'params']\n{hook}"
    run += (
        "runpy.run_module('microgpt_cli', run_name='__main__')"
        if start.startswith("-m")
        else start[3:].replace("~", " ")
    )
    env = {name: value for name, value in os.environ.items() if name not in {"OMP_WAIT_POLICY", *threads.SPINS}}
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=env, check=False)
    assert done.stdout == f"SPINS {threads.SPINS['GOMP_SPINCOUNT']}\n", done.stderr
