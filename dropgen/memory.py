"""How much memory this process can still take, by the machine and its control groups, and giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes "no limit" as a number of pages close to 2**63


def available() -> int:
    """Free bytes: of the machine, or what the tightest control group leaves, whichever is less."""
    return min([int(psutil.virtual_memory().available), *group_room()])


def give_back() -> None:
    """Returns what this process has freed to the system, where its C library can.

    glibc keeps freed blocks of less than 32 MB for later ones: a worker kept 180 to 250 MiB after the features of a
    volume of 96 voxels per edge, and after this call less than 15, in the same time.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def group_room(membership: Path = MEMBERSHIP, groups: Path = GROUPS) -> Iterator[int]:
    """What every control group with a memory limit leaves, in bytes; none where there are no such groups.

    Pages of files that nobody has touched lately count as used there, and are given back when they are wanted.

    Args:
        membership: The list of this process's groups, as Linux writes it.
        groups: Where the groups are mounted, version 1 or 2.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = groups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (room := _room(folder, *names)) is not None:
                yield room
            if folder == root:
                break


def _room(folder: Path, limit: str, usage: str, idle: str) -> int | None:
    try:
        most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not mounted inside this container: the mounted root is asked later
        return None
    if most == "max" or int(most) >= UNLIMITED:
        return None
    return max(0, int(most) - used + int(stat.get(idle, 0)))
