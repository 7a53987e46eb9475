"""How much memory one volume will take, asked before it is taken.

A file of a few hundred bytes can claim voxels so large that its resampled grid fills any machine.
"""

from __future__ import annotations

import math

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.prepare import Grid
from dropgen.features.studies.volume import Volume
from dropgen.platform.segmenter import Segmenter

# Copies of a full-size float32 channel at the peak. Measured at 160^3 with MIND: 579 bytes per voxel for 12 channels
# are 12 copies; without features 28 bytes for 1 + 2 channels and 53 for 1 + 8 are at most 2.4. At 128^3 with 8 classes
# a plain prediction took 66 bytes per voxel, SFB 140 and Alpha Tuning 161: 2.3 and 3.0 copies of the classes more.
FEATURE_COPIES = 12
OTHER_COPIES = 2.5


def require_room(segmenter: Segmenter, volume: Volume, free: int) -> None:
    """Refuses a volume whose prediction would not fit.

    Args:
        segmenter: Decides the grid and the number of channels.
        volume: As it was read.
        free: Bytes that the prediction may take.

    Raises:
        TooLargeError: With both numbers.
    """
    spec = segmenter.spec
    try:
        shape = Grid.of(volume, spec.preparation).shape
    except VolumeError as error:
        raise TooLargeError(str(error)) from None
    channels = FEATURE_COPIES * segmenter.feature_channels + OTHER_COPIES * (1 + len(spec.classes))
    needed = 4 * (channels + segmenter.class_copies * len(spec.classes)) * math.prod(shape)
    if needed > free:
        raise TooLargeError(
            f"at the model's spacing of {list(spec.spacing)} mm the volume has {list(shape)} voxels, which take about "
            f"{needed / 2**30:.1f} GiB of memory where {free / 2**30:.1f} GiB are free; crop it or check its voxel size"
        )
