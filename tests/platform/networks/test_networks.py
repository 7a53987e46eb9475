"""What each predictor is built from, and what it refuses before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dropgen.config import Component, Experiment, Network, validate
from dropgen.errors import ConfigError
from dropgen.features.unet import UNet
from dropgen.platform.methods import METHODS, build
from dropgen.platform.networks import build_network, build_predictor, require_crop_fits
from dropgen.platform.train import train_trial, trials_of
from tests_support.tiny import tiny_bench

NAMES = ("unet", "segresnet", "swin_unetr")
CROP = (64, 64, 64)


def test_without_a_name_it_is_the_papers_unet() -> None:
    predictor = build_predictor(Network(), 17, 4)
    assert isinstance(predictor, UNet)
    assert sum(parameter.numel() for parameter in predictor.parameters()) == 36_868_500


def test_an_unknown_predictor_is_answered_with_the_known_ones() -> None:
    values = {"name": "x", "study": "study.yaml", "network": {"name": "vnet"}}
    with pytest.raises(ConfigError, match=r"network.name = 'vnet'.*'unet', 'segresnet' or 'swin_unetr'"):
        validate(Experiment, values, "experiment.yaml")


def test_segresnet_has_the_published_blocks_at_three_downsamplings() -> None:
    predictor = build_predictor(Network(name="segresnet", base=8, downs=3), 1, 3)
    assert [len(level) - 1 for level in predictor.down_layers] == [1, 2, 2, 4]  # type: ignore[arg-type, union-attr]
    assert [len(level) for level in predictor.up_layers] == [1, 1, 1]  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("downs", [1, 2, 4])
def test_segresnet_keeps_its_smallest_legal_crop(downs: int) -> None:
    network = Network(name="segresnet", base=8, downs=downs)
    size = 2**downs
    require_crop_fits(network, (size,) * 3)
    assert build_predictor(network, 1, 2)(torch.rand(2, 1, size, size, size)).shape == (2, 2, size, size, size)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Network(name="segresnet"), r"network.base = 20 does not fit segresnet.*divisible by the 8.*set it to 16"),
        (Network(name="segresnet", base=2), r"network.base = 2 .*set it to 8"),
        (Network(name="segresnet", base=8, convs=3), r"network.convs = 3 has no meaning for segresnet"),
    ],
)
def test_an_option_that_segresnet_cannot_be_built_with_is_refused(network: Network, sentence: str) -> None:
    for use in (lambda: require_crop_fits(network, CROP), lambda: build_predictor(network, 1, 2)):
        with pytest.raises(ConfigError, match=sentence):
            use()


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Network(name="swin_unetr"), r"network.base = 20 does not fit swin_unetr.*divisible by 12; set it to 24"),
        (Network(name="swin_unetr", base=24, downs=4), r"network.downs = 4 does not fit swin_unetr, which has 5"),
        (Network(name="swin_unetr", base=24, convs=1), r"network.convs = 1 has no meaning for swin_unetr"),
    ],
)
def test_an_option_that_swin_unetr_cannot_be_built_with_is_refused(network: Network, sentence: str) -> None:
    for use in (lambda: require_crop_fits(network, CROP), lambda: build_predictor(network, 1, 2)):
        with pytest.raises(ConfigError, match=sentence):
            use()


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_unet])
@pytest.mark.parametrize("predictor", ["segresnet", "swin_unetr"])
def test_a_method_that_reaches_into_the_unet_refuses_another_predictor(name: str, predictor: str) -> None:
    with pytest.raises(ConfigError, match=rf"method '{name}'.*network.name = '{predictor}'.*set network.name to unet"):
        build_network(Network(name=predictor, base=24), build(Component.of(name)), 12, 3)


def test_an_experiment_with_a_method_and_a_predictor_that_do_not_fit_is_refused_when_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method 'dropgen_any_p'.*'segresnet'"):
        tiny_bench(tmp_path, methods=[{"name": "dropgen_any_p"}], network={"name": "segresnet", "base": 8})


def test_a_method_with_a_network_of_its_own_asks_for_its_own_crop(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crop axis x = 16 voxels does not fit anatomix's 4 downsamplings"):
        tiny_bench(tmp_path, methods=[{"name": "finetune_scratch"}])


def test_segresnet_trains_validates_and_is_kept(tmp_path: Path) -> None:
    network = {"name": "segresnet", "base": 8, "downs": 1}
    bench = tiny_bench(tmp_path, network=network, training={"steps": 1, "validate_every": 1, "loss": "tversky_focal"})
    (trial,) = trials_of(bench.experiment)
    result = train_trial(bench, trial)
    assert result["best_step"] == 1
    assert (Path(result["bundle"]) / "weights.safetensors").exists()


def test_channels_last_is_the_layout_of_the_unet() -> None:
    first = next(
        module for module in build_predictor(Network(base=2, downs=1), 3, 2).modules() if isinstance(module, nn.Conv3d)
    )
    assert first.weight.is_contiguous(memory_format=torch.channels_last_3d)
