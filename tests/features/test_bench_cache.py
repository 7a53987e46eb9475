from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from dropgen.features.bench.cache import drop


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder of two files on a file system that keeps them on a disk."""
    (tmp_path / "deep").mkdir()
    for name in ("one", "deep/two"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 2048)
    if drop(tmp_path) > 0:
        pytest.skip("this file system lives in memory, or something else holds its pages")
    return tmp_path


def test_what_is_read_is_in_memory_until_it_is_dropped(written: Path) -> None:
    content = (written / "deep" / "two").read_bytes()
    assert drop(written) == 0
    assert (written / "deep" / "two").read_bytes() == content


def test_a_file_that_is_mapped_and_touched_is_not_called_dropped(written: Path) -> None:
    with (written / "one").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) >= 0
        assert drop(written) == pytest.approx(0.5)
    assert drop(written) == 0
