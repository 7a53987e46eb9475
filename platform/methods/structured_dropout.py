"""Structured dropout: image and features are dropped as whole groups, never both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.checks import require_choice, require_number
from dropgen.platform.methods.joint import Joint
from dropgen.platform.methods.method import Criterion
from dropgen.platform.methods.survivors import predict


@dataclass(frozen=True)
class StructuredDropout(Joint):
    """DropGen's ablation in which one decision per sample drops the image or all features of u = [x; r].

    Both are kept with probability 1 - p, the image alone with p/2, the features alone with p/2. Either group so
    survives with probability 1 - p/2, by which `rescale` divides it: then E[u'] = u. The equal split is a reading:
    the paper says only that either may be dropped.

    Attributes:
        p: Probability that one of the groups is dropped, in [0, 1). At 1 the network would never see what it
            sees at inference.
        rescale: Whether a surviving group is divided by 1 - p/2.
    """

    p: float = 0.5
    rescale: bool = True

    kind: ClassVar[str] = "ablation"
    name: ClassVar[str] = "structured_dropout"
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "the DropGen paper's ablation of structured dropout"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1)")
        require_choice(self.name, "rescale", self.rescale, (False, True))

    def plan(self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1) -> np.ndarray:
        """One draw decides both groups."""
        kept = np.ones(self.in_channels(feature_channels, image_channels), dtype=bool)
        draw = generator.random()
        if draw < self.p / 2:
            kept[image_channels:] = False
        elif draw < self.p:
            kept[:image_channels] = False
        return kept

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction from u'."""
        factor_bc = batch.kept_bc / (1 - self.p / 2 if self.rescale else 1)
        assert batch.features_bcxyz is not None
        return criterion(predict(network, batch.image_bcxyz, batch.features_bcxyz, factor_bc), batch.label_bcxyz)
