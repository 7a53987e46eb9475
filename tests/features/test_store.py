"""An entry of the store exists whole or not at all, and gives back what was put in."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropgen.errors import ResourceError, StoreError
from dropgen.features.store import KINDS, FeatureStore, close_maps, forget_comparisons
from dropgen.features.store.checksum import Checksum
from dropgen.features.store.entry import COMMIT, sealed, unsealed
from dropgen.features.studies.prepare import Preparation, Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.manifest import digest, file_digest

REPOSITORY = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
import numpy as np
from dropgen.features.store import FeatureStore

store = FeatureStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    if not store.has("features", name):
        values = np.random.default_rng(len(name)).normal(size=(6, 24, 24, 24))
        store.put_features(name, values, None, {"case": name})
"""


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


def prepared(seed: int = 0) -> Prepared:
    array = np.random.default_rng(seed).normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = [-3.25, 1 / 3, 7]
    return prepare(Volume(array, affine), Preparation((1.0, 1.0, 1.0), (8, 8, 8), "zscore"))


def filled(store: FeatureStore) -> FeatureStore:
    """A store with one entry of each kind, all with the key `k`."""
    generator = np.random.default_rng(1)
    store.put_volume("k", prepared(), {"case": "one"})
    store.put_label("k", generator.integers(0, 3, (4, 5, 6)).astype(np.uint8), {"case": "one"})
    store.put_features("k", generator.normal(size=(3, 4, 5, 6)), np.float32([0.1, 2.5]), {"case": "one"})
    return store


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


def leftovers(store: FeatureStore) -> list[Path]:
    return list(store.folder.glob("*/.*"))


def writer(folder: Path, *names: str) -> subprocess.Popen[str]:
    """A process that has imported everything and waits for a line before it writes the named entries."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), *names],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def start(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_crop_of_some_channels_is_the_crop_of_the_array(store: FeatureStore, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 4))
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    seed = data.draw(st.integers(0, 2**32 - 1))
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    channels = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=6))
    x, y, z = (data.draw(st.slices(size).filter(lambda edge: (edge.step or 1) > 0)) for size in shape[1:])
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
        ("volumes", store.volume("k").unit),
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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_first_of_two_writers_stays(store: FeatureStore) -> None:
    store.put_label("k", np.ones((2, 2, 2), np.uint8), {"who": "first"})
    store.put_label("k", np.ones((2, 2, 2), np.uint8), {"who": "second"})
    assert store.provenance("labels", "k") == {"who": "first"}
    assert not leftovers(store)


@pytest.mark.slow
def test_two_processes_that_write_the_same_entries_at_once_leave_each_whole(store: FeatureStore) -> None:
    names = [f"k{number}" for number in range(12)]
    processes = [writer(store.folder, *names) for _ in range(2)]
    for process in processes:
        start(process)
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert set(store.entries("features")) == set(names)
    for name in names:
        store.verify("features", name)
    assert not leftovers(store)


@pytest.mark.slow
def test_a_killed_writer_leaves_only_whole_entries_and_they_are_not_written_again(store: FeatureStore) -> None:
    names = [f"k{number}" for number in range(5000)]  # more than fit into the time before the last kill
    moments = random.Random(7)
    finished: dict[str, tuple[int, int]] = {}
    swept = 0
    for _ in range(8):
        process = writer(store.folder, *names)
        start(process)
        time.sleep(moments.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        swept += store.sweep()
        assert not leftovers(store)
        for name in store.entries("features"):
            store.verify("features", name)
            assert store.features(name).read(range(6), (slice(None),) * 3).shape == (6, 24, 24, 24)
        records = {name: (store.path("features", name) / COMMIT).stat() for name in store.entries("features")}
        now = {name: (status.st_ino, status.st_mtime_ns) for name, status in records.items()}
        assert finished.items() <= now.items()
        finished = now
    assert finished
    assert swept
    assert len(finished) < len(names), "the writer was never killed in the middle"


def test_a_folder_without_a_commit_record_is_no_entry_and_gives_way(store: FeatureStore) -> None:
    filled(store)
    (store.path("labels", "k") / COMMIT).unlink()
    assert not store.has("labels", "k")
    store.put_label("k", np.full((4, 5, 6), 2, np.uint8), {"case": "one"})
    store.verify("labels", "k")
    assert not leftovers(store)


def test_sweeping_spares_writers_that_may_still_run(store: FeatureStore) -> None:
    finished = subprocess.Popen(["true"])
    finished.wait()
    host = os.uname().nodename
    names = {
        "dead": f".k.{host}.{finished.pid}-00.partial",
        "alive": f".k.{host}.{os.getpid()}-01.partial",
        "far and recent": ".k.elsewhere.example.1-02.partial",
        "far and old": ".k.elsewhere.example.1-03.partial",
    }
    for name in names.values():
        (store.folder / "volumes" / name).mkdir(parents=True)
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(store.folder / "volumes" / names["far and old"], (two_days_ago, two_days_ago))
    assert store.sweep() == 2
    assert {path.name for path in leftovers(store)} == {names["alive"], names["far and recent"]}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = FeatureStore(tmp_path / "file" / "store")
    with pytest.raises(ResourceError, match=r"cannot write labels/k \(case one\) under .*file/store.*--root"):
        store.put_label("k", np.ones((2, 2, 2), np.uint8), {"case": "one"})


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_the_entry_that_did_not_fit_and_nothing_else(full_disk: Path) -> None:
    store = FeatureStore(full_disk / "store")
    small, large = np.ones((2, 8, 8, 8), np.float32), np.ones((9, 32, 32, 32), np.float32)
    store.put_features("small", small, None, {"case": "one"})
    with pytest.raises(ResourceError, match=r"features/large \(case two\).*No space left"):
        store.put_features("large", large, None, {"case": "two"})
    assert not leftovers(store)
    store.verify("features", "small")
    store.put_features("other", small, None, {"case": "three"})


def test_a_read_only_disk_is_named_with_the_case_and_still_read(full_disk: Path) -> None:
    store = FeatureStore(full_disk / "store")
    store.put_label("k", np.ones((2, 2, 2), np.uint8), {"case": "one"})
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    with pytest.raises(ResourceError, match=r"labels/new \(case two\) under .*Read-only.*--root"):
        store.put_label("new", np.ones((2, 2, 2), np.uint8), {"case": "two"})
    assert store.sweep() == 0
    store.verify("labels", "k")


def test_a_limit_on_file_size_is_met_like_a_full_disk(store: FeatureStore) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"features/k \(case one\)"):
            store.put_features("k", np.ones((2, 64, 64, 64)), None, {"case": "one"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not leftovers(store)
    assert not store.has("features", "k")
