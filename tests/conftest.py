"""Where tests find real volumes and golden values; tests that need them skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# One thread per process, as Ray gives its workers: the cores are few, and sums in another order differ in the last bit.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]


def _outside(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or REPOSITORY.parent / "shared" / name)
    if not folder.is_dir():
        pytest.skip(f"needs the folder of {name} volumes: set {variable}")
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real labelled volumes."""
    return _outside("DROPGEN_DATA", "data")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of values computed by the reference network."""
    return _outside("DROPGEN_GOLDEN", "golden")
