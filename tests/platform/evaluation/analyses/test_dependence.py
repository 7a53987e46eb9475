"""Input dependence: exact on networks whose dependence is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dropgen.errors import NothingToAnalyseError
from dropgen.features.studies.validation import validation_cases
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.dependence import Without, analyse, ways, without


def first(network: nn.Module) -> nn.Conv3d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv3d))


def drops(scene: Scene, ignored: slice) -> dict[str, float]:
    """What the DropGen model loses in each way once its first layer ignores these channels."""
    (model,) = [model for model in scene.models if model.row["method"] == "dropgen"]
    segmenter = scene.load(model).clone()
    with torch.no_grad():
        first(segmenter.network).weight[:, ignored] = 0
    cases = validation_cases(scene.bench.study, "target_validation")
    found = {way: without(scene.bench, segmenter, zeroed, cases) for way, zeroed in ways(1).items()}
    return {way: found["full"] - value for way, value in found.items()}


def test_a_network_that_ignores_the_image_loses_nothing_without_it(scene: Scene) -> None:
    assert drops(scene, slice(0, 1))["without_image"] == 0


def test_a_network_that_ignores_the_features_loses_nothing_without_them(scene: Scene) -> None:
    assert drops(scene, slice(1, None))["without_features"] == 0


def test_whole_it_has_the_dice_that_chose_it(scene: Scene) -> None:
    rows = analyse(scene).rows
    (full,) = [row for row in rows if row["input"] == "full" and row["model"].startswith("DropGen")]
    (model,) = [model for model in scene.models if model.row["method"] == "dropgen"]
    assert full["val_dice"] == model.row["val_dice"]
    assert full["drop"] == 0


def test_without_the_image_is_the_same_as_a_zero_image_with_the_true_features(scene: Scene) -> None:
    (model,) = [model for model in scene.models if model.row["method"] == "dropgen"]
    network = scene.load(model).network
    u = torch.randn(1, first(network).in_channels, 16, 16, 16)
    blind = torch.cat((torch.zeros_like(u[:, :1]), u[:, 1:]), dim=1)
    kept = u.clone()
    with torch.no_grad():
        assert torch.equal(Without(network, ways(1)["without_image"])(u), network(blind))
    assert torch.equal(u, kept)


def test_an_experiment_without_a_joint_model_has_nothing_to_show(scene: Scene) -> None:
    groups: Any = [group for group in scene.groups if group.method == "erm"]
    with pytest.raises(NothingToAnalyseError, match="side by side"):
        analyse(Scene(scene.bench, groups))
