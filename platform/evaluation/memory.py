"""How much memory a prediction will take, from shapes, classes and network, before any of it is taken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dropgen.features.studies.intensity import ZSCORE
from dropgen.features.studies.prepare import Grid
from dropgen.platform.evaluation.inference import WINDOWS_AT_ONCE, slab_axis
from dropgen.platform.segmenter import Segmenter

# Bytes per native voxel while a file is decoded: float64 where the header scales, float32, and which are finite.
READING_BYTES = 13
FLOAT, INDEX, LABEL = 4, 8, 1
# Blocks that were freed and kept seldom fit the next ones: four windows of the paper's network with anatomix are 648
# MiB of tensors, and 1111 were seen.
KEPT = 7 / 4


@dataclass(frozen=True)
class MemoryPlan:
    """What a prediction holds at the peak of each of its stages, in bytes, beside the model itself.

    Attributes:
        shape: Voxels of the prepared volume.
        classes: Number of classes.
        stages: Name to bytes, in the order in which they come.
    """

    shape: tuple[int, int, int]
    classes: int
    stages: Mapping[str, int]

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        return max(self.stages.values())

    @property
    def waiting(self) -> int:
        """The most that is held while another volume is in the model: before it is this one's turn, and afterwards."""
        return max(self.stages.get("reading", 0), self.stages.get("preparing", 0))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib(size)}" for name, size in self.stages.items())
        shape = " x ".join(map(str, self.shape))
        return f"{gib(self.peak)} GiB for {shape} voxels and {self.classes} classes ({parts})"


def gib(size: float) -> str:
    """Bytes in GiB, as a person reads them."""
    return f"{size / 2**30:.2f}"


def plan_memory(segmenter: Segmenter, grid: Grid, maps: int = 0) -> MemoryPlan:
    """Plans the prediction of one volume.

    Args:
        segmenter: Decides features, classes, windows and network.
        grid: From the file's header, `Grid.of`.
        maps: uint8 volumes on the native grid that are made beside the mask.
    """
    spec, shape = segmenter.spec, grid.shape
    native, voxels, classes = math.prod(grid.native_shape), math.prod(shape), spec.labelling.outputs
    channels = spec.image_channels
    image = FLOAT * channels * (native + voxels)
    extraction, whole = segmenter.extraction_bytes(shape), segmenter.whole_features
    features = FLOAT * segmenter.feature_channels * voxels if whole else extraction
    rules = {spec.intensity} if isinstance(spec.intensity, str) else set(spec.intensity.values())
    read, made = FLOAT * (channels - 1) * native, FLOAT * (channels - 1) * voxels  # channels that are ready already
    axis = slab_axis(shape, spec.crop)
    held = voxels // shape[axis] * spec.crop[axis]
    results = (segmenter.method.passes + maps) * LABEL * native
    scores = FLOAT * segmenter.score_copies * classes * voxels + (INDEX * voxels if segmenter.score_copies else 0)
    blending = FLOAT * (classes + 1) * held + (INDEX + LABEL) * held
    windows = int(KEPT * WINDOWS_AT_ONCE * segmenter.window_bytes)
    stages = {
        "reading": read + READING_BYTES * native,
        # The spread of a z-score is one of float64.
        "preparing": read + made + FLOAT * (2 * native + (5 if ZSCORE in rules else 3) * voxels),
        "features": image + extraction if whole else 0,
        "windows": image + features + results + int(scores) + blending + windows,
    }
    return MemoryPlan(shape, classes, {name: size for name, size in stages.items() if size})
