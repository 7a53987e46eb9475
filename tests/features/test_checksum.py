"""Checksums of the store's files: whole or in pieces the same, never that of other bytes, and what they cost.

The rows of docs/feature-store.md: `python -m pytest -s -m nightly tests/features/test_checksum.py`.
"""

from __future__ import annotations

import hashlib
import mmap
import statistics
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropgen.console import say
from dropgen.features.store.checksum import ALGORITHM, Checksum, describe_file
from dropgen.manifest import file_digest


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=5000), data=st.data())
def test_it_fits_these_bytes_in_memory_and_on_disk_and_no_others(
    tmp_path: Path, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path / "chunk"
    path.write_bytes(content)
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    other = bytearray(content)
    other[bit // 8] ^= 1 << bit % 8
    for record in (describe_file(path), {"bytes": len(content), "blake2b": file_digest(path)}):
        checksum = Checksum.on_record(record)
        assert record["bytes"] == len(content)
        assert checksum.fits(content)
        assert checksum.fits_file(path)
        assert not checksum.fits(bytes(other))
        assert not checksum.fits(content + b"\0")


def test_new_records_have_xxh3(tmp_path: Path) -> None:
    (tmp_path / "chunk").write_bytes(b"dropgen")
    assert describe_file(tmp_path / "chunk") == {"bytes": 7, "xxh3_128": xxhash.xxh3_128(b"dropgen").hexdigest()}


@pytest.mark.nightly
def test_comparing_a_channel_costs_about_as_much_as_reading_it(tmp_path: Path) -> None:
    size = 240 * 240 * 155 * 2  # BraTS in float16
    np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tofile(tmp_path / "channel")
    ways = {
        ALGORITHM: lambda channel: xxhash.xxh3_128(channel).digest(),
        "crc32": zlib.crc32,
        "blake2b": lambda channel: hashlib.blake2b(channel, digest_size=16).digest(),
        "summing it, for comparison": lambda channel: channel.view(np.uint64).sum(),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(15):
        for name, way in ways.items():
            with (tmp_path / "channel").open("rb") as file:
                channel = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            began = time.perf_counter()
            way(channel)
            milliseconds[name].append(1000 * (time.perf_counter() - began))
    for name, times in milliseconds.items():
        say(f"| {name} | {statistics.median(times):.2f} | {size / statistics.median(times) / 1e6:.1f} |")
    assert statistics.median(milliseconds[ALGORITHM]) < 0.25 * statistics.median(milliseconds["blake2b"])
