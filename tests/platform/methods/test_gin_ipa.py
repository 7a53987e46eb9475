"""GIN+IPA: three copies, two of them interleaved by a smooth map, and a loss on their disagreement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from scipy.interpolate import BSpline
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.blend_map import _spline_weights, blend_map
from dropgen.platform.methods.gin_ipa import GinIpa, consistency
from dropgen.platform.methods.random_cnn import random_intensities
from dropgen.platform.networks import build_network
from dropgen.platform.training.losses import dice_ce

SHAPE = (8, 6, 4)
CROPS = [(32, 32, 32), (24, 32, 16)]


class Recorder(nn.Module):
    """An identity that remembers its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x_bcxyz: Tensor) -> Tensor:
        self.seen.append(x_bcxyz)
        return x_bcxyz


def batch_for(method: GinIpa, samples: int = 2) -> Batch:
    draws = torch.Generator().manual_seed(0)
    image = torch.rand(samples, 1, *SHAPE, generator=draws)
    label = torch.randint(3, (samples, 1, *SHAPE), generator=draws)
    image, label = method.augment(image, label, 3, [np.random.default_rng(sample) for sample in range(samples)])
    return Batch(image, label, None, torch.ones(samples, method.channels, dtype=torch.bool))


def logits_of_copies(seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(3, 2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", CROPS, ids=str)
def test_the_blend_map_runs_from_exactly_0_to_exactly_1(shape: tuple[int, int, int]) -> None:
    for seed in range(10):
        b = blend_map(shape, np.random.default_rng(seed))
        assert (b.shape, b.dtype) == (shape, np.float32)
        assert (b.min(), b.max()) == (0, 1)


@pytest.mark.parametrize("shape", CROPS, ids=str)
def test_the_blend_map_is_smooth_along_every_axis(shape: tuple[int, int, int]) -> None:
    for seed in range(50):
        b = blend_map(shape, np.random.default_rng(seed))
        for axis, size in enumerate(shape):
            assert np.abs(np.diff(b, axis=axis)).max() < 10 / round(size / 4)


def test_the_blend_map_of_one_voxel_is_a_half() -> None:
    assert np.array_equal(blend_map((1, 1, 1), np.random.default_rng(0)), np.full((1, 1, 1), 0.5))


@pytest.mark.parametrize("size", [1, 2, 6, 16, 21])
def test_control_points_weigh_as_quadratic_b_splines_and_share_every_voxel(size: int) -> None:
    weights, spacing = _spline_weights(size), max(1, round(size / 4))
    spline = BSpline.basis_element([-1.5, -0.5, 0.5, 1.5], extrapolate=False)
    distance = np.arange(size)[:, None] / spacing - np.arange(weights.shape[1])[None, :] + 1
    np.testing.assert_allclose(weights, np.nan_to_num(spline(distance)), atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_interleaved_copies_add_up_to_their_gins_and_the_third_is_unblended(channels: int) -> None:
    method = GinIpa(channels=channels)
    image = torch.rand(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 1, *SHAPE, dtype=torch.long)
    copies, same = method.augment(image, label, 3, [np.random.default_rng(sample) for sample in range(2)])
    assert torch.equal(same, label)
    for sample in range(2):
        generator = np.random.default_rng(sample)
        g1, g2, g3 = (random_intensities(image[sample].expand(channels, -1, -1, -1), generator) for _ in range(3))
        b = torch.from_numpy(blend_map(SHAPE, generator))
        c1, c2, c3 = copies[sample].chunk(3)
        assert torch.allclose(c1 + c2, g1 + g2, atol=1e-5)
        assert torch.allclose(c1, g2 + b * (g1 - g2), atol=1e-5)
        assert torch.equal(c3, g3)
        assert not torch.allclose(g1, g2, atol=0.05)


def test_samples_have_blend_maps_of_their_own() -> None:
    image, label = torch.rand(1, 1, *SHAPE).expand(2, -1, -1, -1, -1), torch.zeros(2, 1, *SHAPE, dtype=torch.long)
    copies, _ = GinIpa().augment(image, label, 3, [np.random.default_rng(sample) for sample in range(2)])
    assert not torch.allclose(copies[0], copies[1], atol=0.05)


def test_the_network_is_called_once_on_all_copies() -> None:
    network, batch = Recorder(), batch_for(GinIpa())
    GinIpa().loss(network, batch, lambda logits, label: logits.sum())
    (seen,) = network.seen
    assert seen.shape == (6, 3, *SHAPE)
    for sample in range(2):
        for copy in range(3):
            assert torch.equal(seen[2 * copy + sample], batch.image_bcxyz[sample, 3 * copy : 3 * copy + 3])


@pytest.mark.parametrize(("sup_copies", "count"), [("first", 1), ("all", 3)])
def test_the_criterion_sees_the_copies_that_it_should_each_with_its_own_label(sup_copies: str, count: int) -> None:
    method, seen = GinIpa(sup_copies=sup_copies), []
    batch = batch_for(method)

    def criterion(logits: Tensor, label: Tensor) -> Tensor:
        seen.append((logits, label))
        return logits.sum()

    method.loss(Recorder(), batch, criterion)
    ((logits, label),) = seen
    assert len(logits) == len(label) == 2 * count
    for copy in range(count):
        assert torch.equal(label[2 * copy : 2 * copy + 2], batch.label_bcxyz)
        assert torch.equal(logits[2 * copy : 2 * copy + 2], batch.image_bcxyz[:, 3 * copy : 3 * copy + 3])


@pytest.mark.parametrize("weight", [0, 5, 20.0])
def test_the_loss_is_the_criterion_plus_weight_times_the_consistency(weight: float) -> None:
    batch = batch_for(GinIpa())
    copies = torch.stack(batch.image_bcxyz.chunk(3, dim=1))
    expected = dice_ce()(copies[0], batch.label_bcxyz) + weight * consistency(copies)
    assert torch.allclose(GinIpa(weight=weight).loss(Recorder(), batch, dice_ce()), expected)


def test_copies_that_agree_are_consistent() -> None:
    logits = logits_of_copies(scale=5)[:1].expand(3, -1, -1, -1, -1, -1)
    assert abs(consistency(logits)) < 1e-7


@pytest.mark.parametrize("scale", [0.01, 1, 10, 100])
@pytest.mark.parametrize("seed", range(5))
def test_disagreement_costs_and_equals_the_element_mean_of_the_divergence(seed: int, scale: float) -> None:
    logits = logits_of_copies(seed, scale)
    log_p = logits.double().log_softmax(dim=2)
    mean = log_p.exp().mean(dim=0)
    expected = torch.stack([nnf.kl_div(one, mean, reduction="none") for one in log_p]).mean()
    assert consistency(logits) > 0
    assert torch.allclose(consistency(logits).double(), expected, rtol=1e-3, atol=1e-9)


def test_the_consistency_has_no_upper_bound_and_stays_finite() -> None:
    losses = []
    for scale in (10.0, 1e2, 1e4):
        logits = torch.zeros(3, 1, 2, 1, 1, 1)
        logits[0, :, 0], logits[1:, :, 1] = scale, scale
        logits.requires_grad_()
        loss = consistency(logits)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses)
    assert np.isfinite(losses[-1])
    assert losses[-1] > 100


def test_a_detached_mean_changes_the_gradient_and_not_the_value() -> None:
    logits = logits_of_copies().requires_grad_()
    log_p = logits.log_softmax(dim=2)
    mean = log_p.exp().mean(dim=0).detach()
    values = [consistency(logits), consistency(logits, detach_mean=True), (mean * (mean.log() - log_p)).mean()]
    attached, detached, constant = (torch.autograd.grad(value, logits)[0] for value in values)
    assert torch.allclose(values[0], values[1])
    assert torch.allclose(detached, constant, atol=1e-8)
    assert not torch.allclose(attached, detached, atol=1e-5)


def test_the_consistency_of_half_precision_logits_is_computed_in_float32() -> None:
    half = logits_of_copies().to(torch.bfloat16)
    expected = consistency(half.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = consistency(half)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_autocast_does_not_reach_the_copies() -> None:
    expected = batch_for(GinIpa())
    with torch.autocast("cpu", torch.bfloat16):
        batch = batch_for(GinIpa())
    assert torch.equal(batch.image_bcxyz, expected.image_bcxyz)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_it_trains_the_same_network_under_data_parallelism() -> None:
    method, gradients = GinIpa(), []
    batch = batch_for(method)
    for wrap in (lambda network: network, DistributedDataParallel):
        torch.manual_seed(0)
        network = build_network(Network(base=2, downs=1), method, 0, 3).train()
        wrapped = wrap(network)
        for _ in range(2):  # a second pass is refused where the first one's gradients were not all reduced
            network.zero_grad()
            method.loss(wrapped, batch, dice_ce()).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, parallel in zip(*gradients, strict=True):
        assert torch.allclose(plain, parallel, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_at_inference_the_image_is_repeated_and_nothing_else(channels: int) -> None:
    image, method = torch.rand(1, 1, *SHAPE), GinIpa(channels=channels)
    assert method.in_channels(12) == channels
    assert torch.equal(method.inputs(image, None), image.repeat(1, channels, 1, 1, 1))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("weight", value) for value in (-1, float("nan"), float("inf"), "ten", True)],
        *[("sup_copies", value) for value in ("second", 1, None)],
        *[("detach_mean", value) for value in (1, "no")],
        *[("channels", value) for value in (2, 1.0, True)],
    ],
)
def test_a_value_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} = {value!r} must be"):
        build(Component.of("gin_ipa", **{option: value}))
