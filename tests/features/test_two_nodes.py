"""Precompute on a cluster of two nodes: the cases are shared out, the store is right, the root must be shared too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from dropgen.config import Experiment, validate
from dropgen.errors import ResourceError
from dropgen.features.cluster import connect
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import StudyIndex
from dropgen.features.precompute import precompute
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import write_mask, write_volume

if TYPE_CHECKING:
    from conftest import StudyFolder

CASES = 8


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes of one processor each, so that two workers are on two nodes."""
    with connect():  # from now on what this process starts asks for the token, as a cluster must
        pass
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.fixture
def experiment(tiny: StudyFolder) -> Experiment:
    generator = np.random.default_rng(1)
    for number in range(3, CASES):
        row = {name: tiny.rows[0][name].replace("one", f"n{number}") for name in ("image", "label", "subject")}
        write_volume(tiny.path / row["image"], generator.random((24, 24, 24), np.float32), np.eye(4))
        write_mask(tiny.path / row["label"], np.zeros((24, 24, 24)), np.eye(4))
        tiny.rows.append({**tiny.rows[0], **row})
    return validate(
        Experiment, {"name": "tiny", "study": str(tiny.write()), "selection": {"rule": "target_validation"}}, "tiny"
    )


@pytest.mark.nightly
def test_cases_are_shared_out_over_both_nodes_and_the_store_is_right(
    address: str, experiment: Experiment, tmp_path: Path
) -> None:
    study, store = load_study(experiment.study, tmp_path), FeatureStore(tmp_path / "store")
    document = precompute(experiment, study, tmp_path, workers=2, address=address)
    assert not ray.is_initialized()
    assert document["computed"] == {"volumes": CASES, "labels": CASES, "features": CASES}
    assert len(document["workers"]) == 2
    index = StudyIndex.of(study, Mind(), "float16")
    index.require(store)
    for kind, key in index.entries():
        store.verify(kind, key)
    again = precompute(experiment, study, tmp_path, workers=2, address=address)
    assert set(again["computed"].values()) == {0}


@pytest.mark.nightly
def test_a_node_that_cannot_see_the_root_is_named_before_any_work(
    address: str, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path("/proc/self/cwd")  # to every process its own folder, as a local disk is to every node
    if not here.is_dir():
        pytest.skip("needs Linux's /proc")
    monkeypatch.chdir(tmp_path)
    study = load_study(experiment.study, tmp_path)
    with pytest.raises(ResourceError, match=r"node \S+ of the Ray cluster does not see /proc/self/cwd/store/studies/"):
        precompute(experiment, study, here, workers=2, address=address)
    assert not any(FeatureStore(tmp_path / "store").entries("volumes"))
