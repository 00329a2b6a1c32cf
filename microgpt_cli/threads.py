"""How many CPU threads this process may use, and how long OpenMP's threads spin. Does not import torch."""

import math
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

# OpenMP's threads spin while they wait. On an idle machine that is fast; on a busy one a spinning thread occupies the
# core that the thread it waits for needs. GNU's default spins for milliseconds: two concurrent runs then take 4 to 14
# times as long as with one thread each. About 100 µs measured as fast as the default on two idle cores.
SPINS = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}  # GNU's OpenMP, in iterations; LLVM's and Intel's, in ms


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Shorten how long OpenMP's threads spin, unless the environment already sets it.

    Takes effect only before torch is imported, and in child processes.
    """
    if not {"OMP_WAIT_POLICY", *SPINS} & environ.keys():
        environ.update(SPINS)


@dataclass(frozen=True)
class Limit:
    """A maximum number of threads, and its source."""

    count: int
    reason: str
    is_asked: bool = False  # by the user


def limit(environ: MutableMapping[str, str] | None = None, root: Path = Path("/")) -> Limit:
    """The minimum of the number of cores, the CPU affinity, the CPU quota and OMP_NUM_THREADS.

    Args:
        environ: defaults to that of this process.
        root: parent of `proc` and `sys`.
    """
    cores = os.cpu_count() or 1
    limits = [Limit(cores, "1 core" if cores == 1 else f"{cores} cores")]
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        limits.append(Limit(allowed, f"CPU affinity: {allowed} of {cores} cores"))
    quota = cpu_quota(root)
    if quota is not None:
        limits.append(Limit(max(1, math.ceil(quota)), f"CPU quota {quota:.3g} of {cores} cores"))
    given = (os.environ if environ is None else environ).get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        limits.insert(0, Limit(int(given), "OMP_NUM_THREADS", is_asked=True))
    return min(limits, key=lambda each: each.count)  # the first of equal ones


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU quota of this process in cores, by control groups (version 1 or 2), or None without a limit."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of this process's CPU control groups, innermost first, as far as they are visible."""
    groups = {}  # controllers (empty for version 2) → path of the group
    for line in _lines(root / "proc/self/cgroup"):  # 4:cpu,cpuacct:/docker/1f2e
        _, controllers, group = line.split(":", 2)
        groups[controllers] = group
    for line in _lines(
        root / "proc/self/mountinfo"
    ):  # 32 31 0:29 /docker/1f2e /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
        mount, _, filesystem = line.partition(" - ")
        kind, options = filesystem.split()[0], filesystem.split()[-1].split(",")
        mounted, target = mount.split()[3:5]
        for controllers, group in groups.items():
            is_version_1 = kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(",")
            if not is_version_1 and not (kind == "cgroup2" and not controllers):
                continue
            top = root / target.lstrip("/")
            # in a container the mount may start at the group itself, or its path may be invisible
            inside = Path(group).relative_to(mounted) if Path(group).is_relative_to(mounted) else Path()
            folder = top / inside
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    """The CPU quota of one group in cores."""
    try:
        if (folder / "cpu.max").exists():  # version 2: "150000 100000", or "max 100000"
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip() for name in ("quota", "period")
            )
        cores = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or no limit
        return None
    return cores if cores > 0 else None  # version 1 has -1 for no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return []
