"""GIN+IPA: three GIN copies of a crop, two of them interleaved, must be segmented alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.blend_map import blend_map
from dropgen.platform.methods.checks import require_choice, require_number
from dropgen.platform.methods.gin import Gin
from dropgen.platform.methods.method import Criterion

COPIES = 3


@dataclass(frozen=True)
class GinIpa(Gin):
    """GIN with interventional pseudo-correlation augmentation and a consistency loss.

    Every crop is made three times by independent random networks, g1, g2, g3. A smooth map b in [0, 1] blends the
    first two, c1 = b g1 + (1 - b) g2 and c2 = (1 - b) g1 + b g2, and c3 = g3. The network sees all three in one batch
    of 3B; the loss is the criterion plus `weight` times `consistency`. At inference the image is only repeated.

    Attributes:
        weight: Of the consistency loss; the published values hold for its mean over all elements.
        sup_copies: Whether the criterion sees the "first" copy alone, as published, or "all".
        detach_mean: Whether no gradient flows through the mean prediction; as published it does.
    """

    weight: float = 10.0
    sup_copies: str = "first"
    detach_mean: bool = False

    name: ClassVar[str] = "gin_ipa"
    acts_on: ClassVar[str] = "loss"
    one_class: ClassVar[bool] = True
    under_dropgen: ClassVar[bool] = False
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"weight": (5.0, 10.0, 20.0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self.name, "weight", self.weight, "[0, inf)")
        require_choice(self.name, "sup_copies", self.sup_copies, ("first", "all"))
        require_choice(self.name, "detach_mean", self.detach_mean, (False, True))

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """The copies c1, c2, c3 of every sample side by side, `[B, 3 * channels * M, X, Y, Z]`."""
        crops = zip(image_bcxyz, generators, strict=True)
        return torch.stack([self._copies(crop_mxyz, generator) for crop_mxyz, generator in crops]), label_bcxyz

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the copies that have one, plus weight * consistency of all three."""
        # One forward pass: data parallelism expects one per step, and the copies share batch statistics, as published.
        logits_nkxyz = network(torch.cat(batch.image_bcxyz.chunk(COPIES, dim=1)))
        label_bcxyz, supervised = batch.label_bcxyz, 1 if self.sup_copies == "first" else COPIES
        label_ncxyz = torch.cat([label_bcxyz] * supervised)
        apart = consistency(torch.stack(logits_nkxyz.chunk(COPIES)), self.detach_mean)
        return criterion(logits_nkxyz[: len(label_ncxyz)], label_ncxyz) + self.weight * apart

    def _copies(self, crop_mxyz: Tensor, generator: np.random.Generator) -> Tensor:
        g1, g2, g3 = (self.restyled(crop_mxyz, generator) for _ in range(COPIES))
        b_xyz = torch.from_numpy(blend_map(tuple(crop_mxyz.shape[1:]), generator)).to(crop_mxyz.device)
        return torch.cat((b_xyz * g1 + (1 - b_xyz) * g2, (1 - b_xyz) * g1 + b_xyz * g2, g3))


def consistency(logits_ibkxyz: Tensor, detach_mean: bool = False) -> Tensor:
    """How far the copies' predictions p_i lie from their mean q: the mean of q * (log q - log p_i), in float32.

    The mean runs over all elements: copies, samples, classes and voxels. It is 0 where all copies agree, never
    negative, and not bounded above.

    Args:
        logits_ibkxyz: Logits of every copy, `[copies, B, K, X, Y, Z]`.
        detach_mean: Whether q is a constant.
    """
    log_p = logits_ibkxyz.float().log_softmax(dim=2)
    log_q = log_p.logsumexp(dim=0) - math.log(len(log_p))
    if detach_mean:
        log_q = log_q.detach()
    return (log_q.exp() * (log_q - log_p)).mean()
