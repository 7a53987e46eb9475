"""What a benchmark leaves behind: its rows, with the code and the machine that made them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from dropgen.errors import ResourceError
from dropgen.manifest import PACKAGES, git_commit, versions, write_json

PEERS = ("blosc2", "tensorstore", "zarrs")


def machine() -> dict[str, Any]:
    """The machine as it is now; `load` is the one-minute load average, which a quiet machine has near 0."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(),
        "load": round(psutil.getloadavg()[0], 2),
        "versions": {"python": platform.python_version(), **versions((*PACKAGES, *PEERS))},
    }


def write_record(
    root: Path, bench: str, settings: Mapping[str, Any], rows: list[dict[str, Any]], found: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes `<root>/bench/<bench>.json`; returns the verb's document: what it holds, and where it is.

    Args:
        root: Output root.
        bench: "store", "precompute", "step" or "metrics".
        settings: What was measured.
        rows: Raw values included.
        found: The machine before the first measurement.

    Raises:
        ResourceError: The file cannot be written.
    """
    path = root / "bench" / f"{bench}.json"
    record = {
        "bench": bench, "settings": dict(settings), "rows": rows, "commit": git_commit(), "machine": dict(found),
    }  # fmt: skip
    try:
        write_json(path, record)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}; choose a writable folder with --root") from error
    return record | {"record": str(path)}


def _cpu() -> str:
    """The processor's model as Linux names it, or as Python knows it elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
