"""How many cores the system gives this process: its affinity, and its group's share of time."""

import math
import os
from functools import cache
from pathlib import Path

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that this process may use; as the system counts, so fractions of one are whole.

    In a container whose time is limited (`docker run --cpus 2`), torch counts the whole machine's
    cores, and its threads wait for each other while the system holds them back.
    """
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), _quota())
    return os.cpu_count() or 1


@cache
def _quota() -> int:
    """Cores' worth of time of the process's control group and those above it; 2³¹ without limit.

    Of both versions: `cpu.max` holds "QUOTA PERIOD" or "max PERIOD", `cpu.cfs_quota_us` −1 or a
    number of microseconds. Docs: kernel.org, admin-guide/cgroup-v2 and scheduler/sched-bwc.
    """
    least = math.inf
    for folder in _groups():
        try:
            if (both := folder / "cpu.max").exists():
                quota, period = both.read_text(encoding="utf-8").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
                period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
            if quota not in ("max", "-1"):
                least = min(least, int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue  # no such limit here
    return max(1, math.ceil(min(least, 2**31)))


def _groups() -> set[Path]:
    """Folders of the groups that this process is in, and of those above."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    folders: set[Path] = set()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = GROUPS / controllers if controllers else GROUPS
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's, while its own group is mounted as the root.
        folders |= {root, group, *(above for above in group.parents if above.is_relative_to(root))}
    return folders
