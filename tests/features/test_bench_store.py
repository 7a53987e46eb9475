from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dropgen.errors import ConfigError, StoreError
from dropgen.features.bench.layouts import codes_of, write_memmap
from dropgen.features.bench.nnunet import BLOCK_BYTES, CHUNK_BYTES, blosc2_layout
from dropgen.features.bench.peers import Box, Peer, Read, all_peers
from dropgen.features.bench.store import StoreBench, bench_store, make_features
from dropgen.features.store import FeatureStore, close_maps

SPEC = StoreBench(shape=(40, 36, 33), channels=8, crops=(8, 16))
PEERS = {peer.name: peer for peer in all_peers(8)}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One run of every peer that this machine has; it compares every crop with what was written."""
    folder = tmp_path_factory.mktemp("bench")
    told: list[dict[str, Any]] = []
    found = bench_store(SPEC, list(PEERS.values()), folder, told.append)
    assert told == found
    assert list(folder.iterdir()) == []
    return found


def test_every_peer_has_a_row_for_every_crop_warm_and_cold(rows: list[dict[str, Any]]) -> None:
    expected = {(name, crop, cache) for name in PEERS for crop in (8, 16) for cache in ("warm", "cold")}
    assert {(row["peer"], row["crop"], row["cache"]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_a_row_has_its_raw_times_or_a_reason(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        times = (row["min_ms"], row["median_ms"], row["max_ms"])
        if row["unavailable"]:
            assert times == (None, None, None)
            assert row["raw_ms"] == []
        else:
            assert times == (min(row["raw_ms"]), np.median(row["raw_ms"]), max(row["raw_ms"]))
            assert row["repeats"] == len(row["raw_ms"]) == 5


def test_peers_without_optional_packages_are_always_measured(rows: list[dict[str, Any]]) -> None:
    warm = {row["peer"] for row in rows if row["cache"] == "warm" and not row["unavailable"]}
    assert {"numpy memmap", "dropgen", "dropgen, 2 of 8 channels", "zarr, chunks", "zarr, default layout",
            "zarr, shard zstd", "MONAI PersistentDataset"} <= warm  # fmt: skip


def test_an_uncompressed_layout_takes_its_voxels_on_disk_and_little_more(rows: list[dict[str, Any]]) -> None:
    voxels = 2 * 8 * 40 * 36 * 33
    for name in ("numpy memmap", "dropgen", "zarr, chunks", "MONAI PersistentDataset"):
        assert {voxels < row["bytes"] < voxels + 8000 for row in rows if row["peer"] == name} == {True}


def test_a_peer_that_is_not_installed_is_a_row_that_says_so(tmp_path: Path) -> None:
    memmap = PEERS["numpy memmap"]
    absent = replace(memmap, name="absent", needs="a_package_that_is_not_there")
    old = replace(memmap, name="old", needs="numpy:pipeline_of_the_future")
    spec = replace(SPEC, crops=(8,))
    found = bench_store(spec, (memmap, absent, old), tmp_path, lambda row: None)
    reasons = {(row["peer"], row["cache"]): row["unavailable"] for row in found if row["peer"] != "numpy memmap"}
    assert reasons["absent", "warm"] == reasons["absent", "cold"] == "not installed"
    assert reasons["old", "warm"] == "numpy has no pipeline_of_the_future in this version"


def lying(change: Any, after: int = 0) -> Peer:
    """A peer whose crops are changed from its read number `after` on."""
    honest = PEERS["numpy memmap"]
    count = iter(range(10**6))

    def open_lying(folder: Path) -> Read:
        read = honest.open(folder)
        return lambda box: change(read(box)) if next(count) >= after else read(box)

    return Peer("liar", write_memmap, open_lying)


def one_voxel(crop_cxyz: torch.Tensor) -> torch.Tensor:
    crop_cxyz[-1, -1, -1, -1] += 1
    return crop_cxyz


@pytest.mark.parametrize("after", [0, 5, 9, 10])  # the first look, the first and the last warm time, a cold one
def test_one_wrong_voxel_ends_the_run_whenever_it_is_read(tmp_path: Path, after: int) -> None:
    told: list[dict[str, Any]] = []
    with pytest.raises(StoreError, match=r"liar gave other voxels at \[\d+:\d+, .*no time of this run counts"):
        bench_store(replace(SPEC, crops=(8,)), (PEERS["dropgen"], lying(one_voxel, after)), tmp_path, told.append)
    assert told == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda crop_cxyz: crop_cxyz.float(),
        lambda crop_cxyz: crop_cxyz[..., :-1].clone(),
        lambda crop_cxyz: crop_cxyz.transpose(1, 2).contiguous().transpose(1, 2),
    ],
    ids=["type", "shape", "memory order"],
)
def test_a_crop_of_another_type_shape_or_order_in_memory_is_refused(tmp_path: Path, change: Any) -> None:
    with pytest.raises(StoreError, match="other voxels"):
        bench_store(replace(SPEC, crops=(8,)), (lying(change),), tmp_path, lambda row: None)


@pytest.fixture
def holding() -> Iterator[Peer]:
    """A peer that never lets go of its pages."""
    kept: list[Any] = []

    def open_and_hold(folder: Path) -> Read:
        mapped = np.load(folder / "features.npy", mmap_mode="r")
        kept.append((mapped, float(mapped.sum())))
        return PEERS["numpy memmap"].open(folder)

    yield Peer("holder", write_memmap, open_and_hold)
    kept.clear()


def test_a_peer_whose_files_stay_in_memory_gets_no_cold_time(tmp_path: Path, holding: Peer) -> None:
    warm, cold = bench_store(replace(SPEC, crops=(8,)), (holding,), tmp_path, lambda row: None)
    assert warm["repeats"] == 5
    assert cold["raw_ms"] == []
    assert "stayed in memory, so nothing here is cold" in cold["unavailable"]


def test_features_are_smooth_noisy_and_the_same_every_time() -> None:
    features_cxyz = make_features(2, (40, 36, 33))
    assert features_cxyz.dtype == np.float16
    assert features_cxyz.tobytes() == make_features(2, (40, 36, 33)).tobytes()
    assert not np.array_equal(features_cxyz[0], features_cxyz[1])
    channel = features_cxyz[0].astype(np.float64)
    jump = np.diff(channel, axis=0).std() / channel.std()
    assert 0.05 < jump < 0.3  # noise of 5% makes jumps of 7%; without smoothness they would be 141%


def test_a_map_that_was_closed_is_read_again(tmp_path: Path) -> None:
    features_cxyz = make_features(2, (9, 8, 7))
    store = FeatureStore(tmp_path)
    store.put_features("k", features_cxyz, None, {})
    whole: Box = (slice(0, 9), slice(0, 8), slice(0, 7))
    stored = store.features("k")
    first = stored.read((0, 1), whole)
    close_maps()
    np.testing.assert_array_equal(stored.read((0, 1), whole), first)
    np.testing.assert_array_equal(store.features("k").read((0, 1), whole), features_cxyz)


def test_codes_lie_within_half_a_level_of_the_features_and_use_the_whole_byte() -> None:
    features_cxyz = make_features(2, (20, 18, 16))
    codes_cxyz = codes_of(features_cxyz)
    assert codes_cxyz.dtype == np.int8
    for codes, values in zip(codes_cxyz, features_cxyz.astype(np.float64), strict=True):
        level = np.ptp(values) / 255
        assert (codes.min(), codes.max()) == (-128, 127)
        assert np.abs((codes.astype(np.float64) + 128) * level + values.min() - values).max() <= level / 2 * (1 + 1e-9)
    assert (codes_of(np.full((1, 2, 2, 2), 3, np.float16)) == -128).all()


@pytest.mark.parametrize("itemsize", [1, 2, 4])
@pytest.mark.parametrize("patch", [(64, 64, 64), (96, 160, 80), (16, 16, 16)])
@pytest.mark.parametrize("shape", [(1, 240, 240, 155), (16, 240, 240, 155), (4, 24, 96, 512)])
def test_nnunet_blocks_fit_the_first_cache_and_chunks_the_third(
    shape: tuple[int, ...], patch: tuple[int, ...], itemsize: int
) -> None:
    chunk, block = blosc2_layout(shape, patch, itemsize)
    assert math.prod(block) * itemsize <= BLOCK_BYTES
    assert chunk[0] == block[0] == shape[0]
    assert all(edge <= most for edge, most in zip(block, shape, strict=True))
    assert all(c % b == 0 or c == s for c, b, s in zip(chunk, block, shape, strict=True))
    # A chunk stops growing at its first edge too many, and one block more adds at most one time its size.
    assert math.prod(chunk) * itemsize < 2 * CHUNK_BYTES


def test_nnunet_layout_of_a_known_case() -> None:
    # What nnU-Net 2.6 gives for one float32 channel of BraTS at patch 128^3, and for 16 float16 channels.
    assert blosc2_layout((1, 240, 240, 155), (128, 128, 128), 4) == ((1, 80, 64, 64), (1, 16, 16, 16))
    assert blosc2_layout((16, 240, 240, 155), (128, 128, 128), 2) == ((16, 40, 32, 32), (16, 8, 8, 8))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"repeats": 4}, "--repeats = 4"),
        ({"crops": (8, 34)}, "--crops = 34: a crop must have 1 to 33 voxels"),
        ({"crops": (0,)}, "--crops = 0"),
        ({"channels": 0}, "--channels = 0"),
        ({"shape": (64, 64)}, "--shape = "),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(SPEC, **values)
