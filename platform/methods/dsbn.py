"""DSBN: crops restyled by random curves, and batch norm with one branch for brighter and one for darker style."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.features.unet import UNet
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.bezier import random_curve
from dropgen.platform.methods.checks import require_choice, require_number, require_unet
from dropgen.platform.methods.method import Criterion, MakePredictor, Method, OverWindows, T


@dataclass(frozen=True)
class Dsbn(Method):
    """Style augmentation with dual normalisation: a batch norm per domain, all else shared.

    A Bezier curve maps the intensities of a sample's foreground, of all channels of its image alike. Where that lowers
    their mean the sample is of domain 1, else (also untransformed) of domain 0, and every batch norm normalises the
    samples of each domain apart. At inference every volume is predicted in one branch, the one whose running statistics
    its windows are closest to.

    Attributes:
        p: Probability that a sample is transformed, in [0, 1].
        region: Foreground: "label" (labelled voxels), "image" (intensity above 0) or "crop" (all).
        domain_rule: "mean" as above; "direction", as first published: domain 1 where the curve falls.
        select: Branch at inference: "stats" (chosen as above), 0, 1, or "average" of both branches' logits.
    """

    p: float = 0.5
    region: str = "label"
    domain_rule: str = "mean"
    select: str | int = "stats"

    name: ClassVar[str] = "dsbn"
    acts_on: ClassVar[str] = "layers"
    needs_unet: ClassVar[bool] = True
    passes: ClassVar[int] = 2  # one per branch
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = (
        "Zhou et al., Generalizable Cross-modality Medical Image Segmentation via Style Augmentation and Dual "
        "Normalization, CVPR 2022"
    )

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1]")
        require_choice(self.name, "region", self.region, ("label", "image", "crop"))
        require_choice(self.name, "domain_rule", self.domain_rule, ("mean", "direction"))
        require_choice(self.name, "select", self.select, ("stats", 0, 1, "average"))

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """The restyled image and behind it the original: `loss` tells the domain from the two."""
        restyled = image_bcxyz.clone()
        for image, label, generator in zip(restyled, label_bcxyz, generators, strict=True):
            if generator.random() < self.p:
                curve = random_curve(generator)
                region = {"label": label > 0, "image": image > 0, "crop": torch.ones_like(label, dtype=torch.bool)}
                foreground = region[self.region].expand_as(image)
                image[foreground] = torch.from_numpy(curve(image[foreground].numpy()))
        return torch.cat((restyled, image_bcxyz), dim=1), label_bcxyz

    def network(
        self, predictor: MakePredictor, feature_channels: int, classes: int, image_channels: int = 1
    ) -> nn.Module:
        """The UNet with two branches in every batch norm.

        Raises:
            ConfigError: The predictor is no flat UNet.
        """
        return DualNormUNet(
            require_unet(self.name, predictor(self.in_channels(feature_channels, image_channels))), self.select
        )

    def predict(self, network: nn.Module, over_windows: OverWindows[T]) -> T:
        """What the branch predicts that is closest to the volume, by `DualNorm.distance` averaged over its windows."""
        assert isinstance(network, DualNormUNet)
        if self.select != "stats":
            return over_windows(network)
        zero, one = Branch(network, 0), Branch(network, 1)
        of_zero, of_one = over_windows(zero), over_windows(one)
        return of_zero if zero.distance <= one.distance else of_one

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the restyled image's prediction."""
        restyled, original = batch.image_bcxyz.chunk(2, dim=1)
        return criterion(network(restyled, domains(restyled, original, self.domain_rule)), batch.label_bcxyz)


def domains(restyled_bmxyz: Tensor, original_bmxyz: Tensor, rule: str) -> Tensor:
    """Domain ids `[B]`, 0 or 1, told from what became of the intensities.

    Both rules ask for a sign only, so a linear rescaling of the two images changes nothing. "mean": outside the
    foreground the images agree, hence the sum over all voxels will do. "direction": over the changed voxels a falling
    curve makes the covariance of before and after negative; where they held a single intensity it has none and is 0.
    Channels are summed over, each in its own scale.
    """
    before, after = original_bmxyz.flatten(2), restyled_bmxyz.flatten(2)
    if rule == "mean":
        return ((after - before).sum(dim=(1, 2)) < 0).long()
    changed = after != before
    count = changed.sum(dim=2, keepdim=True).clamp(min=1)
    before = (before - (before * changed).sum(dim=2, keepdim=True) / count) * changed
    after = (after - (after * changed).sum(dim=2, keepdim=True) / count) * changed
    return ((before * after).sum(dim=(1, 2)) < 0).long()


class DualNorm(nn.Module):
    """Two complete batch norms, one per domain.

    Args:
        norm: Becomes the branch of domain 0; that of domain 1 starts as its copy.
    """

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        super().__init__()
        self.branches = nn.ModuleList((norm, copy.deepcopy(norm)))

    def forward(self, h_bcxyz: Tensor, counts: tuple[int, int]) -> Tensor:
        """Normalises the first `counts[0]` samples in branch 0 and the other `counts[1]` in branch 1.

        A branch without a sample is not called: its statistics stay as they are.
        """
        parts = zip(self.branches, h_bcxyz.split(list(counts)), strict=True)
        return torch.cat([branch(part) for branch, part in parts if len(part)])

    def distance(self, h_bcxyz: Tensor, domain: int) -> Tensor:
        """How far each sample's statistics are from a branch's running ones, averaged over the samples.

        ||mean - running_mean||_2 + ||var - running_var||_2 over channels, in float32.
        """
        branch = self.branches[domain]
        variance_bc, mean_bc = torch.var_mean(h_bcxyz.float(), dim=(2, 3, 4))
        of_mean_b: Tensor = torch.linalg.vector_norm(mean_bc - branch.get_buffer("running_mean"), dim=1)
        of_variance_b: Tensor = torch.linalg.vector_norm(variance_bc - branch.get_buffer("running_var"), dim=1)
        return (of_mean_b + of_variance_b).mean()


class DualNormUNet(nn.Module):
    """A UNet with `DualNorm` in place of every batch norm.

    Without domain ids it chooses for itself, one branch for all that a call is given: with "stats" the one whose
    running statistics are closest to the input's own, summed over all batch norms. `Dsbn.predict` chooses for whole
    volumes.

    Args:
        unet: Used in place.
        select: As `Dsbn.select`.
    """

    def __init__(self, unet: UNet, select: str | int) -> None:
        super().__init__()
        for index, module in enumerate(unet.model):
            if isinstance(module, nn.BatchNorm3d):
                unet.model[index] = DualNorm(module)
        self.unet = unet
        self.select = select

    def forward(self, x_bcxyz: Tensor, domain_b: Tensor | None = None) -> Tensor:
        """Logits; `domain_b` holds 0 or 1 for every sample."""
        if domain_b is not None:
            order, ones = domain_b.argsort(stable=True), int(domain_b.sum())
            counts = (len(order) - ones, ones)
            logits = self._run(x_bcxyz[order], lambda norm, h_bcxyz: norm(h_bcxyz, counts))[order.argsort()]
            return logits if all(counts) else logits + self._nothing(of_branch=0 if ones else 1)
        if isinstance(self.select, int):
            return self.branch(x_bcxyz, self.select)[0]
        (zero, to_zero), (one, to_one) = self.branch(x_bcxyz, 0), self.branch(x_bcxyz, 1)
        if self.select == "average":
            return (zero + one) / 2
        return zero if to_zero <= to_one else one

    def _nothing(self, of_branch: int) -> Tensor:
        """0, with gradient 0 for an idle branch: DistributedDataParallel waits for every parameter's gradient."""
        idle = [module.branches[of_branch] for module in self.unet.model if isinstance(module, DualNorm)]
        return 0 * torch.stack([parameter.sum() for norm in idle for parameter in norm.parameters()]).sum()

    def branch(self, x_bcxyz: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        """Logits of one branch and the input's distance from it, averaged over the samples."""
        counts = (0, len(x_bcxyz)) if domain else (len(x_bcxyz), 0)
        distances: list[Tensor] = []

        def measured(norm: DualNorm, h_bcxyz: Tensor) -> Tensor:
            distances.append(norm.distance(h_bcxyz, domain))
            normalised: Tensor = norm(h_bcxyz, counts)
            return normalised

        return self._run(x_bcxyz, measured), torch.stack(distances).sum()

    def _run(self, x_bcxyz: Tensor, normalise: Callable[[DualNorm, Tensor], Tensor]) -> Tensor:
        def call(_: int, module: nn.Module, h_bcxyz: Tensor) -> Tensor:
            result: Tensor = normalise(module, h_bcxyz) if isinstance(module, DualNorm) else module(h_bcxyz)
            return result

        logits: Tensor = self.unet(x_bcxyz, call=call)
        return logits


@dataclass
class Branch:
    """One branch of a network as windows pass through it, and how far they are from its statistics."""

    network: DualNormUNet
    domain: int
    total: float = 0.0
    windows: int = 0

    def __call__(self, x_bcxyz: Tensor) -> Tensor:
        """Logits of a batch of windows."""
        logits, distance = self.network.branch(x_bcxyz, self.domain)
        self.total += len(x_bcxyz) * distance.item()
        self.windows += len(x_bcxyz)
        return logits

    @property
    def distance(self) -> float:
        """Averaged over the windows so far."""
        return self.total / self.windows
