from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.config import Component
from dropgen.errors import CheckpointError, RegistryError
from dropgen.features.studies.volume import Volume, read_volume, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import Tracker, fetch, register
from tests_support.segmenters import make_segmenter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "bundle"
    make_segmenter(Component.of("dropgen", p=0.5)).save(folder)
    (folder.parent / "result.json").write_text(json.dumps({"p": 0.5, "val_dice": 0.8125, "commit": "abc123"}))
    return folder


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trial") / "bundle"
    make_segmenter(Component.of("erm")).save(folder)
    return folder


@pytest.fixture(scope="module")
def empty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    Tracker(root)
    return root


@pytest.fixture
def root(empty_root: Path, tmp_path: Path) -> Path:
    """A root with an empty database; making one takes mlflow seconds."""
    shutil.copytree(empty_root, tmp_path / "root")
    return tmp_path / "root"


def image(seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).normal(size=(18, 16, 20)).astype(np.float32), np.diag([-1.0, 1, 1, 1]))


def test_a_registered_bundle_comes_back_bit_for_bit(root: Path, bundle: Path) -> None:
    assert register(root, bundle, "demo") == "models:/demo@champion"
    found = fetch(root, "demo")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in bundle.iterdir()
    }
    assert found.is_relative_to(root / "mlflow" / "artifacts")
    np.testing.assert_array_equal(Segmenter.load(found).predict(image()), Segmenter.load(bundle).predict(image()))


def test_the_version_says_where_it_comes_from(root: Path, bundle: Path) -> None:
    register(root, bundle, "demo")
    version = Tracker(root).client.get_model_version_by_alias("demo", "champion")
    weights = json.loads((bundle / "segmenter.json").read_text())["weights_sha256"]
    assert version.tags == {
        "bundle": weights, "study": "toy", "method": "dropgen", "p": "0.5", "val_dice": "0.8125", "commit": "abc123",
    }  # fmt: skip


def test_an_alias_moves_and_the_same_weights_are_one_version(root: Path, bundle: Path, other_bundle: Path) -> None:
    client = Tracker(root).client
    for folder, alias in ((bundle, "champion"), (other_bundle, "candidate"), (bundle, "champion")):
        register(root, folder, "demo", alias)
    assert len(client.search_model_versions("name = 'demo'")) == 2
    register(root, other_bundle, "demo", "champion")
    assert len(client.search_model_versions("name = 'demo'")) == 2
    assert (fetch(root, "demo") / "weights.safetensors").read_bytes() == (
        other_bundle / "weights.safetensors"
    ).read_bytes()


def test_a_moved_root_still_serves(root: Path, bundle: Path) -> None:
    register(root, bundle, "demo")
    moved = root.rename(root.with_name("elsewhere"))
    assert fetch(moved, "demo").is_relative_to(moved)


def test_what_the_registry_lacks_is_named_with_the_command(root: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no model is registered") as error:
        fetch(tmp_path / "fresh", "demo")
    assert "dropgen register" in str(error.value)
    assert not (tmp_path / "fresh").exists()
    register(root, bundle, "demo", "candidate")
    with pytest.raises(RegistryError, match=r"no alias 'champion' yet \(there: candidate\)") as error:
        fetch(root, "demo")
    assert "--alias champion" in str(error.value)
    with pytest.raises(RegistryError, match=r"no model 'dmeo'.*there: demo"):
        fetch(root, "dmeo")
    shutil.rmtree(root / "mlflow" / "artifacts")
    with pytest.raises(RegistryError, match="gone"):
        fetch(root, "demo", "candidate")


def test_what_cannot_be_registered_is_named(root: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        register(root, tmp_path, "demo")
    with pytest.raises(RegistryError, match="a/b"):
        register(root, bundle, "a/b")
    with pytest.raises(RegistryError, match="v1"):
        register(root, bundle, "demo", "v1")


def test_mlflow_alone_loads_the_registered_model(root: Path, bundle: Path, tmp_path: Path) -> None:
    register(root, bundle, "demo")
    write_volume(tmp_path / "scan.nii.gz", image().array, image().affine)
    expected = Segmenter.load(bundle).predict(read_volume(tmp_path / "scan.nii.gz"))
    script = (
        "import sys, mlflow, numpy\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "[mask] = mlflow.pyfunc.load_model('models:/demo@champion').predict([sys.argv[2]])\n"
        "numpy.save(sys.argv[3], mask)\n"
    )
    words = [sys.executable, "-c", script, Tracker(root).uri, str(tmp_path / "scan.nii.gz"), str(tmp_path / "mask.npy")]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "mask.npy"), expected)


def test_children_are_filed_under_their_parent_with_config_and_curves(root: Path, tmp_path: Path) -> None:
    tracker = Tracker(root)
    parent = tracker.start_parent("demo", "search", {"training": {"steps": 20}, "seeds": [1, 2]})
    child = tracker.start_child(parent, "dropgen p=0.5", {"p": 0.5})
    for step, loss in enumerate([1.0, 0.5, 0.25]):
        tracker.log(child, {"loss": loss}, step)
    tracker.log(child, {"loss": 0.25}, 2)
    tracker.log_curve(child, "val_dice", [(step, step / 3000) for step in range(2500)])
    tracker.tag(child, {"commit": "abc", "p": None})
    (tmp_path / "result.json").write_text("{}")
    tracker.attach(child, tmp_path / "result.json")
    tracker.finish(child)
    run = tracker.client.get_run(child)
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["commit"] == "abc"
    assert "p" not in run.data.tags
    assert run.info.status == "FINISHED"
    assert tracker.client.get_run(parent).data.params == {"training.steps": "20", "seeds": "[1, 2]"}
    history = tracker.client.get_metric_history(child, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert len(tracker.client.get_metric_history(child, "val_dice")) == 2500
    assert {entry.path for entry in tracker.client.list_artifacts(child)} == {"config.json", "result.json"}


def test_a_key_continues_its_run_and_only_under_its_parent(root: Path) -> None:
    tracker = Tracker(root)
    parent = tracker.start_parent("demo", "search", {}, key="k")
    assert tracker.start_parent("demo", "search", {}, key="k") == parent
    assert tracker.start_parent("demo", "search", {}, key="other") != parent
    child = tracker.start_child(parent, "trial", {"p": 0.5}, key="t")
    tracker.finish(child, "KILLED")
    assert Tracker(root).start_child(parent, "trial", {"p": 0.5}, key="t") == child
    assert tracker.client.get_run(child).info.status == "RUNNING"
    second = tracker.start_parent("demo", "search", {}, key="other")
    assert tracker.start_child(second, "trial", {"p": 0.5}, key="t") != child


def test_concurrent_trials_keep_their_points_apart(root: Path) -> None:
    parent = Tracker(root).start_parent("demo", "search", {})

    def trial(number: int) -> str:
        tracker = Tracker(root)
        run = tracker.start_child(parent, f"trial {number}", {"number": number})
        for step in range(10):
            tracker.log(run, {"loss": float(number)}, step)
        tracker.finish(run)
        return run

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(trial, range(4)))
    client = Tracker(root).client
    for number, run in enumerate(runs):
        points = client.get_metric_history(run, "loss")
        assert [(point.step, point.value) for point in points] == [(step, float(number)) for step in range(10)]


def test_no_process_wide_run_is_left_behind(root: Path, bundle: Path) -> None:
    before = mlflow.get_tracking_uri()
    register(root, bundle, "demo")
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == before


def test_nothing_but_the_disk_is_touched(root: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a connection was opened: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    tracker = Tracker(root)
    tracker.finish(tracker.start_parent("demo", "search", {}))
    register(root, bundle, "demo")
    fetch(root, "demo")


def test_the_verb_registers_and_prints_one_document(
    root: Path, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["register", str(bundle), "--name", "demo", "--json", "--root", str(root)]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out)["model_uri"] == "models:/demo@champion"
    assert "dropgen serve --name demo" in output.err
    assert "INFO" not in output.err
    assert main(["register", str(root), "--name", "demo", "--root", str(root)]) == 2
