from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.studies.prepare import Prepared
from dropgen.features.unet import UNet
from dropgen.platform.adaptation import Target, build
from dropgen.platform.adaptation.batchnorm import affine_parameters, batchnorm_layers
from dropgen.platform.adaptation.tent import Tent, entropy
from dropgen.platform.methods import build as build_method
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_entropy_is_zero_for_one_hot_and_ln_k_for_uniform_probabilities() -> None:
    one_hot = 50 * torch.nn.functional.one_hot(torch.tensor([[0, 2, 1]]), 4).movedim(-1, 1).float()
    assert torch.allclose(entropy(one_hot), torch.zeros(1, 3), atol=1e-6)
    assert torch.allclose(entropy(torch.full((2, 5, 3, 3, 3), 7.0)), torch.full((2, 3, 3, 3), math.log(5)))


def test_entropy_of_two_classes_is_the_binary_entropy() -> None:
    p = torch.tensor([0.1, 0.3, 0.5])
    logits = torch.stack((p.log(), (1 - p).log()))[None]
    assert torch.allclose(entropy(logits)[0], -(p * p.log() + (1 - p) * (1 - p).log()))


@pytest.mark.parametrize("bn_stats", ["source", "batch"])
def test_only_batchnorm_weights_and_biases_change(erm: Segmenter, prepared: Prepared, bn_stats: str) -> None:
    tent = Tent(learning_rate=0.1, steps=3, bn_stats=bn_stats)
    adapted = tent.adapt(Target(erm, None, prepared), rng()).network
    before, after = erm.network.state_dict(), adapted.state_dict()
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    assert changed == {names[id(parameter)] for parameter in affine_parameters(adapted)}
    missing = before.keys() - after.keys()
    assert bool(missing) == (bn_stats == "batch")
    assert all("running" in key for key in missing)


def test_no_step_with_source_statistics_is_the_plain_prediction(erm: Segmenter, prepared: Prepared) -> None:
    target = Target(erm, None, prepared)
    plain = Tent(steps=0, bn_stats="source").scores(target, rng())
    assert torch.equal(plain, erm.logits(prepared))
    assert not torch.equal(Tent(steps=0, bn_stats="batch").scores(target, rng()), plain)


@pytest.mark.parametrize("bn_stats", ["source", "batch"])
def test_a_small_step_lowers_the_entropy_of_its_crop(erm: Segmenter, one_crop: Prepared, bn_stats: str) -> None:
    target = Target(erm, None, one_crop)
    before, after = (
        entropy(Tent(learning_rate=1e-3, steps=steps, bn_stats=bn_stats).scores(target, rng())[None]).mean()
        for steps in (0, 1)
    )
    assert after < before


def test_batch_statistics_are_those_of_the_window_alone(erm: Segmenter, one_crop: Prepared) -> None:
    found = Tent(steps=0, bn_stats="batch").scores(Target(erm, None, one_crop), rng())
    training = erm.clone()
    training.network.train()
    box = (slice(0, 16),) * 3
    with torch.no_grad():
        expected = training.network(training.window_input(one_crop, None, box))[0]
    assert torch.allclose(found, expected, atol=1e-6)


def test_more_crops_are_one_larger_batch(erm: Segmenter, one_crop: Prepared) -> None:
    # All crops of a one-crop volume are equal, and so is the mean gradient.
    one, three = (
        Tent(learning_rate=0.1, steps=1, crops=crops, bn_stats="source").scores(Target(erm, None, one_crop), rng())
        for crops in (1, 3)
    )
    assert torch.allclose(one, three, atol=1e-5)


def test_the_entropy_before_and_after_is_logged(
    erm: Segmenter, one_crop: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dropgen.platform.adaptation.tent"):
        Tent(learning_rate=1e-2, steps=3, bn_stats="source").scores(Target(erm, None, one_crop), rng())
    before, after = caplog.records[0].args  # type: ignore[misc]
    assert before == pytest.approx(entropy(erm.logits(one_crop)[None]).mean().item(), abs=1e-5)
    assert after < before


def test_the_extractor_of_a_concatenating_model_is_left_alone(prepared: Prepared) -> None:
    model = make_segmenter(Component.of("dropgen", p=0))
    adapted = Tent(learning_rate=0.1, steps=2).adapt(Target(model, None, prepared), rng())
    assert adapted._extractor is model._extractor
    assert torch.isfinite(adapted.logits(prepared)).all()


def test_the_papers_predictor_has_7560_scalars_in_23_layers() -> None:
    network = UNet(1, 2, base=20, downs=5, convs=2)
    assert len(list(batchnorm_layers(network))) == 23
    assert sum(parameter.numel() for parameter in affine_parameters(network)) == 7560


@pytest.mark.parametrize(
    ("method", "suited"),
    [({"name": "erm"}, True), ({"name": "dropgen", "p": 0}, True), ({"name": "dropgen", "p": 0.5}, False),
     ({"name": "rep_only"}, False)],
)  # fmt: skip
def test_it_is_meant_for_erm_and_for_dropgen_that_drops_nothing(method: dict[str, object], suited: bool) -> None:
    assert Tent.suits(build_method(Component.model_validate(method))) == suited


def test_it_is_the_default_of_the_registry() -> None:
    assert build(Component.of("tent")) == Tent()
