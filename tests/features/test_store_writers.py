"""Whatever happens to a writer, an entry is whole or not there, and the next writer goes on."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dropgen.errors import ResourceError
from dropgen.features.store import FeatureStore, entry
from dropgen.features.store.entry import COMMIT, write_entry
from tests_support.disks import small_disk
from tests_support.stores import filled, leftovers

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


def test_an_entry_that_one_of_many_writers_has_published_is_never_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interval = sys.getswitchinterval()
    monkeypatch.setattr(entry, "_flush", lambda path: None)  # it is the renames that race
    sys.setswitchinterval(1e-6)
    try:
        for key in range(120):
            target, together = tmp_path / "labels" / f"k{key}", threading.Barrier(4)
            if key % 3 == 0:  # half of one lies in the way
                target.mkdir(parents=True)
                (target / "c.0.0.0").touch()

            def fill(folder: Path, together: threading.Barrier = together) -> None:
                (folder / "c.0.0.0").write_bytes(b"1")
                together.wait()

            def write(_: int, target: Path = target) -> int:
                write_entry(target, fill, {})
                return (target / COMMIT).stat().st_ino

            with ThreadPoolExecutor(4) as writers:
                seen = set(writers.map(write, range(4)))
            assert seen == {(target / COMMIT).stat().st_ino}
            assert not list(target.parent.glob(".*"))
    finally:
        sys.setswitchinterval(interval)


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
    with small_disk(tmp_path / "small", "size=256k") as folder:
        yield folder


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
