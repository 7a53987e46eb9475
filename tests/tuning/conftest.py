"""A filled store for every test of this floor, and one Ray session for those that train."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_support.tiny import fill_store, tiny_experiment


@pytest.fixture(scope="session")
def filled_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output root with the tiny study and its store."""
    root = tmp_path_factory.mktemp("filled")
    fill_store(tiny_experiment(root), root)
    return root


@pytest.fixture
def root(filled_root: Path, tmp_path: Path) -> Path:
    """A copy of the filled root that a test may write to."""
    shutil.copytree(filled_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Two CPUs on a cluster of this process alone."""
    from dropgen.features.cluster import connect

    os.environ.pop("RAY_ADDRESS", None)
    with connect(cpus=2):
        yield
