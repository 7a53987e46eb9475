"""One Ray session for every file whose tests train."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    """Two CPUs on a cluster of this process alone."""
    from dropgen.features.cluster import connect

    os.environ.pop("RAY_ADDRESS", None)
    with connect(cpus=2):
        yield
