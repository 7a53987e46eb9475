"""One suite over every registered extractor; one whose weights are not here runs with weights that nobody trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.features.extractors import EXTRACTORS, Extractor, build, extract, instance_norm, options
from dropgen.features.extractors.tiles import tiles
from dropgen.features.symmetry import SYMMETRIES
from tests_support.extractors import state_of


def image_for(extractor: Extractor, samples: int = 1) -> Tensor:
    size = max(extractor.min_size, 8)
    return torch.rand(samples, 1, size, size, size, generator=torch.Generator().manual_seed(0))


def test_features_are_raw_float32_without_gradient(extractor: Extractor) -> None:
    image = image_for(extractor)
    features = extractor(image.requires_grad_())
    assert features.shape == (1, extractor.channels, *image.shape[2:])
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_half_precision_autocast_does_not_touch_them(extractor: Extractor) -> None:
    image = image_for(extractor)
    with torch.autocast("cpu", torch.bfloat16):
        inside = extractor(image)
    assert torch.equal(inside, extractor(image))


def test_the_norm_gives_zero_mean_and_unit_variance(extractor: Extractor) -> None:
    normed = instance_norm(extractor(image_for(extractor)))
    assert normed.mean(dim=(2, 3, 4)).abs().max() < 1e-4
    assert (normed.std(dim=(2, 3, 4), unbiased=False) - 1).abs().max() < 2e-2


def test_the_norm_makes_a_constant_channel_zero() -> None:
    features = torch.rand(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    features[:, 1] = 0.25
    normed = instance_norm(features)
    assert torch.equal(normed[:, 1], torch.zeros(2, 4, 4, 4))
    assert (normed[:, 0].std() - 1).abs() < 0.01


def test_a_batch_equals_its_single_samples(extractor: Extractor) -> None:
    image = image_for(extractor, samples=2)
    together = extractor(image)
    apart = torch.cat([extractor(sample[None]) for sample in image])
    assert torch.allclose(together, apart, atol=1e-4)  # rounding: a deep instance norm has eight voxels


def test_a_constant_image_gives_finite_features(extractor: Extractor) -> None:
    for value in (0.0, 0.3):
        constant = torch.full_like(image_for(extractor), value)
        assert torch.isfinite(instance_norm(extractor(constant))).all()


def test_nothing_in_it_changes_or_trains_whatever_is_asked_of_it(extractor: Extractor) -> None:
    before, image = state_of(extractor), image_for(extractor)
    networks = nn.ModuleList(value for value in vars(extractor).values() if isinstance(value, nn.Module))
    first = extractor(image)
    for _ in range(9):
        networks.train()
        last = extractor(image)
    assert torch.equal(first, last)
    after = state_of(extractor)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after.keys() == before.keys()
    assert not any(module.training for network in networks for module in network.modules())
    assert not any(parameter.requires_grad for parameter in networks.parameters())


@pytest.mark.parametrize("shape", [(33, 40, 37), (5, 34, 6)])
def test_extract_keeps_an_odd_shape(extractor: Extractor, shape: tuple[int, int, int]) -> None:
    unit = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert extract(extractor, unit[None])[0].shape == (extractor.channels, *shape)


def test_a_declared_symmetry_is_exact(extractor: Extractor) -> None:
    if extractor.channel_permutation(SYMMETRIES[1]) is None:
        pytest.skip("this extractor declares none")
    image = image_for(extractor)
    stats = extractor.fit(image)
    for symmetry in SYMMETRIES:
        permutation = extractor.channel_permutation(symmetry)
        assert permutation is not None
        replayed = symmetry(extractor(image, stats))[:, list(permutation)]
        assert torch.allclose(extractor(symmetry(image), stats), replayed, atol=1e-4)


def test_a_declared_locality_holds(extractor: Extractor) -> None:
    if extractor.locality == "global":
        pytest.skip("this extractor declares none")
    size = -(-(2 * extractor.locality + 16) // 16) * 16
    if size > 64:
        pytest.skip(f"{size} voxels per axis are too many for a quick test")
    image = torch.rand(1, 1, size, 16, 16, generator=torch.Generator().manual_seed(0))
    stats = extractor.fit(image)
    changed = image.clone()
    changed[:, :, 0] += 1
    difference = (extractor(changed, stats) - extractor(image, stats)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[extractor.locality + 1 :].max() == 0
    assert difference[extractor.locality] > 0


def test_with_a_halo_of_its_locality_tiles_equal_one_pass(extractor: Extractor) -> None:
    if extractor.halo == "global":
        assert extractor.locality == "global"
        assert len(list(tiles(extractor, (70, 70, 70), 1))) == 1
        return
    if extractor.locality == "global" or extractor.halo < extractor.locality:
        pytest.skip("this extractor's halo is measured, not exact")
    unit = np.random.default_rng(0).random((40, 9, 11), dtype=np.float32)
    budget = unit.size // 2 * extractor.tile_bytes * extractor.channels
    assert len(list(tiles(extractor, unit.shape, budget))) > 1
    whole, tiled = extract(extractor, unit[None])[0], extract(extractor, unit[None], working_bytes=budget)[0]
    assert np.abs(tiled - whole).max() < 1e-5


def test_the_fingerprint_is_of_the_extractor_and_not_of_the_object(component: Component) -> None:
    assert build(component).fingerprint == build(component).fingerprint


def test_fingerprints_tell_names_and_options_apart() -> None:
    weightless = [Component.of("mind"), Component.of("identity"), Component.of("random")]
    weightless += [Component.of("mind", dilations=(1, 2)), Component.of("random", seed=1)]
    weightless += [Component.of("random", channels=3)]
    assert len({build(component).fingerprint for component in weightless}) == len(weightless)


def test_the_described_defaults_are_the_defaults(component: Component) -> None:
    plain = Component.of(component.name)
    spelled = Component.of(component.name, **options(component.name))
    assert build(spelled).fingerprint == build(plain).fingerprint


def test_it_says_what_it_is_and_where_it_comes_from(extractor: Extractor) -> None:
    assert EXTRACTORS[extractor.name] is type(extractor)
    assert type(extractor).__doc__
    assert extractor.source
