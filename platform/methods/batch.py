"""What a method sees of one training batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One batch of augmented crops.

    Attributes:
        image_bcxyz: The image in the study's intensity rule, its M channels unless the method's `augment` made more.
        label_bcxyz: Class indices, int64 `[B, 1, X, Y, Z]`, or the class probabilities that `augment` made of them.
        features_bcxyz: Instance-normalised features; None for methods that need none. Channels that
            `kept_bc` drops may be zero already: they were never read.
        kept_bc: Which input channels each sample keeps, as the method planned it.
        seed: Seeds PyTorch's global generator before the step, for what layers and losses draw.
        strength_b: The strength that the method's `draw` gave each sample, float32; None where nothing was drawn.
    """

    image_bcxyz: Tensor
    label_bcxyz: Tensor
    features_bcxyz: Tensor | None
    kept_bc: Tensor
    seed: int = 0
    strength_b: Tensor | None = None
