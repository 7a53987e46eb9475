"""The operating system's page cache: forgetting a folder's files, and proving that they are forgotten.

What lies below it, the disk's own cache or a hypervisor's, cannot be reached from here.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def drop(folder: Path) -> float:
    """Writes a folder's files to disk and asks the system to forget their pages.

    Returns:
        Share of their bytes that is in memory all the same, 0..1: 1 on a file system that lives in memory or
        a system that cannot be asked.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    if not hasattr(os, "posix_fadvise"):
        return 1.0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    pages, kept = zip(*map(_resident, files), strict=True)
    return float(sum(kept) / sum(pages))


def _resident(path: Path) -> tuple[int, int]:
    """Pages of a file, and how many of them are in memory: mincore(2) on a map that is never touched."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        states = np.zeros(-(-view.size // mmap.PAGESIZE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), ctypes.c_void_p(states.ctypes.data)
        )
        del view  # else the map cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
    return states.size, int((states & 1).sum())
