"""How much memory this process can still take, by the machine and its control groups, and giving back what is free."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 2**60  # version 1 writes "no limit" as a number of pages close to 2**63

# Parameters of glibc's mallopt(3), with the values that a process comes to by itself once it has freed large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8
USUAL = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20, MMAP_MAX: 65536}
KEEPING = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}  # for the environment of a process whose threads are not ours to begin

_keeping, _over = 0, threading.Lock()


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


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps what is freed within the block for the next allocations there, and gives it back at the end.

    glibc maps a block of more than 32 MB anew every time, and the system clears each of its pages: of a prediction by
    the paper's network on two cores that is a third of the time (docs/serving.md). Other threads than the first have
    heaps of at most 64 MB, so that they gain nothing unless `one_arena` came before them. Blocks may nest and overlap;
    the last one to end gives back.
    """
    global _keeping
    with _over:
        _keeping += 1
        _set(KEEPING)
    try:
        yield
    finally:
        with _over:
            _keeping -= 1
            if not _keeping:
                _set(USUAL)
                give_back()


def one_arena() -> None:
    """Has threads that begin from now on share the first one's heap, with its lock: large blocks are rare."""
    _set({ARENA_MAX: 1})


def _set(parameters: Mapping[int, int]) -> None:
    """Where the C library has them."""
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter, value in parameters.items():
            library.mallopt(parameter, value)


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
