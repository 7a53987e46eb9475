"""One suite over every registered training method on images of two channels; a new one is tested unasked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.errors import ConfigError, VolumeError
from dropgen.features.studies.volume import Volume
from dropgen.platform.methods import METHODS, Method, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.joint import Joint
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench
from dropgen.platform.training.losses import dice_ce
from tests_support.channels import NAMES, two_channel_experiment
from tests_support.segmenters import make_segmenter

IMAGES, FEATURES, CLASSES, SIZE = 2, 4, 3, (4, 6, 8)
TAKING = sorted(name for name, method in METHODS.items() if not method.one_channel)


@pytest.fixture(params=TAKING)
def method(request: pytest.FixtureRequest) -> Method:
    return build(Component.of(request.param))


def network_for(method: Method, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(Network(base=2, downs=1), method, FEATURES, CLASSES, IMAGES)


def inputs_for(method: Method, samples: int = 2) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(samples, IMAGES, *SIZE, generator=generator)
    features = torch.randn(samples, FEATURES, *SIZE, generator=generator) if method.needs_features else None
    return image, features


def batch_for(method: Method, samples: int = 2) -> Batch:
    draws = np.random.default_rng(1)
    kept, strength = zip(*(method.draw(draws, FEATURES, IMAGES) for _ in range(samples)), strict=True)
    image, features = inputs_for(method, samples)
    label = torch.randint(CLASSES, (samples, 1, *SIZE), generator=torch.Generator().manual_seed(2))
    image, label = method.augment(image, label, CLASSES, [np.random.default_rng((1, s)) for s in range(samples)])
    return Batch(image, label, features, torch.from_numpy(np.stack(kept)), 1, torch.tensor(strength))


def test_inference_takes_the_width_that_was_promised(method: Method) -> None:
    x_bcxyz = method.inputs(*inputs_for(method))
    assert x_bcxyz.shape[1] == method.in_channels(FEATURES, IMAGES)
    assert len(method.plan(np.random.default_rng(0), FEATURES, IMAGES)) == x_bcxyz.shape[1]
    assert network_for(method).eval()(x_bcxyz).shape == (2, CLASSES, *SIZE)


@pytest.mark.parametrize("samples", [1, 2])
def test_every_parameter_gets_a_finite_gradient(method: Method, samples: int) -> None:
    network, batch = network_for(method).train(), batch_for(method, samples)
    assert batch.image_bcxyz.shape[1] % IMAGES == 0  # so that every copy of the image gets its shift and scale
    torch.manual_seed(batch.seed)
    loss = method.loss(network, batch, dice_ce())
    loss.backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert torch.isfinite(loss)
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_a_joint_method_shows_the_channels_of_the_image_before_the_features(method: Method) -> None:
    if not isinstance(method, Joint):
        pytest.skip("it shows the network no features beside the image")
    image, features = inputs_for(method)
    u = method.inputs(image, features)
    assert torch.equal(u[:, :IMAGES], image)
    assert torch.equal(u[:, IMAGES:], features)


def test_a_bundle_predicts_what_was_saved_and_the_order_of_channels_matters(method: Method, tmp_path: Path) -> None:
    segmenter = make_segmenter(Component.of(method.name), channels=NAMES)
    segmenter.save(tmp_path / "bundle")
    loaded = Segmenter.load(tmp_path / "bundle")
    assert loaded.spec.channels == NAMES
    generator = np.random.default_rng(0)
    one, two = (
        Volume(gaussian_filter(generator.normal(size=(17, 21, 19)), 2).astype(np.float32), np.eye(4)) for _ in range(2)
    )
    mask = segmenter.predict(one, two)
    assert mask.shape == (17, 21, 19)
    np.testing.assert_array_equal(loaded.predict(one, two), mask)
    assert not np.array_equal(segmenter.predict(two, one), mask)
    with pytest.raises(VolumeError, match="the image has 1 channel where 2 are wanted: plain, inverted"):
        segmenter.predict(one)


def test_each_channel_of_the_image_is_dropped_like_any_other() -> None:
    method, generator = build(Component.of("dropgen", p=0.5)), np.random.default_rng(0)
    kept = np.stack([method.plan(generator, FEATURES, IMAGES) for _ in range(4000)])
    assert np.abs(kept.mean(axis=0) - 0.5).max() < 3 * 0.5 / np.sqrt(4000)
    correlations = np.corrcoef(kept[:, :IMAGES].T)
    assert abs(correlations[0, 1]) < 0.05


def test_structured_dropout_takes_the_image_or_the_features_whole() -> None:
    method, generator = build(Component.of("structured_dropout", p=0.9)), np.random.default_rng(0)
    kept = np.stack([method.plan(generator, FEATURES, IMAGES) for _ in range(200)])
    assert {tuple(row) for row in kept} == {
        (True,) * 6, (False,) * IMAGES + (True,) * FEATURES, (True,) * IMAGES + (False,) * FEATURES,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gin", "gin_ipa"])
def test_gin_gives_each_channel_a_network_of_its_own(name: str) -> None:
    method = build(Component.of(name, channels=1))
    image = torch.rand(1, 1, 6, 6, 6).repeat(1, 2, 1, 1, 1)
    changed, _ = method.augment(image, torch.zeros(1, 1, 6, 6, 6).long(), 2, [np.random.default_rng(0)])
    for copy in changed.split(IMAGES, dim=1):
        assert not torch.allclose(copy[:, 0], copy[:, 1])


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(TAKING)))
def test_a_method_of_one_channel_is_refused_before_anything_is_computed(name: str, tmp_path: Path) -> None:
    experiment = two_channel_experiment(tmp_path, methods=[{"name": name}])
    told = f"method {name} takes images of one channel, and those of study phantom have 2, plain, inverted: choose"
    with pytest.raises(ConfigError, match=told):
        Workbench.open(experiment, tmp_path)
