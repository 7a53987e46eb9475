"""nnInteractive as an extractor: what the network is shown, what is taken from it, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors import build, nninteractive
from dropgen.features.extractors.nninteractive import CHECKPOINT, FOLDER, NnInteractive, build_network, read_plans
from tests_support.nninteractive import require_package, write_model, write_plans


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that DROPGEN_WEIGHTS names."""
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(tmp_path))
    return tmp_path


@pytest.fixture
def model(weights: Path) -> Path:
    require_package()
    return write_model(weights)


def image(size: int = 8, batch: int = 1) -> Tensor:
    return 0.1 + 0.8 * torch.rand(batch, 1, size, size, size, generator=torch.Generator().manual_seed(0))


def test_channels_and_sizes_come_from_the_plans(model: Path) -> None:
    extractor = NnInteractive()
    assert (extractor.channels, extractor.multiple, extractor.min_size) == (4, 2, 4)
    assert extractor(image()).shape == (1, 4, 8, 8, 8)


def test_the_multiple_is_the_product_of_the_strides(weights: Path) -> None:
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert read_plans(write_plans(weights, strides=strides)).multiple == 8


def test_features_are_what_the_last_segmentation_layer_reads(model: Path) -> None:
    reference = build_network(read_plans(model))
    reference.load_state_dict(torch.load(model / CHECKPOINT)["network_weights"])
    read: list[Tensor] = []
    reference.decoder.seg_layers[-1].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    x = image()
    with torch.no_grad():
        reference.eval()(torch.cat(((x - x.mean()) / x.std(correction=0), torch.zeros(1, 7, 8, 8, 8)), dim=1))
    assert torch.allclose(NnInteractive()(x), read[0], atol=1e-5)


def test_the_network_sees_the_image_and_seven_empty_prompts(model: Path) -> None:
    extractor = NnInteractive("none")
    seen: list[Tensor] = []
    extractor.module.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = image(batch=2)
    extractor(x)
    assert torch.equal(seen[0][:, :1], x)
    assert torch.equal(seen[0][:, 1:], torch.zeros(2, 7, 8, 8, 8))


@pytest.mark.parametrize(("scale", "shift"), [(3.0, 0.0), (0.2, 0.0), (1.0, 2.0), (5.0, -0.05)])
def test_a_rescaled_image_gives_the_same_features(model: Path, scale: float, shift: float) -> None:
    extractor = NnInteractive()
    assert torch.allclose(extractor(scale * image() + shift), extractor(image()), atol=1e-4)
    raw = NnInteractive("none")
    assert not torch.allclose(raw(scale * image() + shift), raw(image()), atol=1e-4)


def test_statistics_leave_out_the_empty_border_alone(model: Path) -> None:
    inner, padded = image(4)[0], torch.zeros(1, 8, 8, 8)
    inner[0, 1, 1, 1] = 0  # inside the bounding box, so it counts
    padded[:, 2:6, 2:6, 2:6] = inner
    scored = nninteractive.z_score(padded)[:, 2:6, 2:6, 2:6]
    assert torch.allclose(scored, nninteractive.z_score(inner), atol=1e-6)
    assert scored.mean().abs() < 1e-6
    assert (scored.std(correction=0) - 1).abs() < 1e-6


def test_the_fingerprint_covers_weights_plans_and_normalisation(model: Path) -> None:
    seen = {NnInteractive().fingerprint, NnInteractive("none").fingerprint}
    write_plans(model.parent, nonlin_kwargs={"inplace": True, "negative_slope": 0.2})
    seen.add(NnInteractive().fingerprint)
    state = torch.load(model / CHECKPOINT)
    state["network_weights"]["decoder.seg_layers.0.bias"] += 1
    torch.save(state, model / CHECKPOINT)
    seen.add(NnInteractive().fingerprint)
    assert len(seen) == 4


def test_the_licence_is_said_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nninteractive._warn_of_licence.cache_clear()
    NnInteractive()
    NnInteractive()
    assert capsys.readouterr().err.count("CC BY-NC-SA 4.0") == 1


def test_a_missing_package_is_answered_with_the_command(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (write_plans(weights) / CHECKPOINT).touch()
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures", None)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[nninteractive\]'"):
        build(Component.of("nninteractive"))


def test_missing_files_are_named_with_their_place(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=rf"{FOLDER}' lacks plans.json, dataset.json, {CHECKPOINT}.*DROPGEN_WEIGHTS"):
        NnInteractive()
    write_plans(weights)
    with pytest.raises(WeightsError, match=rf"lacks {CHECKPOINT}:"):
        NnInteractive()
    monkeypatch.delenv("DROPGEN_WEIGHTS")
    with pytest.raises(WeightsError, match="DROPGEN_WEIGHTS is not set"):
        NnInteractive()


def test_another_model_is_refused(weights: Path) -> None:
    for folder in (write_plans(weights, dataset="Dataset999_Other"), write_plans(weights, channels=2)):
        with pytest.raises(WeightsError, match="Dataset225_nnInteractiveV2"):
            read_plans(folder)
    (folder / "plans.json").write_text("{")
    with pytest.raises(WeightsError, match="copy them again"):
        read_plans(folder)


def test_plans_cannot_name_code_outside_torch(weights: Path) -> None:
    require_package()
    plans = read_plans(write_plans(weights, nonlin="subprocess.Popen"))
    with pytest.raises(WeightsError, match=r"subprocess\.Popen, which is none of torch\.nn"):
        build_network(plans)


def test_a_checkpoint_of_other_widths_is_refused(model: Path) -> None:
    write_plans(model.parent, features_per_stage=[8, 8])
    with pytest.raises(WeightsError, match="not the checkpoint that its plans describe"):
        NnInteractive()


def test_arguments_of_another_network_are_refused(weights: Path) -> None:
    require_package()
    with pytest.raises(WeightsError, match="do not fit"):
        build_network(read_plans(write_plans(weights, embed_dim=3)))


def test_a_path_in_the_configuration_is_no_option(model: Path) -> None:
    # A bundle carries its extractor's options, and the checkpoint is a pickle.
    with pytest.raises(ConfigError, match="unknown option 'weights'"):
        build(Component.of("nninteractive", weights=str(model)))


def test_another_normalisation_is_refused_with_the_value(weights: Path) -> None:
    with pytest.raises(ConfigError, match="normalisation = 'minmax'"):
        NnInteractive("minmax")
