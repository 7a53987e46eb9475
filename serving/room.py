"""Whether one volume's prediction fits, asked before memory is taken.

A file of a few hundred bytes can claim voxels so large that its resampled grid fills any machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

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
        raise _too_large(segmenter, plan, free)
    return plan


class Room:
    """Memory for the volumes that one process has in hand, given out before they are read.

    Of those only one is in the model at a time; the others are read, prepared, written or wait. A volume that does not
    fit beside the others waits until they are done; one that would not fit alone is refused.

    Args:
        segmenter: As for `plan_room`.
        free: Bytes that all may take together; asked anew whenever nothing is in hand.
    """

    def __init__(self, segmenter: Segmenter, free: Callable[[], int]) -> None:
        self._segmenter = segmenter
        self._free = free
        self._total = 0
        self._held: list[MemoryPlan] = []
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, plan: MemoryPlan, exact: bool = True) -> Iterator[None]:
        """Holds what a volume takes until the end of the block.

        Args:
            plan: What it takes.
            exact: Whether that is known, or no more than a bound; by a bound no volume is refused.

        Raises:
            TooLargeError: It would not fit alone; with both numbers.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._fits(plan))
            if not self._held:
                self._total = self._free()
            if exact and plan.peak > self._total:
                raise _too_large(self._segmenter, plan, self._total)
            self._held.append(plan)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(plan)
                self._changed.notify_all()

    def _fits(self, plan: MemoryPlan) -> bool:
        return together([*self._held, plan]) <= self._total


def together(plans: Sequence[MemoryPlan]) -> int:
    """Bytes that volumes take at the most, one of them in the model."""
    return sum(plan.waiting for plan in plans) + max(plan.peak - plan.waiting for plan in plans)


def _too_large(segmenter: Segmenter, plan: MemoryPlan, free: int) -> TooLargeError:
    return TooLargeError(
        f"the prediction takes about {plan} where {gib(free)} GiB are free; free memory, crop the volume or check "
        f"its voxel size: the model works at {' x '.join(f'{edge:g}' for edge in segmenter.spec.spacing)} mm"
    )
