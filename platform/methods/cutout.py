"""CutOut: a cube of the crop is blanked, in image and label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from dropgen.platform.methods.checks import require_count, require_number
from dropgen.platform.methods.method import Method

BLANK = 0.5  # zero, had the unit scale [0, 1] been shifted to zero mean


@dataclass(frozen=True)
class CutOut(Method):
    """With probability p a sample gets a hole: 0.5 in the image, background in the label.

    The hole's centre is uniform over the crop's voxels and its side max(1, round(fraction * size)) voxels along each
    axis; what would lie beyond the crop is clipped.

    Attributes:
        p: Probability that a sample gets its holes.
        fraction: Side of a hole over side of the crop, above 0 and below 1. The published value is lost.
        n_holes: Holes per sample; they may overlap.
    """

    p: float = 0.5
    fraction: float = 1 / 3
    n_holes: int = 1

    name: ClassVar[str] = "cutout"
    acts_on: ClassVar[str] = "input"
    one_class: ClassVar[bool] = True
    under_dropgen: ClassVar[bool] = True
    needs_online: ClassVar[bool] = True
    search_space: ClassVar[Mapping[str, tuple[float, ...]]] = {"p": (0.25, 0.5, 0.75)}
    source: ClassVar[str] = "DeVries and Taylor, Improved regularization of CNNs with cutout, 2017"

    def __post_init__(self) -> None:
        require_number(self.name, "p", self.p, "[0, 1]")
        require_number(self.name, "fraction", self.fraction, "(0, 1)")
        require_count(self.name, "n_holes", self.n_holes, at_least=1)

    def augment(
        self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """The crops with their holes."""
        image_bcxyz, label_bcxyz = image_bcxyz.clone(), label_bcxyz.clone()
        for image_cxyz, label_cxyz, generator in zip(image_bcxyz, label_bcxyz, generators, strict=True):
            if generator.random() >= self.p:
                continue
            for _ in range(self.n_holes):
                x, y, z = (self._span(size, generator) for size in image_cxyz.shape[1:])
                image_cxyz[:, x, y, z] = BLANK
                label_cxyz[:, x, y, z] = 0
        return image_bcxyz, label_bcxyz

    def _span(self, size: int, generator: np.random.Generator) -> slice:
        side = max(1, round(self.fraction * size))
        start = int(generator.integers(size)) - side // 2
        return slice(max(0, start), start + side)
