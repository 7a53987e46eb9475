"""RSC: what the prediction rests on most is taken away, so that the rest must learn to predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dropgen.features.unet import UNet
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.checks import require_choice, require_number, require_unet
from dropgen.platform.methods.method import Criterion, MakePredictor, Method

KINDS = ("channel", "spatial")


@dataclass(frozen=True)
class Rsc(Method):
    """Representation self-challenging at the deepest encoder output h.

    In a challenged step the entries of h that raise the true-class logits most are set to zero, without rescaling,
    and the decoder trains on what is left; skip connections stay whole. At inference nothing happens.

    Attributes:
        p: Probability that a step is challenged, in [0, 1]; drawn by each worker for its share of the batch.
        mask: What is dropped as one: "channel", "spatial" (a voxel with all channels), "element", or "alternate" for
            one of the first two at random, as published.
        fraction: Share of the channels, voxels or elements dropped, in (0, 1), rounded up.
        batch_fraction: Share of the samples challenged, in (0, 1], rounded up: those whose confidence falls most. 1
            challenges all, without the pass that compares them.
    """

    p: float = 0.5
    mask: str = "alternate"
    fraction: float = 0.2
    batch_fraction: float = 1.0

    name: ClassVar[str] = "rsc"
    acts_on: ClassVar[str] = "layers"
    one_class: ClassVar[bool] = True
    needs_unet: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "Huang et al., Self-Challenging Improves Cross-Domain Generalization, ECCV 2020"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1]")
        require_choice(self.name, "mask", self.mask, ("alternate", *KINDS, "element"))
        require_number(self.name, "fraction", self.fraction, "(0, 1)")
        require_number(self.name, "batch_fraction", self.batch_fraction, "(0, 1]")

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The UNet, able to challenge itself.

        Raises:
            ConfigError: The predictor is no flat UNet.
        """
        unet = require_unet(self.name, predictor(self.in_channels(feature_channels, image_channels)))
        return SelfChallengingUNet(unet, self.mask, self.fraction, self.batch_fraction)

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction; the network gets the label where the step is challenged."""
        label = batch.label_bcxyz if torch.rand(()) < self.p else None
        return criterion(network(batch.image_bcxyz, label), batch.label_bcxyz)


class SelfChallengingUNet(nn.Module):
    """A UNet that, given the label, predicts without its dominant deepest features.

    Args:
        unet: Used in place.
        mask: As `Rsc.mask`.
        fraction: As `Rsc.fraction`.
        batch_fraction: As `Rsc.batch_fraction`.
    """

    def __init__(self, unet: UNet, mask: str, fraction: float, batch_fraction: float) -> None:
        super().__init__()
        self.unet = unet
        self.mask = mask
        self.fraction = fraction
        self.batch_fraction = batch_fraction

    def forward(self, x_bcxyz: Tensor, label_b1xyz: Tensor | None = None) -> Tensor:
        """Logits; challenged where the label (class indices, int64) is given."""
        if label_b1xyz is None:
            logits: Tensor = self.unet(x_bcxyz)
            return logits
        deepest, skips = self.unet.encode(x_bcxyz)
        kept = self._kept(deepest.detach().float(), {at: skip.detach() for at, skip in skips.items()}, label_b1xyz)
        return self.unet.decode(deepest * kept.to(deepest.dtype), skips)

    def _kept(self, h_bcxyz: Tensor, skips: Mapping[int, Tensor], label_b1xyz: Tensor) -> Tensor:
        """The mask of `keep_undominant`, from a pass through the decoder that moves no batch statistics."""
        training = self.unet.training
        self.unet.eval()
        kind = KINDS[int(torch.rand(()) < 0.5)] if self.mask == "alternate" else self.mask
        with torch.enable_grad():
            before = self.unet.decode(h_bcxyz.requires_grad_(), skips).float()
            # Not backward(): that would add to the parameters' gradients and wake the hooks that average them.
            (gradient,) = torch.autograd.grad(before.gather(1, label_b1xyz).sum(), h_bcxyz)
        with torch.no_grad():
            kept = keep_undominant(h_bcxyz, gradient, kind, self.fraction)
            if self.batch_fraction < 1:
                after = self.unet.decode(h_bcxyz * kept, skips).float()
                fall_b = confidence(before, label_b1xyz) - confidence(after, label_b1xyz)
                challenged = math.ceil(self.batch_fraction * len(fall_b))
                kept[fall_b.argsort(descending=True)[challenged:]] = 1
        self.unet.train(training)
        return kept


def keep_undominant(h_bcxyz: Tensor, gradient_bcxyz: Tensor, kind: str, fraction: float) -> Tensor:
    """The mask that is 0 for the `ceil(fraction * n)` highest scores of each sample, and 1 elsewhere.

    A count, not a threshold: equal scores cannot drop everything.

    Args:
        h_bcxyz: Features.
        gradient_bcxyz: Gradient g of the true-class logits' sum with respect to them.
        kind: "channel": n = C, the score is the spatial mean of g. "spatial": n = X * Y * Z, the score is the sum
            over channels of h times that mean. "element": n = C * X * Y * Z, the score is g itself.
        fraction: In (0, 1).

    Returns:
        `[B, C, 1, 1, 1]`, `[B, 1, X, Y, Z]` or `[B, C, X, Y, Z]`.
    """
    if kind == "element":
        score = gradient_bcxyz
    else:
        score = gradient_bcxyz.mean(dim=(2, 3, 4), keepdim=True)
        if kind == "spatial":
            score = (score * h_bcxyz).sum(dim=1, keepdim=True)
    flat = score.flatten(1)
    dominant = flat.topk(math.ceil(fraction * flat.shape[1]), dim=1).indices
    return torch.ones_like(flat).scatter(1, dominant, 0).reshape(score.shape)


def confidence(logits_bkxyz: Tensor, label_b1xyz: Tensor) -> Tensor:
    """Mean probability `[B]` of the true class over the voxels."""
    return logits_bkxyz.softmax(dim=1).gather(1, label_b1xyz).mean(dim=(1, 2, 3, 4))
