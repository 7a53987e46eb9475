"""Fine-tuning anatomix: what is loaded, what trains, and that a trained bundle needs no weights file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError, WeightsError
from dropgen.features.extractors.anatomix import architecture
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.finetune import HeadedExtractor
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.losses import dice_ce
from tests_support.formulas import set_formula_weights
from tests_support.segmenters import make_segmenter

CLASSES = 3
NAMES = ("finetune_extractor", "finetune_decoder", "finetune_scratch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = architecture()
    set_formula_weights(network)
    path = tmp_path_factory.mktemp("weights") / "anatomix.pth"
    torch.save({f"_orig_mod.{key}": value for key, value in network.state_dict().items()}, path)
    return path


def network_for(name: str, **options: object) -> HeadedExtractor:
    network = build(Component.of(name, **options)).network(nn.Identity, 0, CLASSES)
    assert isinstance(network, HeadedExtractor)
    return network


def train_one_step(name: str, network: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 32, 32, 32, generator=generator)
    label = torch.randint(CLASSES, image.shape, generator=generator)
    batch = Batch(image, label, None, torch.ones(1, 1, dtype=torch.bool))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    build(Component.of(name)).loss(network.train(), batch, dice_ce()).backward()
    optimizer.step()


def snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_anatomix_with_a_head_of_one_voxel(name: str) -> None:
    network = network_for(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_899_344 + 17 * CLASSES
    assert network.head.weight.shape == (CLASSES, 16, 1, 1, 1)
    assert network.head.bias is not None


def test_the_head_reads_the_last_module_of_anatomix() -> None:
    network, image = network_for("finetune_scratch").eval(), torch.rand(1, 1, 32, 32, 32)
    assert torch.equal(network(image), network.head(network.extractor(image, tap=65)))


@pytest.mark.parametrize("name", NAMES[:2])
def test_initialise_puts_every_entry_of_the_file_into_the_network(name: str, weights: Path) -> None:
    network, expected = network_for(name), architecture()
    set_formula_weights(expected)
    head = network.head.weight.clone()
    build(Component.of(name, weights=str(weights))).initialise(network)
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in network.extractor.state_dict().items())
    assert torch.equal(network.head.weight, head)


def test_scratch_stays_as_it_was_drawn_and_asks_for_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    network, method = network_for("finetune_scratch"), build(Component.of("finetune_scratch"))
    before = snapshot(network)
    method.initialise(network)
    assert method.pretrained() is None
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_decoder_mode_leaves_weights_and_statistics_of_the_encoder_bit_identical() -> None:
    network = network_for("finetune_decoder")
    before = snapshot(network)
    nn.ModuleList([network]).train()
    train_one_step("finetune_decoder", network)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    encoder = {f"extractor.model.{index}." for index in range(37)}
    assert not {key for key in changed if any(key.startswith(prefix) for prefix in encoder)}
    assert {"head.weight", "extractor.model.38.weight", "extractor.model.39.running_mean"} <= changed


def test_decoder_mode_gives_gradients_to_decoder_and_head_alone() -> None:
    network = network_for("finetune_decoder")
    train_one_step("finetune_decoder", network)
    reached = {key for key, parameter in network.named_parameters() if parameter.grad is not None}
    decoder = {key for key, _ in network.named_parameters() if key.startswith("head")}
    decoder |= {
        f"extractor.model.{key}" for key, _ in network.extractor.model.named_parameters() if int(key.split(".")[0]) > 36
    }
    assert reached == decoder


def test_the_encoder_is_in_eval_mode_from_the_start_and_for_good() -> None:
    network = network_for("finetune_decoder")
    for switch in (lambda: None, network.train, network.eval, network.train):
        switch()
        assert not any(module.training for module in network.encoder)
    assert network.head.training


def test_full_mode_changes_the_first_module() -> None:
    network = network_for("finetune_extractor")
    before = snapshot(network)
    train_one_step("finetune_extractor", network)
    for key in ("extractor.model.0.weight", "extractor.model.1.running_mean", "head.weight"):
        assert not torch.equal(network.state_dict()[key], before[key])


@pytest.mark.parametrize("name", NAMES[:2])
def test_missing_weights_name_the_option_and_where_to_get_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    method = build(Component.of(name))
    for ask in (method.pretrained, lambda: method.initialise(network_for(name))):
        with pytest.raises(WeightsError, match=rf"neel-dey/anatomix.*the option weights of {name}"):
            ask()


def test_another_file_is_another_start(weights: Path, tmp_path: Path) -> None:
    method = build(Component.of("finetune_extractor", weights=str(weights)))
    other = tmp_path / "anatomix.pth"
    torch.save(architecture().state_dict(), other)
    assert method.pretrained() != build(Component.of("finetune_extractor", weights=str(other))).pretrained()
    with pytest.raises(WeightsError, match="sha256"):
        build(Component.of("finetune_extractor", weights=str(weights), sha256="00")).pretrained()


def test_a_finetuned_bundle_loads_where_there_is_no_weights_file(
    weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    path = tmp_path / "anatomix.pth"
    path.write_bytes(weights.read_bytes())
    segmenter = make_segmenter(Component.of("finetune_decoder", weights=str(path)), crop=(32, 32, 32))
    segmenter.method.initialise(segmenter.network)
    segmenter.save(tmp_path / "bundle")
    path.unlink()
    loaded = Segmenter.load(tmp_path / "bundle").network.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in segmenter.network.state_dict().items())


@pytest.mark.parametrize("crop", [(32, 32, 40), (32, 16, 32)])
def test_a_crop_that_anatomix_cannot_halve_four_times_is_refused(crop: tuple[int, int, int]) -> None:
    method = build(Component.of("finetune_decoder"))
    assert method.sizes is not None
    method.sizes.require((32, 48, 64))
    with pytest.raises(ConfigError, match=r"crop axis [yz] = \d+ voxels.*divisible by 16 and at least 32"):
        method.sizes.require(crop)


@pytest.mark.parametrize("options", [{"weights": 3}, {"sha256": True}])
def test_an_option_that_is_not_text_is_refused_with_its_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        build(Component.of("finetune_extractor", **options))
