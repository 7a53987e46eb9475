"""What computing cases into the store will take: disk, and memory by how many are in flight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dropgen.errors import VolumeError
from dropgen.features.extractors import Extractor
from dropgen.features.extractors.tiles import peak_bytes
from dropgen.features.index import StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.prepare import Grid
from dropgen.features.studies.study import Study
from dropgen.features.studies.volume import read_grid
from dropgen.features.worker import Work

# What glibc keeps of blocks that were freed in the extractor, of up to 32 MB each: a volume of 96 voxels per edge, for
# which 290 MiB are counted, took 238 to 374 MiB.
HEAP_BYTES = 96 * 2**20


@dataclass(frozen=True)
class Demand:
    """What some work will take, in bytes.

    Attributes:
        volumes: Number of cases.
        disk: Of all new entries.
        extracting: Memory of the largest volume while it is in the extractor.
        waiting: Memory of the largest volume before and after that.
    """

    volumes: int
    disk: int
    extracting: int
    waiting: int

    def memory(self, in_flight: int) -> int:
        """Of one worker that has so many volumes in hand, one of them in the extractor."""
        return max(self.extracting, self.waiting) + (in_flight - 1) * self.waiting


def demand_of(works: Sequence[Work], study: Study, extractor: Extractor | None, dtype: str) -> Demand:
    """What the work will take, from the files' headers."""
    channels = 0 if extractor is None else extractor.channels
    images = study.image_channels
    voxel_bytes = {"volumes": 4 * images, "labels": 1, "features": channels * np.dtype(dtype).itemsize}
    disk = extracting = waiting = 0
    for work in works:
        try:
            native = read_grid(work.case.image)
            shape = Grid.of(native, study.preparation).shape
        except VolumeError:
            continue  # its worker will say what is wrong with it, once the others are done
        voxels = math.prod(shape)
        disk += voxels * sum(voxel_bytes[kind] for kind in work.kinds)
        # float32: as read, oriented, resampled and scaled at once, of further channels as read and as scaled, later the
        # image and its features
        preparing = (4 + 2 * (images - 1)) * max(voxels, native.array.size)
        waiting = max(waiting, 4 * max(preparing, (images + channels) * voxels))
        if extractor is not None:
            extracting = max(extracting, 2 * 4 * images * voxels + peak_bytes(extractor, shape) + HEAP_BYTES)
    return Demand(len(works), disk, extracting, waiting)


def features_bytes(index: StudyIndex, channels: int, store: FeatureStore) -> int:
    """What the features of all cases take on disk, in the store or not; their volumes are there."""
    voxels = sum(math.prod(store.volume(key).shape) for key in {keys.volume for keys in index.keys.values()})
    return voxels * channels * np.dtype(index.dtype).itemsize
