"""An entry of the store gives back what was put in, or says that it cannot."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropgen.errors import StoreError
from dropgen.features.store import KINDS, FeatureStore, close_maps, forget_comparisons
from dropgen.features.store.checksum import Checksum
from dropgen.features.store.entry import COMMIT, sealed, unsealed
from dropgen.manifest import digest, file_digest
from tests_support.stores import filled, leftovers, prepared


def flip(path: Path, bit: int) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def read_all(store: FeatureStore, kind: str) -> np.ndarray:
    """Every value of the entry `k`, as training gets to them."""
    if kind == "features":
        return store.features("k").whole()
    return store.volume("k").unit if kind == "volumes" else store.label("k")


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_crop_of_some_channels_is_the_crop_of_the_array(store: FeatureStore, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 4))
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    channels = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=6))
    x, y, z = (data.draw(st.slices(size).map(lambda edge: slice(edge.start, edge.stop))) for size in shape[1:])
    key = digest([seed, shape, dtype])
    store.put_features(key, array, None, {}, dtype)
    crop = store.features(key).read(channels, (x, y, z))
    assert crop.dtype == np.dtype(dtype)
    assert np.array_equal(crop, array.astype(dtype)[channels][:, x, y, z])


def test_a_volume_comes_back_with_its_grid(store: FeatureStore) -> None:
    original = prepared()
    store.put_volume("k", original, {})
    found = store.volume("k")
    assert np.array_equal(found.unit, original.unit)
    assert (found.shift, found.scale, found.grid) == (original.shift, original.scale, original.grid)
    assert not found.unit.flags.writeable


def test_a_label_comes_back_as_bytes_even_when_it_is_empty(store: FeatureStore) -> None:
    label = np.random.default_rng(0).integers(0, 5, (4, 5, 6))
    store.put_label("some", label.astype(np.uint8), {})
    store.put_label("none", np.zeros((4, 5, 6), np.uint8), {})
    assert store.label("some").dtype == np.uint8
    assert np.array_equal(store.label("some"), label)
    assert not store.label("none").any()


def test_statistics_come_back_exactly(store: FeatureStore) -> None:
    stats = np.float32([1 / 3, 1e-30, 7e20])
    store.put_features("with", np.ones((2, 3, 3, 3)), stats, {})
    store.put_features("without", np.ones((2, 3, 3, 3)), None, {})
    assert np.array_equal(store.features("with").stats, stats)
    assert store.features("without").stats is None


def test_any_zarr_reader_opens_an_entry(store: FeatureStore) -> None:
    filled(store)
    for kind, values in (
        ("volumes", store.volume("k").unit[0]),
        ("labels", store.label("k")),
        ("features", store.features("k").read(range(3), (slice(None),) * 3)),
    ):
        array = zarr.open_array(store.folder / kind / "k", mode="r")
        assert array.metadata.zarr_format == 3
        assert array.dtype == values.dtype
        assert np.array_equal(array[...], values)


def test_a_channel_that_is_not_asked_for_is_not_read(store: FeatureStore) -> None:
    features = filled(store).features("k")
    (store.path("features", "k") / "c.1.0.0.0").unlink()
    assert features.read([0, 2], (slice(2), slice(2), slice(2))).shape == (2, 2, 2, 2)
    with pytest.raises(StoreError, match=r"features/k \(case one\): file c\.1\.0\.0\.0 is missing; remove"):
        features.read([1], (slice(2), slice(2), slice(2)))


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_verify_finds_any_flipped_bit_and_names_the_entry(store: FeatureStore, data: st.DataObject) -> None:
    if not store.has("features", "k"):
        filled(store)
    kind = data.draw(st.sampled_from(KINDS))
    path = data.draw(st.sampled_from(sorted(store.path(kind, "k").iterdir())))
    content = path.read_bytes()
    flip(path, data.draw(st.integers(0, 8 * len(content) - 1)))
    try:
        with pytest.raises(StoreError, match=rf"{kind}/k.*damaged.*precompute"):
            store.verify(kind, "k")
    finally:
        path.write_bytes(content)
    store.verify(kind, "k")


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_reader_sees_a_flipped_bit_and_no_other_entry_suffers(store: FeatureStore, data: st.DataObject) -> None:
    if not store.has("features", "k"):
        filled(store)
    kind = data.draw(st.sampled_from(KINDS))
    whole = {kind: read_all(store, kind).copy() for kind in KINDS}
    path = data.draw(st.sampled_from(sorted(store.path(kind, "k").iterdir())))
    content = path.read_bytes()
    name = content.find(b'"case": "one"')
    bits = st.integers(0, 8 * len(content) - 1).filter(lambda bit: not name <= bit // 8 < name + 13)
    flip(path, data.draw(bits))
    close_maps()
    forget_comparisons()  # the clock of a file system may not have moved on since the last example
    try:
        what = rf" \(case one\): file {path.name}"
        if path.name == COMMIT:
            what = ": its commit record, which tells of case one,"
        with pytest.raises(StoreError, match=rf"{kind}/k{what} is damaged; remove .*{kind}/k and run"):
            read_all(store, kind)
        for other in set(KINDS) - {kind}:
            assert np.array_equal(read_all(store, other), whole[other])
    finally:
        path.write_bytes(content)
    assert np.array_equal(read_all(store, kind), whole[kind])


def test_a_bit_of_a_channel_that_is_not_asked_for_hurts_nobody(store: FeatureStore) -> None:
    features = filled(store).features("k")
    flip(store.path("features", "k") / "c.1.0.0.0", 77)
    box = (slice(None),) * 3
    assert features.read([0, 2], box).shape == (2, 4, 5, 6)
    with pytest.raises(StoreError, match=r"file c\.1\.0\.0\.0 is damaged"):
        features.read([0, 1], box)


def test_a_file_is_compared_once_per_process_and_again_when_it_changed(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store)
    seen: list[int] = []
    original = Checksum.fits
    monkeypatch.setattr(Checksum, "fits", lambda self, data: seen.append(len(data)) or original(self, data))
    chunks = 3 * [4 * 5 * 6 * 2]

    def compared() -> list[int]:
        store.features("k").whole()
        sizes = [size for size in seen if size == chunks[0]]
        seen.clear()
        return sizes

    assert compared() == chunks
    assert compared() == []
    close_maps()  # as when other maps push it out
    assert compared() == []
    chunk = store.path("features", "k") / "c.2.0.0.0"
    os.utime(chunk, (1, 1))
    close_maps()
    assert compared() == chunks[:1]
    forget_comparisons()
    close_maps()
    assert compared() == chunks


def test_an_entry_with_the_checksums_of_format_1_is_read_and_checked(store: FeatureStore) -> None:
    filled(store)
    for kind in KINDS:
        folder = store.path(kind, "k")
        record = unsealed((folder / COMMIT).read_bytes())
        files = {name: {"bytes": file["bytes"], "blake2b": file_digest(folder / name)}
                 for name, file in record["files"].items()}  # fmt: skip
        (folder / COMMIT).write_bytes(sealed(record | {"format": 1, "files": files}))
        store.verify(kind, "k")
        read_all(store, kind)
        flip(next(folder.glob("c.*")), 3)
        close_maps()
        forget_comparisons()
        for read in (store.verify, lambda kind, key: read_all(store, kind)):
            with pytest.raises(StoreError, match=rf"{kind}/k \(case one\): file c\..* is damaged"):
                read(kind, "k")


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_with_a_short_or_missing_file_is_not_opened(store: FeatureStore, kind: str) -> None:
    filled(store)
    chunk = next(store.folder.glob(f"{kind}/k/c.*"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    open_entry = {"volumes": store.volume, "labels": store.label, "features": store.features}[kind]
    with pytest.raises(StoreError, match=rf"{kind}/k \(case one\): file {chunk.name} is \d+ bytes long instead of"):
        open_entry("k")
    chunk.unlink()
    with pytest.raises(StoreError, match=rf"file {chunk.name} is missing; remove"):
        open_entry("k")


def test_a_missing_entry_names_the_command_that_writes_it(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="holds no features/nothing; run `dropgen precompute EXPERIMENT`"):
        store.features("nothing")


def test_values_that_float16_cannot_hold_are_refused_and_float32_takes_them(store: FeatureStore) -> None:
    features = np.ones((4, 3, 3, 3), np.float32)
    features[2, 1, 1, 1] = -70000
    with pytest.raises(StoreError, match=r"case one: channel 2 .*reaches 70000.*float16.*features\.dtype=float32"):
        store.put_features("k", features, None, {"case": "one"})
    assert not store.has("features", "k")
    assert not leftovers(store)
    store.put_features("k", features, None, {"case": "one"}, "float32")
    assert store.features("k").read([2], (slice(1, 2),) * 3).item() == -70000


@pytest.mark.parametrize("value", [-1, 256])
def test_a_label_that_a_byte_cannot_hold_is_refused(store: FeatureStore, value: int) -> None:
    with pytest.raises(StoreError, match=r"case one: the volume holds values outside 0\.\.255"):
        store.put_label("k", np.full((2, 3, 4), value), {"case": "one"})
    assert not leftovers(store)


def test_an_entry_of_a_later_format_names_the_version_that_wrote_it(store: FeatureStore) -> None:
    store.put_label("k", np.ones((2, 2, 2), np.uint8), {"case": "one", "version": "9.8"})
    path = store.path("labels", "k") / COMMIT
    path.write_bytes(sealed(unsealed(path.read_bytes()) | {"format": 3}))
    with pytest.raises(StoreError, match=r"labels/k was written by dropgen 9\.8 in format 3 and .* formats 1 to 2;"):
        store.label("k")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(store: FeatureStore, value: float) -> None:
    features = np.ones((4, 3, 3, 3), np.float32)
    features[3, 0, 0, 0] = value
    with pytest.raises(StoreError, match=r"case one: channel 3 of the features holds values that are not finite"):
        store.put_features("k", features, None, {"case": "one"}, "float32")
    assert not leftovers(store)


def test_provenance_and_size_are_on_record(store: FeatureStore) -> None:
    filled(store)
    assert store.provenance("labels", "k") == {"case": "one"}
    folder = store.path("labels", "k")
    assert store.sizes()["labels", "k"] == sum(path.stat().st_size for path in folder.iterdir())
    assert store.entries("labels") == ["k"]


def test_a_store_travels_to_other_processes(store: FeatureStore) -> None:
    found = pickle.loads(pickle.dumps(filled(store)))
    assert np.array_equal(found.label("k"), store.label("k"))
    features = pickle.loads(pickle.dumps(store.features("k")))
    assert features.read([1], (slice(None),) * 3).shape == (1, 4, 5, 6)
