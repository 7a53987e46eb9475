"""anatomix against the reference network with formula weights, and its eval lock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors import build, instance_norm
from dropgen.features.extractors.anatomix import Anatomix
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


def test_unknown_options_and_names_suggest_the_closest(weights: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        build(Component.of("anatomix", weight=str(weights)))
    with pytest.raises(ConfigError, match="did you mean 'anatomix'"):
        build(Component.of("anatomx"))
    with pytest.raises(ConfigError, match="tap = 12"):
        Anatomix(str(weights), tap=12)
