"""A store in an object store gives the same reads as one in a folder, whole or not at all, whoever dies or races."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from dropgen.errors import ResourceError, StoreError
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, FeatureStore, Kind
from dropgen.features.store.entry import COMMIT
from dropgen.features.store.upkeep import delete, find_garbage
from dropgen.features.studies.prepare import Preparation, Prepared, prepare
from dropgen.features.studies.volume import Volume
from tests_support.s3 import S3Bucket, store_at

REPOSITORY = Path(__file__).resolve().parents[2]
WHOLE = (slice(None),) * 3
# Writes entries one by one, each in a process that dies before or after its n-th request that changes the bucket.
DYING = """
import os, signal, sys, threading
from pathlib import Path
import numpy as np
from dropgen.config import Features
from dropgen.features.store import FeatureStore
from dropgen.features.store.bucket import Bucket

lock, requests = threading.Lock(), 0

def mortal(request, death):
    def call(*arguments):
        global requests
        with lock:
            requests += 1
            if 2 * requests - 1 == death:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = request(*arguments)
            if 2 * requests == death:
                os.kill(os.getpid(), signal.SIGKILL)
        return answer
    return call

for death in range(1, int(sys.argv[3]) + 1):
    if not os.fork():
        Bucket.put, Bucket.create = mortal(Bucket.put, death), mortal(Bucket.create, death)
        store = FeatureStore.of(Features(store=sys.argv[1]), Path(sys.argv[2]))
        store.put_features(f"k{death}", np.full((2, 4, 5, 6), death), None, {"case": f"case{death}"})
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
RACING = """
import sys
from pathlib import Path
import numpy as np
from dropgen.config import Features
from dropgen.features.store import FeatureStore

store = FeatureStore.of(Features(store=sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[4:]:
    if not store.has("features", name):
        store.put_features(name, np.full((2, 4, 5, 6), int(sys.argv[3])), None, {"who": sys.argv[3]})
"""


@pytest.fixture
def remote(bucket: S3Bucket, tmp_path: Path) -> FeatureStore:
    return store_at(bucket, tmp_path / "here")


@pytest.fixture
def local(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


def prepared(seed: int = 0) -> Prepared:
    array = np.random.default_rng(seed).normal(size=(5, 6, 7)).astype(np.float32)
    return prepare([Volume(array, np.diag([1.0, 2.0, 1.5, 1.0]))], Preparation((1.0,) * 3, (8, 8, 8), "zscore"))


def fill(store: FeatureStore) -> FeatureStore:
    generator = np.random.default_rng(1)
    store.put_volume("k", prepared(), {"case": "one"})
    store.put_label("k", generator.integers(0, 3, (4, 5, 6)).astype(np.uint8), {"case": "one"})
    features = generator.normal(size=(3, 4, 5, 6)).astype(np.float32)
    for dtype in ("float16", "float32", "int8"):
        store.put_features(dtype, features, np.float32([0.1, 2.5]), {"case": "one"}, dtype)
    return store


def turn_back(store: FeatureStore, kind: Kind, key: str, seconds: float) -> None:
    """Lets a copy have been read that long ago."""
    then = time.time() - seconds
    os.utime(store.path(kind, key) / COMMIT, (then, then))


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_every_read_is_the_one_of_a_local_store(remote: FeatureStore, local: FeatureStore) -> None:
    fill(remote)
    fill(local)
    assert remote.everything() == local.everything()
    here, there = local.volume("k"), remote.volume("k")
    assert np.array_equal(here.unit, there.unit)
    assert here.unit.dtype == there.unit.dtype
    assert (here.shift, here.scale, here.grid) == (there.shift, there.scale, there.grid)
    assert np.array_equal(local.label("k"), remote.label("k"))
    assert local.provenance("labels", "k") == remote.provenance("labels", "k")
    for dtype in ("float16", "float32", "int8"):
        here, there = local.features(dtype), remote.features(dtype)
        box = (slice(1, 3), slice(0, 5), slice(2, 6))
        assert here.dtype == there.dtype
        assert np.array_equal(here.read([2, 0], box), there.read([2, 0], box))
        assert np.array_equal(here.whole(), there.whole())
        assert np.array_equal(here.stats, there.stats)


def test_what_is_mapped_is_the_very_file_that_a_local_store_holds(remote: FeatureStore, local: FeatureStore) -> None:
    for store in (fill(remote), fill(local)):
        store.features("int8")
    for path in local.path("features", "int8").glob("c.*"):
        assert (remote.path("features", "int8") / path.name).read_bytes() == path.read_bytes()


def test_any_zarr_reader_opens_an_entry_in_the_bucket(remote: FeatureStore, bucket: S3Bucket) -> None:
    from obstore.store import from_url

    fill(remote)
    record = json.loads(bucket.read("features/float16.json"))
    folder = zarr.storage.ObjectStore(
        from_url(f"{bucket.url}/{record['folder']}", client_options={"allow_http": True}), read_only=True
    )
    array = zarr.open_array(folder, mode="r")
    assert np.array_equal(array[...], remote.features("float16").read(range(3), WHOLE))


def test_chunks_travel_compressed_and_are_one_per_channel(remote: FeatureStore, bucket: S3Bucket) -> None:
    remote.put_label("empty", np.zeros((40, 40, 40), np.uint8), {})
    remote.put_features("three", np.zeros((3, 8, 8, 8)), None, {})
    assert remote.sizes()["labels", "empty"] < 4000
    assert sum("features/three." in name and "/c." in name for name in bucket.names()) == 3
    assert not remote.label("empty").any()


def test_an_entry_is_fetched_once_and_then_read_without_the_network(remote: FeatureStore, bucket: S3Bucket) -> None:
    fill(remote)
    before = [remote.volume("k").unit.copy(), remote.features("int8").whole()]
    bucket.remove(*bucket.names())
    assert np.array_equal(remote.volume("k").unit, before[0])
    assert np.array_equal(remote.features("int8").whole(), before[1])
    with pytest.raises(StoreError, match=r"holds no labels/k; run `dropgen precompute"):
        remote.label("k")


def test_the_copies_read_longest_ago_make_room(bucket: S3Bucket, tmp_path: Path) -> None:
    names = [f"k{number}" for number in range(6)]
    entry_bytes = 2 * 16**3
    for name in names:
        store_at(bucket, tmp_path).put_features(name, np.random.default_rng(0).random((1, 16, 16, 16)), None, {})
    store = store_at(bucket, tmp_path, cache_gb=3.7 * entry_bytes / 1e9)  # the records and metadata want their share
    for age, name in zip((500, 900, 700), names[:3], strict=True):
        store.features(name)
        turn_back(store, "features", name, age)
    first = store.features(names[0]).whole()  # read again, so it is not the oldest any more
    for name in names[3:5]:
        store.features(name).whole()
        turn_back(store, "features", name, 100)
    left = {name for name in names if store.path("features", name).exists()}
    assert left == {names[0], *names[3:5]}
    assert not list(store.folder.glob("*/.*"))
    assert np.array_equal(store.features(names[1]).whole(), first)  # fetched again


def test_a_copy_in_use_stays_even_where_it_alone_is_too_much(bucket: S3Bucket, tmp_path: Path) -> None:
    store = fill(store_at(bucket, tmp_path, cache_gb=1e-9))
    features = store.features("float32")
    store.volume("k")
    assert features.whole().shape == (3, 4, 5, 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_object_is_named_and_nothing_of_its_entry_is_kept(
    remote: FeatureStore, bucket: S3Bucket, kind: Kind, damage: str
) -> None:
    fill(remote)
    key = "float16" if kind == "features" else "k"
    name = next(name for name in bucket.names() if name.startswith(f"{kind}/{key}.") and "/c." in name)
    data = bytearray(bucket.read(name))
    data[len(data) // 2] ^= 1
    if damage == "missing":
        bucket.remove(name)
    else:
        bucket.write(name, bytes(data if damage == "flipped" else data[:-1]))
    word = "missing" if damage == "missing" else "damaged"
    expected = rf"{kind}/{key} \(case one\): file c\.[0.]+ is {word}; remove s3://.*/{kind}/{key}\.json and run"
    with pytest.raises(StoreError, match=expected):
        remote.verify(kind, key)
    with pytest.raises(StoreError, match=expected):
        {"volumes": remote.volume, "labels": remote.label, "features": remote.features}[kind](key)
    assert not remote.path(kind, key).exists()
    assert not list(remote.folder.glob("*/.*"))
    bucket.remove(f"{kind}/{key}.json")  # what the sentence says
    assert not remote.has(kind, key)


def test_a_damaged_record_is_named(remote: FeatureStore, bucket: S3Bucket) -> None:
    fill(remote)
    bucket.write("labels/k.json", bucket.read("labels/k.json").replace(b"one", b"two"))
    with pytest.raises(
        StoreError,
        match=r"labels/k: its commit record, which tells of case two, is damaged; remove s3://.*/labels/k\.json",
    ):
        remote.label("k")


def test_verify_finds_a_damaged_copy_as_well(remote: FeatureStore) -> None:
    fill(remote).label("k")
    remote.verify("labels", "k")
    chunk = remote.path("labels", "k") / "c.0.0.0"
    chunk.write_bytes(bytes(len(chunk.read_bytes())))
    with pytest.raises(StoreError, match=rf"file c\.0\.0\.0 is damaged; remove {remote.path('labels', 'k')}"):
        remote.verify("labels", "k")


def test_a_writer_killed_at_any_request_leaves_no_readable_entry_and_the_next_run_finishes(
    bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = 4  # zarr.json, two channels, the record
    process = python(DYING, bucket.url, str(tmp_path / "there"), str(2 * requests))
    ends, errors = process.communicate(timeout=120)
    assert ends.split() == ["-9"] * (2 * requests), errors
    store = store_at(bucket, tmp_path / "here")
    whole = f"k{2 * requests}"  # killed after its last request
    assert store.entries("features") == [whole]
    names = [f"k{death}" for death in range(1, 2 * requests + 1)]
    for name in names[:-1]:
        assert not store.has("features", name)
        with pytest.raises(StoreError, match="holds no"):
            store.features(name)
    leftovers = len(bucket.names()) - requests
    assert leftovers > 0
    for name in names[:-1]:
        store.put_features(name, np.full((2, 4, 5, 6), int(name[1:])), None, {"case": f"case{name[1:]}"})
    for name in names:
        store.verify("features", name)
        assert np.array_equal(store.features(name).whole(), np.full((2, 4, 5, 6), int(name[1:])))
    assert store.sweep() == 0, "they may belong to a writer that is still at work"
    monkeypatch.setattr("dropgen.features.store.remote.ABANDONED_SECONDS", -1)
    assert store.sweep() > 0
    assert len(bucket.names()) == requests * len(names)
    for name in names:
        store.verify("features", name)


def test_two_processes_that_write_the_same_entries_at_once_leave_each_whole(bucket: S3Bucket, tmp_path: Path) -> None:
    names = [f"k{number}" for number in range(12)]
    writers = [python(RACING, bucket.url, str(tmp_path / who), who, *names) for who in ("1", "2")]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    store = store_at(bucket, tmp_path / "here")
    for name in names:
        store.verify("features", name)
        assert np.unique(store.features(name).whole()) == int(store.provenance("features", name)["who"])
    assert len(bucket.names()) == 4 * len(names), "the slower of the two took its files away"


def test_a_writer_that_is_overtaken_gives_way_and_takes_its_files_away(remote: FeatureStore, bucket: S3Bucket) -> None:
    def overtake(folder: Path) -> None:
        remote.put_label("k", np.ones((2, 2, 2), np.uint8), {"who": "first"})
        (folder / "file").write_bytes(b"of the second")

    remote.place.write(("labels", "k"), overtake, {"who": "second"})
    assert remote.provenance("labels", "k") == {"who": "first"}
    assert remote.label("k").all()
    assert len(bucket.names()) == 3


def test_a_store_whose_conditional_writes_are_switched_off_is_refused_and_keeps_no_entry(
    bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    store = store_at(bucket, tmp_path / "here")
    with pytest.raises(ResourceError, match=r"cannot write to s3://.*conditional writes.*unset AWS_CONDITIONAL_PUT"):
        store.put_label("k", np.ones((2, 2, 2), np.uint8), {"case": "one"})
    assert not store.has("labels", "k")
    assert not [name for name in bucket.names() if name.endswith(".json") and name.count("/") == 1]


def test_a_sweep_leaves_what_a_gc_has_hidden_and_may_show_again(
    remote: FeatureStore, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(remote)
    bucket.write("labels/k.0123/c.0.0.0", b"of a dead writer")
    hidden = remote.place.hide(("labels", "k"))
    assert hidden is not None
    monkeypatch.setattr("dropgen.features.store.remote.ABANDONED_SECONDS", -1)
    assert remote.sweep() == 0
    hidden.restore()
    assert remote.sweep() == 1
    remote.verify("labels", "k")


def test_a_record_whose_answer_was_lost_is_still_its_writers(
    remote: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dropgen.features.store.bucket import Bucket

    create = Bucket.create

    def sent_twice(bucket: Bucket, name: str, content: bytes) -> bool:
        create(bucket, name, content)
        return create(bucket, name, content)

    monkeypatch.setattr(Bucket, "create", sent_twice)
    remote.put_label("k", np.ones((2, 2, 2), np.uint8), {})
    remote.verify("labels", "k")
    with monkeypatch.context() as answers:
        answers.setattr(Bucket, "create", create)
        hidden = remote.place.hide(("labels", "k"))
    assert hidden is not None
    hidden.restore()
    remote.verify("labels", "k")


def test_a_store_travels_to_other_processes(remote: FeatureStore) -> None:
    found = pickle.loads(pickle.dumps(fill(remote)))
    assert np.array_equal(found.label("k"), remote.label("k"))
    assert found.location == remote.location


def test_gc_deletes_what_no_index_refers_to_and_nothing_else(
    remote: FeatureStore, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(remote)
    assert len(find_garbage(remote).spared) == 5
    monkeypatch.setattr("dropgen.features.store.upkeep.FRESH_SECONDS", -1)
    garbage = find_garbage(remote).sizes
    assert garbage == remote.sizes()
    assert sorted(delete(remote, [("labels", "k"), ("features", "int8")])) == [("features", "int8"), ("labels", "k")]
    assert remote.everything() == [("volumes", "k"), ("features", "float16"), ("features", "float32")]
    for entry in remote.everything():
        remote.verify(*entry)
    assert not any("int8" in name or name.startswith("labels") for name in bucket.names())


def test_an_entry_that_a_run_claims_or_computes_again_during_the_deletion_stays(
    remote: FeatureStore, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = np.ones((2, 2, 2), np.uint8)
    for key in ("claimed", "again"):
        remote.put_label(key, label, {"who": "before"})

    def meanwhile(store: FeatureStore) -> set[tuple[Kind, str]]:
        assert store.everything() == []
        assert delete_by_another(store) == []
        store.put_label("again", label, {"who": "after"})
        return {("labels", "claimed"), ("labels", "again")}

    def delete_by_another(store: FeatureStore) -> list[tuple[Kind, str]]:
        return [entry for entry in (("labels", "claimed"), ("labels", "again")) if store.place.hide(entry) is not None]

    monkeypatch.setattr("dropgen.features.store.upkeep.referenced", meanwhile)
    assert delete(remote, remote.everything()) == []
    assert remote.provenance("labels", "claimed") == {"who": "before"}
    assert remote.provenance("labels", "again") == {"who": "after"}
    for key in ("claimed", "again"):
        remote.verify("labels", key)
    assert len(bucket.names()) == 6


def test_the_index_of_a_study_lies_in_the_bucket(remote: FeatureStore, bucket: S3Bucket) -> None:
    StudyIndex("tiny", None, "float16", {}).save(remote)
    assert bucket.names() == ["studies/tiny.json"]
    assert [index.study for index in StudyIndex.saved(remote)] == ["tiny"]
    bucket.write("studies/tiny.json", b"{")
    with pytest.raises(StoreError, match=rf"{bucket.url}/studies/tiny.json is no index of a study"):
        StudyIndex.saved(remote)
