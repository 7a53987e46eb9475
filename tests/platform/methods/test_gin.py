"""GIN: a random intensity map of each crop that keeps its norm, its size and its label."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.platform.methods import build
from dropgen.platform.methods.gin import Gin
from dropgen.platform.methods.random_cnn import interpolate, random_cnn, random_intensities
from dropgen.platform.networks import build_network, build_predictor


def crops(samples: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(samples, 1, 6, 5, 7, generator=generator)
    return image, torch.randint(3, (samples, 1, 6, 5, 7), generator=generator)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, sample)) for sample in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_label_are_kept_and_the_image_is_changed(channels: int) -> None:
    image, label = crops()
    changed, same = Gin(channels=channels).augment(image, label, 3, generators(3))
    assert changed.shape == (3, channels, 6, 5, 7)
    assert changed.dtype == torch.float32
    assert torch.equal(same, label)
    assert not torch.allclose(changed, image.expand_as(changed), atol=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_the_norm_of_every_sample_is_kept(seed: int) -> None:
    image, label = crops()
    changed, _ = Gin().augment(image, label, 3, generators(3, seed))
    ratio = changed.flatten(1).norm(dim=1) / image.expand_as(changed).flatten(1).norm(dim=1)
    assert torch.allclose(ratio, torch.ones(3), atol=1e-3)


def test_samples_of_equal_content_are_changed_differently() -> None:
    image, label = crops(1)
    changed, _ = Gin().augment(image.expand(2, -1, -1, -1, -1), label.expand(2, -1, -1, -1, -1), 3, generators(2))
    assert not torch.allclose(changed[0], changed[1], atol=0.05)


def test_a_sample_is_changed_alike_whatever_share_of_the_batch_a_worker_has() -> None:
    image, label = crops(4)
    whole, _ = Gin().augment(image, label, 3, generators(4))
    share, _ = Gin().augment(image[1::2], label[1::2], 3, generators(4)[1::2])
    assert torch.equal(whole[1::2], share)


def test_alpha_0_returns_the_image_and_alpha_1_the_network_s_direction() -> None:
    image, changed = torch.rand(3, 4, 4, 4), torch.randn(3, 4, 4, 4)
    assert torch.allclose(interpolate(image, changed, 0), image, atol=1e-5)
    assert torch.allclose(interpolate(image, changed, 1), changed * image.norm() / changed.norm(), atol=1e-5)


def test_the_result_is_the_image_and_the_network_s_output_in_shares_of_a_uniform_alpha() -> None:
    image, alphas = torch.rand(1, 4, 4, 4), []
    for seed in range(200):
        result = random_intensities(image, np.random.default_rng(seed)).flatten()
        network = random_cnn(image, np.random.default_rng(seed)).flatten()
        shares = torch.linalg.lstsq(torch.stack((network, image.flatten()), dim=1).double(), result.double()).solution
        alphas.append(float(shares[0] / shares.sum()))
    assert 0 < min(alphas) < 0.05
    assert 0.95 < max(alphas) < 1
    assert abs(np.mean(alphas) - 0.5) < 4 * (1 / 12 / 200) ** 0.5


def test_kernels_of_size_1_make_a_map_of_single_voxels() -> None:
    image = torch.rand(3, 1, 1, 1) + torch.randint(4, (1, 5, 5, 5), generator=torch.Generator().manual_seed(0))
    per_voxel, smeared = (random_cnn(image, np.random.default_rng(0), (size,)) for size in (1, 3))
    for value in range(4):
        equal_inputs = image[0].floor() == value
        assert torch.equal(per_voxel[:, equal_inputs].amax(dim=1), per_voxel[:, equal_inputs].amin(dim=1))
        assert not torch.allclose(smeared[:, equal_inputs].amax(dim=1), smeared[:, equal_inputs].amin(dim=1))


def test_with_kernels_of_size_1_it_equals_the_matrix_formula() -> None:
    image, draws = torch.rand(3, 2, 3, 4), np.random.default_rng(5)
    expected = image.numpy()
    for layer, (inputs, outputs) in enumerate(pairwise([3, 2, 2, 2, 3])):
        draws.choice((1,))
        weight = draws.standard_normal((outputs, inputs), dtype=np.float32)
        expected = np.einsum("oi,ixyz->oxyz", weight, expected)
        expected += draws.standard_normal(outputs, dtype=np.float32)[:, None, None, None]
        if layer < 3:
            expected = np.where(expected > 0, expected, 0.01 * expected)
    np.testing.assert_allclose(random_cnn(image, np.random.default_rng(5), (1,)).numpy(), expected, atol=1e-5)


def test_every_layer_s_kernel_reaches_no_voxel_or_one_further() -> None:
    impulse = torch.zeros(1, 11, 11, 11)
    impulse[0, 5, 5, 5] = 1
    distance = torch.stack(torch.meshgrid(*[torch.arange(11) - 5] * 3, indexing="ij")).abs().amax(dim=0)
    reaches = set()
    for seed in range(60):
        answers = [random_cnn(image, np.random.default_rng(seed)) for image in (impulse, torch.zeros_like(impulse))]
        reaches.add(int(distance[(answers[0] - answers[1])[0].abs() > 1e-6].amax()))
    assert reaches == {0, 1, 2, 3, 4}


def test_an_empty_image_stays_empty() -> None:
    changed, _ = Gin().augment(torch.zeros(2, 1, 4, 4, 4), torch.zeros(2, 1, 4, 4, 4).long(), 3, generators(2))
    assert torch.equal(changed, torch.zeros(2, 3, 4, 4, 4))


def test_it_learns_nothing_and_gives_no_gradient() -> None:
    method = Gin()
    changed, _ = method.augment(*crops(), 3, generators(3))
    assert not changed.requires_grad
    network, plain = (
        build_network(Network(base=2, downs=1), method, 0, 3),
        build_predictor(Network(base=2, downs=1), 3, 3),
    )
    assert [p.shape for p in network.parameters()] == [p.shape for p in plain.parameters()]


def test_autocast_does_not_reach_it() -> None:
    image, label = crops()
    expected, _ = Gin().augment(image, label, 3, generators(3))
    with torch.autocast("cpu", torch.bfloat16):
        changed, _ = Gin().augment(image, label, 3, generators(3))
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_inference_the_image_is_repeated_and_nothing_else(channels: int) -> None:
    image, _ = crops(1)
    method = Gin(channels=channels)
    assert method.in_channels(12) == channels
    assert torch.equal(method.inputs(image, None), image.repeat(1, channels, 1, 1, 1))


@pytest.mark.parametrize("channels", [0, 2, 4, 3.0, True, "3", None])
def test_other_numbers_of_channels_are_refused_by_value(channels: object) -> None:
    with pytest.raises(ConfigError, match=f"channels = {channels!r} must be one of 1, 3"):
        build(Component.of("gin", channels=channels))
