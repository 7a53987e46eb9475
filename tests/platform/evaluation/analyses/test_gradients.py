"""Condition 1 during training: what trials keep of it, and that probing changes nothing that is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dropgen.errors import NothingToAnalyseError
from dropgen.manifest import read_json
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.gradients import analyse
from dropgen.platform.methods import build as build_method
from dropgen.platform.networks import build_network
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.probe import probe_of
from tests_support.tiny import tiny_experiment


def test_every_trial_with_image_and_features_is_probed_on_the_way_and_no_other(scene: Scene) -> None:
    rows = analyse(scene).rows
    assert {row["model"] for row in rows} == {"DropGen p = 0.25"}
    assert [row["step"] for row in rows] == [1, *range(2, 41, 2)]
    assert all(-1 <= row["cosine"] <= 1 for row in rows)


def test_a_network_without_image_weights_has_cosine_1_on_the_batch_of_a_trial(scene: Scene) -> None:
    (trial,) = [trial for trial in trials_of(scene.bench.experiment) if trial.method.name == "dropgen"]
    method = build_method(trial.method)
    probe = probe_of(scene.bench, method, "cpu")
    assert probe is not None
    torch.manual_seed(0)
    network = build_network(scene.bench.experiment.network, method, probe.features_bcxyz.shape[1], 3)
    with torch.no_grad():
        next(module for module in network.modules() if isinstance(module, torch.nn.Conv3d)).weight[:, :1] = 0
    cosine, inner = probe(network)
    assert cosine == 1
    assert inner > 0


def test_a_probed_training_is_the_same_training_to_the_bit(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other")
    results = []
    for place, analyses in ((root, []), (tmp_path / "other", ["all"])):
        bench = Workbench.open(tiny_experiment(place, analyses=analyses), place)
        (trial,) = trials_of(bench.experiment)
        results.append((bench.folder(trial), train_trial(bench, trial)))
    (plain, one), (probed, other) = results
    assert one["key"] == other["key"]
    for curve in ("loss", "validation"):
        assert one["curve"][curve] == other["curve"][curve]
    files = [folder / "bundle" / "weights.safetensors" for folder in (plain, probed)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert one["curve"]["condition1"] == []
    assert [step for step, *_ in other["curve"]["condition1"]] == [1, 2, 3, 4, 5, 6]


def test_trials_from_before_it_was_asked_for_have_nothing_to_show(scene: Scene) -> None:
    groups = [group for group in scene.groups if group.method == "erm"]
    assert read_json(Path(groups[0].lead["folder"]) / "result.json")["curve"]["condition1"] == []
    with pytest.raises(NothingToAnalyseError, match="no trial has measured it"):
        analyse(Scene(scene.bench, groups))
