"""DropGen: image and stable features side by side, whole channels dropped at random in training."""

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
class DropGen(Joint):
    """Channel dropout on u = [x; r], r = IN(F(x)), directly before the first convolution.

    In training every sample b and channel c draws m[b, c] ~ Bernoulli(1 - p) and the network sees
    u'[b, c] = u[b, c] * m[b, c] / (1 - p), so that E[u'] = u; every channel of the image takes part like any
    other. This is `torch.nn.functional.dropout3d` with the mask drawn beforehand. At inference u
    enters whole.

    Attributes:
        p: Probability that a channel is dropped, in [0, 1). 0 is plain concatenation.
        min_keep: 1 switches one uniformly chosen channel back on where all were dropped (chance
            p**channels); this gives up E[u'] = u exactly. 0 keeps such all-zero samples.
    """

    p: float = 0.75
    min_keep: int = 0

    name: ClassVar[str] = "dropgen"
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.0, 0.25, 0.5, 0.75)}
    source: ClassVar[str] = "the DropGen paper (later: MaskGen), channel dropout over image and features"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1)")
        require_choice(self.name, "min_keep", self.min_keep, (0, 1))

    def plan(self, generator: np.random.Generator, feature_channels: int, image_channels: int = 1) -> np.ndarray:
        """The mask m of one sample."""
        kept = generator.random(self.in_channels(feature_channels, image_channels)) >= self.p
        if self.min_keep and not kept.any():
            kept[generator.integers(len(kept))] = True
        return kept

    def loss(self, network: nn.Module, batch: Batch, criterion: Criterion) -> Tensor:
        """The criterion on the prediction from u', without weight where the whole batch was dropped.

        Such a batch (chance p**(B * (M + C)); 1 in 1800 for two samples of 13 channels at p = 0.75) has no variance in
        any layer, so that every batch norm multiplies the gradient by 1 / sqrt(1e-5) = 316: with three downsamplings
        it reached 1e16, and training ended in NaN.
        """
        if self.p == 0:
            return super().loss(network, batch, criterion)
        assert batch.features_bcxyz is not None
        logits = predict(network, batch.image_bcxyz, batch.features_bcxyz, batch.kept_bc / (1 - self.p))
        loss = criterion(logits, batch.label_bcxyz)
        return loss if batch.kept_bc.any() else 0 * loss
