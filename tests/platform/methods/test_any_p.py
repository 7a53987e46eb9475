"""DropGen for every p: what is drawn, and that p conditions the network and does nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.unet import UNet
from dropgen.platform.methods import build
from dropgen.platform.methods.any_p import Conditioned, DropGenAnyP
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.losses import dice_ce
from tests_support.segmenters import make_segmenter

CHANNELS, CLASSES = 5, 3


class Recorder(nn.Module):
    """An identity that remembers its input and what it was told."""

    def forward(self, x_bcxyz: Tensor, p_b: Tensor | None = None) -> Tensor:
        self.seen, self.told = x_bcxyz, p_b
        return x_bcxyz


def network_for(p: float = 0.5, film: bool = True) -> Conditioned:
    """A tiny conditioned UNet, with FiLM weights that are not zero unless `film` is False."""
    torch.manual_seed(0)
    network = DropGenAnyP(p=p).network(lambda width: UNet(width, CLASSES, base=2, downs=1), CHANNELS, CLASSES)
    assert isinstance(network, Conditioned)
    if film:
        for parameter in network.film.parameters():
            nn.init.normal_(parameter, std=0.5)
    return network


def some_input(samples: int = 2) -> Tensor:
    return torch.randn(samples, 1 + CHANNELS, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def batch_for(samples: int = 4, seed: int = 0) -> Batch:
    generator, u = np.random.default_rng(seed), some_input(samples)
    kept, strength = zip(*(DropGenAnyP().draw(generator, CHANNELS) for _ in range(samples)), strict=True)
    label = torch.randint(CLASSES, (samples, 1, 4, 4, 4), generator=torch.Generator().manual_seed(2))
    return Batch(u[:, :1], label, u[:, 1:], torch.from_numpy(np.stack(kept)), strength_b=torch.tensor(strength))


def test_p_is_uniform_and_the_mask_follows_it() -> None:
    generator = np.random.default_rng(0)
    kept, p = zip(*(DropGenAnyP(p=0, p_max=0.6).draw(generator, CHANNELS) for _ in range(20000)), strict=True)
    dropped, strength = 1 - np.stack(kept), np.array(p)
    assert np.abs(np.histogram(strength, bins=6, range=(0, 0.6))[0] / 20000 - 1 / 6).max() < 0.012
    assert strength.min() >= 0
    assert strength.max() < 0.6
    for low in (0, 0.2, 0.4):
        inside = (strength >= low) & (strength < low + 0.2)
        assert np.abs(dropped[inside].mean(axis=0) - strength[inside].mean()).max() < 0.025


def test_the_mask_of_draw_is_the_mask_of_plan() -> None:
    kept, _ = DropGenAnyP().draw(np.random.default_rng(5), 12)
    assert np.array_equal(kept, DropGenAnyP().plan(np.random.default_rng(5), 12))


def test_each_sample_is_dropped_as_dropgen_does_at_its_own_p_and_told_so() -> None:
    batch, told = batch_for(), Recorder()
    assert batch.strength_b is not None
    DropGenAnyP().loss(told, batch, lambda logits, label: logits.sum())
    assert torch.equal(told.told, batch.strength_b)
    for b, p in enumerate(batch.strength_b.tolist()):
        one, plain = slice(b, b + 1), Recorder()
        alone = Batch(batch.image_bcxyz[one], batch.label_bcxyz[one], batch.features_bcxyz[one], batch.kept_bc[one])  # type: ignore[index]
        DropGen(p=p).loss(plain, alone, lambda logits, label: logits.sum())
        assert torch.allclose(told.seen[one], plain.seen, rtol=1e-6)


def test_untrained_it_is_the_plain_unet_at_every_p() -> None:
    network, u = network_for(film=False), some_input()
    network.eval()
    for p in (0.0, 0.3, 0.75):
        assert torch.equal(network(u, torch.full((2,), p)), network.unet(u))


def test_different_p_give_different_logits_once_the_film_weights_are_not_zero() -> None:
    network, u = network_for().eval(), some_input()
    low, high = (network(u, torch.full((2,), p)) for p in (0.1, 0.7))
    assert (low - high).abs().max() > 1e-3


def test_each_sample_follows_its_own_p() -> None:
    network, u = network_for().eval(), some_input()
    together = network(u, torch.tensor([0.1, 0.7]))
    apart = [network(u[b : b + 1], torch.tensor([p])) for b, p in ((0, 0.1), (1, 0.7))]
    assert torch.allclose(together, torch.cat(apart), atol=1e-6)


def test_at_inference_p_only_conditions_and_the_input_stays_whole() -> None:
    u = some_input(1)
    for p in (0.0, 0.6):
        assert torch.equal(DropGenAnyP(p=p).inputs(u[:, :1], u[:, 1:]), u)
        conditioned = network_for(p).eval()
        told = conditioned(u, torch.tensor([p]))
        assert torch.equal(conditioned(u), told)
        for parameter in conditioned.film[-1].parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(conditioned(u), conditioned.unet(u))


def test_a_film_layer_follows_every_batch_norm() -> None:
    network = network_for()
    norms = [module for module in network.unet.modules() if isinstance(module, nn.BatchNorm3d)]
    assert network.film[-1].out_features == 2 * sum(norm.num_features for norm in norms)
    seen = []
    network.unet(some_input(), call=lambda index, module, h: seen.append(index) or module(h))  # type: ignore[func-returns-value]
    assert seen == list(range(len(network.unet.model)))


def test_gradient_reaches_every_film_layer() -> None:
    network = network_for()
    DropGenAnyP().loss(network.train(), batch_for(), dice_ce()).backward()
    gradient = network.film[-1].bias.grad
    assert gradient is not None
    assert all(part.any() for part in gradient.split([2 * width for width in network._widths.values()]))


def test_a_trained_bundle_is_dialled_to_another_p_and_keeps_it(tmp_path: Path) -> None:
    segmenter = make_segmenter(Component.of("dropgen_any_p", p_max=0.6))
    for parameter in segmenter.network.film.parameters():  # type: ignore[union-attr]
        nn.init.normal_(parameter, std=0.5)
    dialled = segmenter.with_options(p=0.1)
    dialled.save(tmp_path / "bundle")
    loaded = Segmenter.load(tmp_path / "bundle")
    assert loaded.spec.method == Component.of("dropgen_any_p", p_max=0.6, p=0.1)
    assert segmenter.spec.method == Component.of("dropgen_any_p", p_max=0.6)
    u = torch.randn(1, 13, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.network(u), dialled.network(u))
    assert torch.equal(loaded.network(u), segmenter.network(u, torch.tensor([0.1])))
    assert not torch.allclose(loaded.network(u), segmenter.network(u))


def test_an_option_that_training_depended_on_cannot_be_dialled() -> None:
    with pytest.raises(ConfigError, match="'p_max' is no option that method 'dropgen_any_p' takes after training"):
        make_segmenter(Component.of("dropgen_any_p")).with_options(p_max=0.9)
    with pytest.raises(ConfigError, match="'p' is no option that method 'dropgen' takes after training; it has none"):
        make_segmenter(Component.of("dropgen")).with_options(p=0.5)
    with pytest.raises(ConfigError, match=r"p = 0\.8"):
        make_segmenter(Component.of("dropgen_any_p")).with_options(p=0.8)


@pytest.mark.parametrize("options", [{"p": -0.1}, {"p": "half"}, {"p": True}, {"p_max": 1}, {"p_max": 0}])
def test_an_option_outside_its_range_is_refused_with_its_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        build(Component.of("dropgen_any_p", **options))


def test_another_predictor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropgen_any_p reaches into the layers of the flat UNet.*Identity"):
        DropGenAnyP().network(lambda width: nn.Identity(), CHANNELS, CLASSES)
