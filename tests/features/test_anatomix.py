"""anatomix against the reference network with formula weights, and its eval lock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors import anatomix, build, instance_norm
from dropgen.features.extractors.anatomix import ANATOMIX, DEV, VARIANTS, VIT, Anatomix, over_channels
from dropgen.features.unet import UNet
from tests_support.formulas import formula_volume, set_formula_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = UNet(1, 16, base=16, downs=4)
    set_formula_weights(network)
    path = tmp_path_factory.mktemp("weights") / "anatomix.pth"
    torch.save({f"_orig_mod.{key}": value for key, value in network.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("tap", [59, 65])
def test_features_equal_the_reference(golden: Path, weights: Path, tap: int) -> None:
    expected = np.load(golden / "anatomix_formula_weights.npz")[f"tap{tap}"]
    features = Anatomix(str(weights), tap)(formula_volume(1, 32, 0))[0, :, ::2, ::2, ::2].numpy()
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()


def test_normed_features_equal_the_reference(golden: Path, weights: Path) -> None:
    expected = np.load(golden / "anatomix_formula_weights.npz")["tap59_normed"]
    features = instance_norm(Anatomix(str(weights))(formula_volume(1, 32, 0)))[0, :, ::2, ::2, ::2].numpy()
    assert np.abs(features - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("tap", "kind"), [(59, nn.Upsample), (65, nn.ReLU)])
def test_features_are_the_raw_output_of_the_tapped_convolution(weights: Path, tap: int, kind: type[nn.Module]) -> None:
    extractor, seen = Anatomix(str(weights), tap), []
    modules = extractor.module.network.model
    assert isinstance(modules[tap - 1], kind)
    assert isinstance(modules[tap], nn.Conv3d)
    modules[tap].register_forward_hook(lambda module, inputs, output: seen.append(output))
    later = [module.register_forward_hook(lambda *_: pytest.fail("went on")) for module in modules[tap + 1 :]]
    features = extractor(torch.rand(2, 1, 32, 32, 48, generator=torch.Generator().manual_seed(0)))
    assert len(later) == 65 - tap
    assert features.shape == (2, 16, 32, 32, 48)
    assert torch.equal(features, seen[0])
    assert features.min() < 0  # before batch norm and ReLU: signed


def test_it_stays_frozen_in_eval_mode_under_a_training_parent(weights: Path) -> None:
    extractor = Anatomix(str(weights))
    parent = nn.ModuleList([extractor.module])
    before = {key: value.clone() for key, value in extractor.module.state_dict().items()}
    for _ in range(3):
        parent.train()
        features = extractor(torch.rand(2, 1, 32, 32, 32))
    assert not features.requires_grad
    assert not any(module.training for module in extractor.module.modules())
    assert not any(parameter.requires_grad for parameter in extractor.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in extractor.module.state_dict().items())


def test_missing_weights_say_where_to_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match=r"github.com/neel-dey/anatomix.*DROPGEN_WEIGHTS"):
        build(Component.of("anatomix"))
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=str(tmp_path)):
        build(Component.of("anatomix"))


def test_weights_are_found_in_the_weights_folder(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(weights.parent))
    assert build(Component.of("anatomix")).fingerprint == Anatomix(str(weights)).fingerprint


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save(UNet(1, 16, base=4, downs=2).state_dict(), path)
    with pytest.raises(WeightsError, match="not the anatomix checkpoint"):
        Anatomix(str(path))


def test_a_configured_hash_is_compared(weights: Path) -> None:
    with pytest.raises(WeightsError, match="sha256"):
        Anatomix(str(weights), sha256="00")


def test_fingerprint_changes_with_the_tap(weights: Path) -> None:
    assert Anatomix(str(weights), 59).fingerprint != Anatomix(str(weights), 65).fingerprint


def test_fingerprint_changes_with_one_weight(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    path = tmp_path / weights.name  # the file holds its own name, so another one would be another hash
    torch.save(state, path)
    assert Anatomix(str(path)).fingerprint == Anatomix(str(weights)).fingerprint
    next(value for value in state.values() if value.ndim == 5)[0, 0, 0, 0, 0] += 1e-3
    torch.save(state, path)
    assert Anatomix(str(path)).fingerprint != Anatomix(str(weights)).fingerprint


def test_unknown_options_and_names_suggest_the_closest(weights: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        build(Component.of("anatomix", weight=str(weights)))
    with pytest.raises(ConfigError, match="did you mean 'anatomix'"):
        build(Component.of("anatomx"))
    for tap in (12, 59.0):
        with pytest.raises(ConfigError, match=f"tap = {tap} must be"):
            Anatomix(str(weights), tap=tap)  # type: ignore[arg-type]


@pytest.fixture
def small_dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of "anatomix-dev" with 2 channels at the top instead of 32."""
    small = replace(DEV, base=2)
    monkeypatch.setitem(VARIANTS, DEV.name, small)
    torch.manual_seed(0)
    torch.save(small.network().state_dict(), tmp_path / DEV.file_name)
    return tmp_path / DEV.file_name


def test_the_dev_network_is_the_published_one() -> None:
    with torch.device("meta"):
        network = DEV.network()
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == 94
    kinds = {kind: [m for m in network.model if isinstance(m, kind)] for kind in (nn.AvgPool3d, nn.Upsample, nn.Conv3d)}
    norms = [module for module in network.model if isinstance(module, nn.InstanceNorm3d)]
    assert len(kinds[nn.AvgPool3d]) == len(kinds[nn.Upsample]) == 5
    assert {module.mode for module in kinds[nn.Upsample]} == {"trilinear"}
    assert all(module.bias is not None for module in kinds[nn.Conv3d])
    assert {(norm.eps, norm.affine, norm.track_running_stats) for norm in norms} == {(1e-2, False, False)}
    assert len(norms) == len(kinds[nn.Conv3d]) - 1


@pytest.mark.parametrize("variant", [ANATOMIX, DEV], ids=lambda variant: variant.name)
def test_the_taps_are_the_last_convolution_and_the_decoders_first_at_full_resolution(variant: anatomix.Variant) -> None:
    with torch.device("meta"):
        modules = list(variant.network().model)
    assert variant.final == len(modules) - 1
    assert isinstance(modules[variant.penultimate - 1], nn.Upsample)
    assert not any(isinstance(module, nn.Upsample) for module in modules[variant.penultimate :])
    assert modules[variant.penultimate].out_channels == modules[variant.final].out_channels == variant.channels


def test_the_dev_variant_loads_its_own_file_and_no_other(
    small_dev: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Anatomix(str(small_dev), variant=DEV.name)
    assert (named.channels, named.multiple, named.min_size, named.tap) == (32, 32, 64, 79)
    assert named.locality == named.halo == "global"
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(small_dev.parent))
    assert build(Component.of("anatomix", variant=DEV.name)).fingerprint == named.fingerprint
    with pytest.raises(WeightsError, match="not the anatomix-dev checkpoint"):
        Anatomix(str(weights), variant=DEV.name)
    with pytest.raises(WeightsError, match="not the anatomix checkpoint"):
        Anatomix(str(small_dev))


def test_features_of_the_dev_variant_have_unit_length_in_every_voxel(small_dev: Path) -> None:
    image = torch.rand(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    extractor, raw = Anatomix(str(small_dev), variant=DEV.name), Anatomix(str(small_dev), None, None, DEV.name, "none")
    features = extractor(image)
    assert torch.allclose(features.norm(dim=1), torch.ones(1, 64, 64, 64), atol=1e-5)
    assert torch.allclose(features, over_channels(raw(image), "l2"), atol=1e-6)
    assert extractor.fingerprint != raw.fingerprint


def test_standardized_channels_have_zero_mean_and_unit_variance_in_every_voxel() -> None:
    features = 3 + 2 * torch.randn(2, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    normed = over_channels(features, "standardized")
    assert normed.mean(dim=1).abs().max() < 1e-5
    assert (normed.var(dim=1, correction=0) - 1).abs().max() < 1e-3


def test_the_papers_fingerprint_does_not_know_of_variants(weights: Path) -> None:
    assert Anatomix(str(weights)).fingerprint.startswith("anatomix-v2-tap59-")


def test_what_is_no_variant_tap_or_norm_is_refused_with_the_value(weights: Path) -> None:
    with pytest.raises(ConfigError, match=r"128 x 128 x 128 voxels.*choose anatomix or anatomix-dev"):
        Anatomix(str(weights), variant=VIT)
    with pytest.raises(ConfigError, match="did you mean 'anatomix-dev'"):
        Anatomix(str(weights), variant="anatomix_dev")
    with pytest.raises(ConfigError, match=r"tap = 59 must be 73 \(penultimate\) or 79 \(final\)"):
        Anatomix(str(weights), tap=59, variant=DEV.name)
    with pytest.raises(ConfigError, match="voxel_norm = 'max'"):
        Anatomix(str(weights), voxel_norm="max")


def test_missing_weights_of_the_dev_variant_name_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"anatomix-dev\.pth"):
        build(Component.of("anatomix", variant=DEV.name))
