"""One suite over every registered extractor; one whose weights are not here runs with formula weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.extractors import EXTRACTORS, Extractor, build, extract, instance_norm
from dropgen.features.symmetry import SYMMETRIES
from dropgen.features.unet import UNet
from tests_support.formulas import set_formula_weights


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    network = UNet(1, 16, base=16, downs=4)
    set_formula_weights(network)
    torch.save(network.state_dict(), folder / "anatomix.pth")
    return folder


@pytest.fixture(params=sorted(EXTRACTORS))
def extractor(request: pytest.FixtureRequest, weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Extractor:
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(weights_folder))
    return build(Component.of(request.param))


def image_for(extractor: Extractor, samples: int = 1) -> torch.Tensor:
    size = max(extractor.min_size, 8)
    return torch.rand(samples, 1, size, size, size, generator=torch.Generator().manual_seed(0))


def test_features_are_raw_float32_without_gradient(extractor: Extractor) -> None:
    image = image_for(extractor)
    features = extractor(image.requires_grad_())
    assert features.shape == (1, extractor.channels, *image.shape[2:])
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_the_norm_gives_zero_mean_and_unit_variance(extractor: Extractor) -> None:
    normed = instance_norm(extractor(image_for(extractor)))
    assert normed.mean(dim=(2, 3, 4)).abs().max() < 1e-4
    assert (normed.std(dim=(2, 3, 4), unbiased=False) - 1).abs().max() < 2e-2


def test_a_batch_equals_its_single_samples(extractor: Extractor) -> None:
    image = image_for(extractor, samples=2)
    together = extractor(image)
    apart = torch.cat([extractor(sample[None]) for sample in image])
    assert torch.allclose(together, apart, atol=1e-5)


def test_a_constant_image_gives_finite_features(extractor: Extractor) -> None:
    assert torch.isfinite(instance_norm(extractor(torch.zeros_like(image_for(extractor))))).all()


@pytest.mark.parametrize("shape", [(33, 40, 37), (5, 34, 6)])
def test_extract_keeps_an_odd_shape(extractor: Extractor, shape: tuple[int, int, int]) -> None:
    unit = np.random.default_rng(0).random(shape, dtype=np.float32)
    assert extract(extractor, unit)[0].shape == (extractor.channels, *shape)


def test_a_declared_symmetry_is_exact(extractor: Extractor) -> None:
    image = image_for(extractor)
    stats = extractor.fit(image)
    for symmetry in SYMMETRIES[::7]:
        permutation = extractor.channel_permutation(symmetry)
        if permutation is not None:
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
    assert difference.max() > 0


def test_the_fingerprint_is_the_same_for_the_same_extractor(extractor: Extractor) -> None:
    assert build(Component.of(extractor.name)).fingerprint == extractor.fingerprint
