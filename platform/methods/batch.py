"""What a method sees of one training batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of augmented crops.

    Attributes:
        image_b1xyz: The image channel, in the study's intensity rule.
        label_b1xyz: Class indices, int64.
        features_bcxyz: Instance-normalised features; None for methods that need none. Channels that
            `kept_bc` drops may be zero already: they were never read.
        kept_bc: Which input channels each sample keeps, as the method planned it.
    """

    image_b1xyz: Tensor
    label_b1xyz: Tensor
    features_bcxyz: Tensor | None
    kept_bc: Tensor
