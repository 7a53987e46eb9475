"""DropGen for every p at once: the network is told p, so that p is chosen after training instead of by a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.errors import ConfigError
from dropgen.features.unet import UNet
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.checks import require_unet
from dropgen.platform.methods.joint import Joint
from dropgen.platform.methods.method import Criterion, MakePredictor

HIDDEN = 32


@dataclass(frozen=True)
class DropGenAnyP(Joint):
    """DropGen with p drawn per sample and the network conditioned on it.

    In training every sample draws p ~ U(0, p_max) and, given it, the mask m[c] ~ Bernoulli(1 - p) over the channels
    of u = [x; r]; the network sees u m / (1 - p) and, through `Conditioned`, p. At inference u enters whole and p is
    a dial: it says for which mixture of image and features the layers are set. An experiment that gives no p leaves it
    to the validation cases, once the network is trained; `Segmenter.with_options(p=0.25)` turns the dial on a bundle.

    Attributes:
        p: What the network is told at inference, in [0, p_max]; training does not depend on it.
        p_max: Upper end of the p that training draws, above 0 and below 1; 0.75 is the largest that DropGen's own
            search tries.
    """

    p: float = 0.5
    p_max: float = 0.75

    name: ClassVar[str] = "dropgen_any_p"
    needs_unet: ClassVar[bool] = True
    source: ClassVar[str] = "this project, after the DropGen paper; FiLM: Perez et al., AAAI 2018"

    def __post_init__(self) -> None:
        p_max: object = self.p_max  # a YAML file may hold anything
        if not isinstance(p_max, int | float) or isinstance(p_max, bool) or not 0 < p_max < 1:
            raise ConfigError(f"dropgen_any_p: p_max = {p_max!r} must be a number above 0 and below 1")
        p: object = self.p
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p <= p_max:
            raise ConfigError(f"dropgen_any_p: p = {p!r} must be a number from 0 to p_max = {p_max}")

    @property
    def after_training(self) -> Mapping[str, tuple[Any, ...]]:
        """Four p from 0 to p_max: those of DropGen's own search where p_max is its default."""
        return {"p": tuple(self.p_max * part / 3 for part in range(4))}

    def draw(
        self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1
    ) -> tuple[np.ndarray, float]:
        """The mask of one sample, and the p that it was drawn with."""
        p = generator.uniform(0, self.p_max)
        return generator.random(self.in_channels(feature_channels, image_channels)) >= p, p

    def plan(self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1) -> np.ndarray:
        """The mask of one sample."""
        return self.draw(generator, feature_channels, image_channels)[0]

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The UNet, conditioned on p."""
        unet = predictor(self.in_channels(feature_channels, image_channels))
        return Conditioned(require_unet(self.name, unet), self.p)

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction from u', given each sample's own p."""
        p_b = batch.strength_b
        assert p_b is not None
        factor_bc = batch.kept_bc / (1 - p_b[:, None])
        u = self.inputs(batch.image_bcxyz, batch.features_bcxyz) * factor_bc[:, :, None, None, None]
        return criterion(network(u, p_b), batch.label_bcxyz)


class Conditioned(nn.Module):
    """A UNet with a FiLM layer after every batch norm: h[b, c] becomes (1 + scale[b, c]) h[b, c] + shift[b, c].

    Scales and shifts of all layers come from one small perceptron of p, whose last layer starts at zero: the untrained
    network is the plain UNet.

    Args:
        unet: The predictor.
        p: Told to the perceptron where `forward` is given none.
    """

    def __init__(self, unet: UNet, p: float) -> None:
        super().__init__()
        self.unet = unet
        self.p = p
        self._widths = {
            index: module.num_features for index, module in enumerate(unet.model) if isinstance(module, nn.BatchNorm3d)
        }
        self.film = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * sum(self._widths.values())))
        for parameter in self.film[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, u_bcxyz: Tensor, p_b: Tensor | None = None) -> Tensor:
        """Logits `[B, K, X, Y, Z]` from u and, in training, each sample's p `[B]`."""
        if p_b is None:
            p_b = u_bcxyz.new_full((len(u_bcxyz),), self.p)
        parts = torch.split(self.film(p_b[:, None]), [2 * width for width in self._widths.values()], dim=1)
        films = dict(zip(self._widths, parts, strict=True))

        def modulated(index: int, module: nn.Module, x_bcxyz: Tensor) -> Tensor:
            h_bcxyz: Tensor = module(x_bcxyz)
            if index not in films:
                return h_bcxyz
            scale_bcxyz, shift_bcxyz = films[index][:, :, None, None, None].chunk(2, dim=1)
            return h_bcxyz * (1 + scale_bcxyz) + shift_bcxyz

        logits: Tensor = self.unet(u_bcxyz, call=modulated)
        return logits
