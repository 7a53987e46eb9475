"""`dropgen store`: what is missing, damaged, large or not needed any more; gc never takes what somebody needs."""

from __future__ import annotations

import os
import subprocess
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dropgen.errors import ConfigError, StoreError
from dropgen.features.extractors import Extractor
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.store import KINDS, Entry, FeatureStore
from dropgen.features.store.command import command
from dropgen.features.store.entry import COMMIT
from dropgen.features.store.upkeep import FRESH_SECONDS, delete, find_garbage
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_volume

if TYPE_CHECKING:
    from conftest import StudyFolder


@pytest.fixture
def study(tiny: StudyFolder, tmp_path: Path) -> Study:
    (tmp_path / "experiment.yaml").write_text("name: tiny\nstudy: study.yaml\nselection: {rule: target_validation}\n")
    return load_study(tiny.write(), tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


def store_action(root: Path, action: str, experiment: bool = False, **flags: Any) -> dict[str, Any]:
    path = root / "experiment.yaml" if experiment else None
    return command(Namespace(action=action, experiment=path, root=root, **({"yes": False, "overrides": ()} | flags)))


def fill(study: Study, store: FeatureStore, extractor: Extractor | None = None) -> StudyIndex:
    """Stores the study as `precompute` does, its index first."""
    index = StudyIndex.of(study, extractor or Mind(), "float16")
    index.save(store)
    for case in study.cases:
        keys, made = index.keys[case.id], {"case": case.id}
        store.put_volume(keys.volume, prepare([read_volume(case.image)], study.preparation, case.modality), made)
        store.put_label(keys.label or "", np.ones((5, 6, 7), np.uint8), made)
        store.put_features(keys.features or "", np.ones((12, 5, 6, 7)), None, made)
    return index


def age(store: FeatureStore) -> None:
    """Lets every entry be older than gc spares."""
    then = time.time() - FRESH_SECONDS - 60
    for kind, key in store.everything():
        os.utime(store.path(kind, key) / COMMIT, (then, then))


def test_status_counts_and_computes_nothing(study: Study, store: FeatureStore, tmp_path: Path) -> None:
    document = store_action(tmp_path, "status", experiment=True)
    assert document["study"] == "tiny"
    assert document["done"] == dict.fromkeys(KINDS, 0)
    assert document["missing"] == dict.fromkeys(KINDS, 3)
    assert not store.folder.exists()
    index = fill(study, store)
    document = store_action(tmp_path, "status", experiment=True)
    assert document["done"] == dict.fromkeys(KINDS, 3)
    sizes = store.sizes()
    assert document["bytes"]["labels"] == sum(sizes["labels", keys.label or ""] for keys in index.keys.values()) > 0


def test_verify_names_every_damaged_entry_and_prints_its_document(
    study: Study, store: FeatureStore, tmp_path: Path
) -> None:
    keys = fill(study, store).keys
    assert store_action(tmp_path, "verify", experiment=True)["entries"] == 9
    for case in ("one", "three"):
        chunk = store.path("labels", keys[case].label or "") / "c.0.0.0"
        chunk.write_bytes(b"\0" + chunk.read_bytes()[1:])
    with pytest.raises(StoreError, match="2 of 9 entries are damaged") as refusal:
        store_action(tmp_path, "verify", experiment=True)
    assert "(case one): file c.0.0.0 is damaged" in str(refusal.value)
    assert "(case three): file c.0.0.0 is damaged" in str(refusal.value)
    assert refusal.value.document is not None
    assert len(refusal.value.document["damaged"]) == 2


def test_verify_without_an_experiment_reads_what_no_study_refers_to_as_well(
    study: Study, store: FeatureStore, tmp_path: Path
) -> None:
    fill(study, store)
    store.put_label("loose", np.ones((2, 2, 2), np.uint8), {"case": "loose"})
    assert store_action(tmp_path, "verify") | {"store": ""} == {
        "action": "verify", "store": "", "study": None, "entries": 10, "damaged": [],
    }  # fmt: skip
    (store.path("labels", "loose") / "c.0.0.0").write_bytes(bytes(8))
    with pytest.raises(StoreError, match=r"1 of 10 entries are damaged:\n.*case loose"):
        store_action(tmp_path, "verify")


def test_usage_counts_shared_entries_for_each_study_and_once_in_all(
    study: Study, store: FeatureStore, tmp_path: Path
) -> None:
    fill(study, store)
    fill(replace(study, name="twin"), store, Mind((2,)))
    store.put_label("loose", np.ones((2, 2, 2), np.uint8), {})
    usage = store_action(tmp_path, "du")
    assert [row["study"] for row in usage["studies"]] == ["tiny", "twin"]
    one, two = (row["bytes"] for row in usage["studies"])
    assert one["volumes"] == two["volumes"] == usage["bytes"]["volumes"]
    assert one["features"] + two["features"] == usage["bytes"]["features"]
    assert usage["unreferenced"]["labels"] == usage["bytes"]["labels"] - one["labels"] > 0
    assert usage["bytes"]["volumes"] == sum(
        path.stat().st_size for path in (store.folder / "volumes").rglob("*") if path.is_file()
    )


def test_gc_lists_and_only_with_yes_deletes_what_no_index_refers_to(
    study: Study, store: FeatureStore, tmp_path: Path
) -> None:
    fill(study, store)
    fill(study, store, Mind((2,)))  # a second extractor has an index of its own: both stay
    superseded = fill(replace(study, spacing=(2.0, 2.0, 2.0)), store)
    fill(study, store)
    age(store)
    before = set(store.everything())
    listed = store_action(tmp_path, "gc")
    assert listed["entries"] == dict.fromkeys(KINDS, 3)
    assert not listed["deleted"]
    assert set(store.everything()) == before
    deleted = store_action(tmp_path, "gc", yes=True)
    assert deleted | {"deleted": False} == listed
    assert before - set(store.everything()) == set(superseded.entries())
    assert store_action(tmp_path, "verify")["entries"] == 12
    assert not list(store.folder.glob("*/.*"))


def test_gc_spares_what_was_written_within_the_hour(store: FeatureStore, tmp_path: Path) -> None:
    store.put_label("loose", np.ones((2, 2, 2), np.uint8), {})
    spared = store_action(tmp_path, "gc", yes=True)
    assert (spared["spared"], spared["bytes"]) == (1, 0)
    age(store)
    assert store_action(tmp_path, "gc", yes=True)["entries"]["labels"] == 1
    assert not store.has("labels", "loose")


def test_gc_leaves_the_folder_of_a_writer_at_work_and_takes_that_of_a_dead_one(
    store: FeatureStore, tmp_path: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    folders = {
        pid: store.folder / "labels" / f".k.{os.uname().nodename}.{pid}-00.partial" for pid in (os.getpid(), dead.pid)
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    store_action(tmp_path, "gc")
    assert all(folder.exists() for folder in folders.values())
    store_action(tmp_path, "gc", yes=True)
    assert folders[os.getpid()].exists()
    assert not folders[dead.pid].exists()


def test_what_a_run_claims_between_the_list_and_the_deletion_stays(study: Study, store: FeatureStore) -> None:
    fill(study, store)
    index_file = next((store.folder / "studies").iterdir())
    record = index_file.read_bytes()
    index_file.unlink()
    age(store)
    garbage = find_garbage(store).sizes
    assert len(garbage) == 9
    index_file.write_bytes(record)  # a run saves its index now, and then finds all entries there
    assert delete(store, garbage) == []
    assert set(store.everything()) == set(garbage)
    for entry in garbage:
        store.verify(*entry)


def test_an_entry_that_was_computed_again_during_the_deletion_stays(
    study: Study, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = fill(study, store)
    label = index.keys["one"].label or ""

    def compute_again(_: FeatureStore) -> set[Entry]:
        store.put_label(label, np.ones((5, 6, 7), np.uint8), {"case": "again"})
        return set(index.entries())

    monkeypatch.setattr("dropgen.features.store.upkeep.referenced", compute_again)
    assert delete(store, [("labels", label)]) == []
    assert store.provenance("labels", label) == {"case": "again"}
    assert not list(store.folder.glob("*/.*"))


def test_gc_refuses_a_damaged_index_and_deletes_nothing(study: Study, store: FeatureStore, tmp_path: Path) -> None:
    fill(study, store)
    age(store)
    path = next((store.folder / "studies").iterdir())
    path.write_text(path.read_text()[:100])
    with pytest.raises(StoreError, match=rf"{path.name} is no index of a study.*precompute"):
        store_action(tmp_path, "gc", yes=True)
    with pytest.raises(StoreError, match="is no index"):
        delete(store, store.everything())
    assert store_action(tmp_path, "verify")["entries"] == 9


@pytest.mark.parametrize(
    ("action", "settings", "message"),
    [
        ("status", {}, "store status counts the entries of an experiment; name its YAML file"),
        ("gc", {"experiment": True}, "store gc looks at the whole store; leave out the experiment"),
        ("du", {"yes": True}, "store du deletes nothing; leave out --yes"),
        ("verify", {"overrides": ("--seeds=[1]",)}, "store verify was given none"),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(
    action: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        store_action(tmp_path, action, **settings)
