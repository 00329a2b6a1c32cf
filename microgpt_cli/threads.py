"""How many CPU threads this process may use, and how OpenMP's threads wait for each other. Imports no torch."""

import math
import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

# OpenMP's threads spin while they wait for each other, which is fast on a quiet machine; but a thread that spins for
# one that has lost its core to another process burns the core that could help. GNU's default spins for milliseconds:
# two runs beside each other then take 4 to 14 times as long as with one thread each. About 100 µs of spinning
# measured as fast as the default on two quiet cores, and sleeps soon where the machine is busy.
SPINS = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}  # GNU's OpenMP, in spins; LLVM's and Intel's, in ms


def limit_spinning(environ: MutableMapping[str, str]) -> None:
    """Shorten how long OpenMP's threads spin, unless the user has said how they wait.

    It has an effect only before torch is loaded, and on processes that are started later.
    """
    if not {"OMP_WAIT_POLICY", *SPINS} & environ.keys():
        environ.update(SPINS)


@dataclass(frozen=True)
class Limit:
    """How many threads are of use, and what says so."""

    count: int
    reason: str
    is_asked: bool = False  # by the user


def limit(environ: MutableMapping[str, str] | None = None, root: Path = Path("/")) -> Limit:
    """The smallest of: cores of this machine, those this process may run on, CPU quotas, OMP_NUM_THREADS.

    Args:
        environ: of the process.
        root: where `proc` and `sys` lie.
    """
    cores = os.cpu_count() or 1
    limits = [Limit(cores, "1 core" if cores == 1 else f"{cores} cores")]
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        limits.append(Limit(allowed, f"CPU affinity: {allowed} of {cores} cores"))
    quota = cpu_quota(root)
    if quota is not None:
        limits.append(Limit(max(1, math.ceil(quota)), f"CPU quota {quota:.3g} of {cores} cores"))
    told = (os.environ if environ is None else environ).get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told) > 0:
        limits.insert(0, Limit(int(told), "OMP_NUM_THREADS", is_asked=True))
    return min(limits, key=lambda each: each.count)  # of equal ones the first


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' time the control groups (version 1 or 2) of this process and their parents allow, if limited."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of the groups that limit this process's CPU time, from the innermost to the outermost in sight."""
    groups = {}  # controllers, none for version 2 → path of the group
    for line in _lines(root / "proc/self/cgroup"):  # 4:cpu,cpuacct:/docker/1f2e
        _, controllers, group = line.split(":", 2)
        groups[controllers] = group
    for line in _lines(
        root / "proc/self/mountinfo"
    ):  # 32 31 0:29 /docker/1f2e /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
        mount, _, filesystem = line.partition(" - ")
        kind, options = filesystem.split()[0], filesystem.split()[-1].split(",")
        mounted, place = mount.split()[3:5]
        for controllers, group in groups.items():
            is_version_1 = kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(",")
            if not is_version_1 and not (kind == "cgroup2" and not controllers):
                continue
            top = root / place.lstrip("/")
            # In a container the mount may begin at the group itself, or the group's path may not be in sight.
            inside = Path(group).relative_to(mounted) if Path(group).is_relative_to(mounted) else Path()
            folder = top / inside
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(top))


def _quota(folder: Path) -> float | None:
    """The cores' time that one group allows."""
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
    return cores if cores > 0 else None  # version 1 says -1 where there is no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return []
