"""Whether a replica keeps more memory than it was planned to take, and is to be replaced for that.

Serve's replicas have been seen to grow with large bodies (ray-project/ray#52174, #12395). One that does is replaced
in order: it finishes what it has in hand, takes on nothing new, and then fails its health check.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator

import psutil

from dropgen.platform.evaluation.memory import gib

LOOK_SECONDS = 2.0
LOOKS = 5  # in a row that have to find too much: a peak is none of our business


class WornError(Exception):
    """The replica has to be replaced; Serve reads this as a failed health check."""


class Watchdog:
    """Compares what a replica takes with what it was planned to take.

    Args:
        models: Bytes that its models take.
        requests: How many it has in hand.
        margin: Bytes that it may keep beyond the plan; infinite for any.
        on_worn: Hears once of bytes taken and planned, when the replica takes on nothing new any more.
        on_look: Hears of bytes planned at every look.
        resident: Bytes that it takes.

    Attributes:
        worn: Whether it takes on nothing new any more.
    """

    def __init__(
        self,
        models: Callable[[], int],
        requests: Callable[[], int],
        margin: float = math.inf,
        on_worn: Callable[[int, float], None] = lambda taken, planned: None,
        on_look: Callable[[float], None] = lambda planned: None,
        resident: Callable[[], int] = lambda: int(psutil.Process().memory_info().rss),
    ) -> None:
        self._models = models
        self._requests = requests
        self._margin = margin
        self._on_worn = on_worn
        self._on_look = on_look
        self._resident = resident
        self._predicting = self._jobs = self._above = 0
        self._said = ""
        self.worn = False
        self.settle()

    def settle(self) -> None:
        """Takes what the process has now, beside its models, for what it has when nothing is asked of it."""
        self._at_rest = self._resident() - self._models()

    @property
    def bound(self) -> float:
        """Bytes that the replica may take now: at rest, for its models, for the volume in hand, and the margin."""
        return self._at_rest + self._models() + self._predicting + self._margin

    @contextlib.contextmanager
    def predicting(self, planned: int) -> Iterator[None]:
        """Allows what the volume in hand is planned to take."""
        self._predicting = planned
        try:
            yield
        finally:
            self._predicting = 0

    @contextlib.contextmanager
    def job(self) -> Iterator[None]:
        """Lets a job be ended before the replica is."""
        self._jobs += 1
        try:
            yield
        finally:
            self._jobs -= 1

    def look(self) -> None:
        """Compares once."""
        taken, bound = self._resident(), self.bound
        self._on_look(bound)
        self._above = self._above + 1 if taken > bound else 0
        if self._above >= LOOKS and not self.worn:
            self._said = (
                f"it keeps {gib(taken)} GiB of memory for {LOOKS * LOOK_SECONDS:g} s where {gib(round(bound))} GiB are "
                "planned, and is replaced; see dropgen serve --margin-gb"
            )
            self.worn = True
            self._on_worn(taken, bound)

    def keep_looking(self, stop: threading.Event) -> None:
        """Compares every few seconds until told to stop."""
        while not stop.wait(LOOK_SECONDS):
            self.look()

    def require_sound(self) -> None:
        """Fails the health check of a replica that is to be replaced and has nothing in hand.

        Raises:
            WornError: That is so, with both numbers.
        """
        if self.worn and not (self._requests() or self._jobs):
            raise WornError(self._said)
