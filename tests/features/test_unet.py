"""The UNet family against the paper's parameter counts and the reference network's outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dropgen.features.unet import UNet

CLASSES = (2, 4, 9, 14, 16)
PARAMETERS = {  # by input channels, one for each of CLASSES
    1: (36_858_780, 36_859_860, 36_862_560, 36_865_260, 36_866_340),
    3: (36_859_860, 36_860_940, 36_863_640, 36_866_340, 36_867_420),
    13: (36_865_260, 36_866_340, 36_869_040, 36_871_740, 36_872_820),
    16: (36_866_880, 36_867_960, 36_870_660, 36_873_360, 36_874_440),
    17: (36_867_420, 36_868_500, 36_871_200, 36_873_900, 36_874_980),
    33: (36_876_060, 36_877_140, 36_879_840, 36_882_540, 36_883_620),
}


@pytest.mark.parametrize("inputs", PARAMETERS)
def test_predictor_has_the_published_parameter_counts_and_first_layer(inputs: int) -> None:
    for classes, parameters in zip(CLASSES, PARAMETERS[inputs], strict=True):
        with torch.device("meta"):
            network = UNet(inputs, classes, base=20, downs=5)
        assert sum(p.numel() for p in network.parameters()) == parameters
        assert next(network.parameters()).shape == (20, inputs, 3, 3, 3)
        assert sum(isinstance(module, torch.nn.Conv3d) for module in network.model) == 24


def test_three_encoder_convolutions_give_the_tables_51_6_million() -> None:
    with torch.device("meta"):
        network = UNet(1, 2, base=20, downs=5, convs=3)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 51.6


def test_anatomix_layout_has_66_modules_and_115_entries() -> None:
    network = UNet(1, 16, base=16, downs=4)
    assert len(network.model) == 66
    assert len(network.state_dict()) == 115
    assert sum(p.numel() for p in network.parameters()) == 5_899_344


def test_state_dict_keys_equal_the_reference(golden: Path) -> None:
    reference = np.load(golden / "anatomix_formula_weights.npz")
    assert list(UNet(1, 16, base=16, downs=4).state_dict()) == [str(key) for key in reference["state_dict_keys"]]


def test_output_keeps_the_spatial_size() -> None:
    assert UNet(3, 5, base=2, downs=2)(torch.rand(2, 3, 8, 12, 16)).shape == (2, 5, 8, 12, 16)


def test_zeroed_stable_slices_make_the_output_independent_of_features() -> None:
    network = UNet(4, 2, base=2, downs=1).eval()
    with torch.no_grad():
        network.model[0].weight[:, 1:] = 0  # type: ignore[index, operator]
    image = torch.rand(1, 1, 8, 8, 8)
    outputs = [network(torch.cat((image, torch.randn(1, 3, 8, 8, 8)), dim=1)) for _ in range(2)]
    assert torch.equal(outputs[0], outputs[1])


def test_tap_equals_the_hooked_module_output() -> None:
    network = UNet(1, 2, base=2, downs=2).eval()
    seen: list[torch.Tensor] = []
    network.model[20].register_forward_hook(lambda module, inputs, output: seen.append(output))
    image = torch.rand(1, 1, 8, 8, 8)
    network(image)
    assert torch.equal(network(image, tap=20), seen[0])


def test_call_applies_every_module_in_order() -> None:
    network = UNet(1, 2, base=2, downs=2).eval()
    applied: list[torch.nn.Module] = []

    def call(index: int, module: torch.nn.Module, x_bcxyz: torch.Tensor) -> torch.Tensor:
        assert module is network.model[index]
        applied.append(module)
        result: torch.Tensor = module(x_bcxyz)
        return result

    image = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(network(image, call=call), network(image))
    assert applied == list(network.model)
