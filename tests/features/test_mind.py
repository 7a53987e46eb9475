"""MIND-SSC: the properties that make it stable across domains, each checked in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.errors import ConfigError
from dropgen.features.extractors import extract, instance_norm
from dropgen.features.extractors.mind import NEIGHBOURS, PAIRS, Mind
from dropgen.features.symmetry import SYMMETRIES, AxisSymmetry


def image(seed: int = 0, size: tuple[int, int, int] = (9, 8, 7), batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64)


def test_pairs_are_the_twelve_at_squared_distance_two() -> None:
    distances = [sum((a - b) ** 2 for a, b in zip(NEIGHBOURS[i], NEIGHBOURS[j], strict=True)) for i, j in PAIRS]
    assert distances == [2] * 12
    assert len({frozenset(pair) for pair in PAIRS}) == 12


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), scale=st.floats(0.2, 5), shift=st.floats(-1, 1), inverted=st.booleans())
def test_invariant_to_affine_intensity_changes_and_inversion(
    seed: int, scale: float, shift: float, inverted: bool
) -> None:
    x = image(seed)
    changed = (-scale if inverted else scale) * x + shift
    assert (Mind()(changed) - Mind()(x)).abs().max() < 1e-9


@pytest.mark.parametrize(("scale", "shift"), [(-1, 1), (2.5, 0.3), (-3, 1)])
def test_inversion_and_rescaling_cost_no_more_than_rounding(scale: float, shift: float) -> None:
    for seed in range(10):
        assert (Mind()(scale * image(seed) + shift) - Mind()(image(seed))).abs().max() < 1e-14


def test_largest_channel_is_exactly_one_and_all_are_positive() -> None:
    features = Mind()(image())
    assert torch.equal(features.amax(dim=1), torch.ones(1, 9, 8, 7, dtype=torch.float64))
    assert features.min() > 0


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
@pytest.mark.parametrize("dilations", [(1,), (1, 2)])
def test_a_symmetry_only_permutes_channels(symmetry: AxisSymmetry, dilations: tuple[int, ...]) -> None:
    mind = Mind(dilations)
    x = image(size=(7, 6, 8))
    stats = mind.fit(x)
    replayed = symmetry(mind(x, stats))[:, list(mind.channel_permutation(symmetry))]
    assert torch.allclose(mind(symmetry(x), stats), replayed, rtol=0, atol=1e-12)


def test_flipping_the_first_axis_is_the_published_permutation() -> None:
    flip = AxisSymmetry((0, 1, 2), (True, False, False))
    assert Mind().channel_permutation(flip) == (5, 6, 2, 7, 4, 0, 1, 3, 11, 9, 10, 8)


def test_constant_image_gives_ones_and_zeros_after_the_norm() -> None:
    features = Mind()(torch.full((1, 1, 4, 5, 6), 0.3))
    assert torch.equal(features, torch.ones_like(features))
    assert torch.equal(instance_norm(features), torch.zeros_like(features))


def test_a_batch_equals_its_single_samples() -> None:
    x = image(batch=3)
    together = Mind()(x)
    apart = torch.cat([Mind()(sample[None]) for sample in x])
    assert torch.allclose(together, apart, atol=1e-12)


def test_gamma_keeps_channels_correlated() -> None:
    x = image(size=(16, 16, 16))
    pairs = zip(Mind()(x)[0], Mind()(x.square())[0], strict=True)
    assert all(np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.8 for a, b in pairs)


def test_with_volume_statistics_a_crop_equals_the_whole_beyond_its_locality() -> None:
    mind, x = Mind(), image(size=(20, 20, 20))
    stats = mind.fit(x)
    halo = mind.locality
    crop = mind(x[:, :, 2:18, 2:18, 2:18], stats)
    inner = slice(halo, 16 - halo)
    outer = slice(2 + halo, 18 - halo)
    assert torch.allclose(crop[:, :, inner, inner, inner], mind(x, stats)[:, :, outer, outer, outer], atol=1e-12)


def test_extract_equals_the_call_and_returns_one_mean_per_dilation() -> None:
    mind, x = Mind((1, 2)), image().float()
    features, stats = extract(mind, x[0].numpy())
    assert stats is not None
    assert stats.shape == (2,)
    assert np.array_equal(features, mind(x, mind.fit(x))[0].numpy())


def test_half_precision_autocast_does_not_touch_it() -> None:
    x = image().float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = Mind()(x)
    assert torch.equal(inside, Mind()(x))


@pytest.mark.parametrize("dilations", [(), (0,), (1.5,), [True], [1, 1], 2, {1: 2}, "12"])
def test_bad_dilations_are_refused_with_the_value(dilations: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Mind(dilations)  # type: ignore[arg-type]
    assert f"mind: dilations = {dilations!r} must be" in str(caught.value)


def test_an_image_of_two_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="MIND takes one channel, got 2"):
        Mind()(torch.rand(1, 2, 4, 4, 4))
