"""Whether one volume's prediction fits, asked before memory is taken.

A file of a few hundred bytes can claim voxels so large that its resampled grid fills any machine.
"""

from __future__ import annotations

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.prepare import Grid
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.memory import MemoryPlan, gib, plan_memory
from dropgen.platform.segmenter import Segmenter


def plan_room(segmenter: Segmenter, volume: Volume, maps: int = 0) -> MemoryPlan:
    """What a volume's prediction will take.

    Args:
        segmenter: Decides the grid, the features, the classes and the network.
        volume: As it was read, or its grid alone.
        maps: uint8 volumes that are made beside the mask.

    Raises:
        TooLargeError: Its grid at the model's spacing has more voxels than any volume may have.
    """
    try:
        grid = Grid.of(volume, segmenter.spec.preparation)
    except VolumeError as error:
        raise TooLargeError(str(error)) from None
    return plan_memory(segmenter, grid, maps)


def require_room(segmenter: Segmenter, volume: Volume, free: int, maps: int = 0) -> MemoryPlan:
    """Refuses a volume whose prediction would not fit.

    Args:
        segmenter: As for `plan_room`.
        volume: Likewise.
        free: Bytes that the prediction may take.
        maps: As for `plan_room`.

    Raises:
        TooLargeError: With both numbers.
    """
    plan = plan_room(segmenter, volume, maps)
    if plan.peak > free:
        raise TooLargeError(
            f"the prediction takes about {plan} where {gib(free)} GiB are free; free memory, crop the volume or check "
            f"its voxel size: the model works at {' x '.join(f'{edge:g}' for edge in segmenter.spec.spacing)} mm"
        )
    return plan
