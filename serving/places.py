"""Requests for a mask that wait or are worked on: how many there may be, and how long they take."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from dropgen.errors import DropGenError
from dropgen.serving.engine import Made
from dropgen.serving.upload import SlowError

DEFAULT_SECONDS = 30.0  # that a volume is taken to need before one has been timed


class BusyError(DropGenError):
    """The queue is full.

    Attributes:
        seconds: When to try again.
    """

    def __init__(self, message: str, seconds: int) -> None:
        self.seconds = seconds
        super().__init__(message)


@dataclass
class Place:
    """One request's place.

    Attributes:
        worked_on: Whether a thread has it, and gives it back.
    """

    worked_on: bool = False


class Queue:
    """All of one replica.

    Args:
        limit: How many there may be.

    Attributes:
        length: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self.length = 0
        self._lock = threading.Lock()
        self._limit = limit
        self._seconds = DEFAULT_SECONDS
        self._pool = ThreadPoolExecutor(limit)

    @contextlib.contextmanager
    def place(self) -> Iterator[Place]:
        """Holds a place while a body arrives, and until its mask is made.

        Raises:
            BusyError: There is none, with the seconds that one volume has taken of late.
        """
        if self.length >= self._limit:
            raise BusyError(f"{self.length} volumes are waiting already; try later", max(1, round(self._seconds)))
        place, began = Place(), time.monotonic()
        self._count(1)
        try:
            yield place
            self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)
        finally:
            if not place.worked_on:
                self._count(-1)

    async def run(self, place: Place, *call: Any) -> Made:
        """Runs a call whose last argument is the seconds that it may take.

        Its thread cannot be stopped, so it keeps the place to its end: a service that is stuck says that it is busy,
        and every call that was taken on begins at once and cleans up after itself.

        Raises:
            SlowError: It took longer.
        """
        seconds, place.worked_on = call[-1], True
        thread = self._pool.submit(*call)
        thread.add_done_callback(lambda _: self._count(-1))
        task = asyncio.wrap_future(thread)
        try:
            made: Made = await asyncio.wait_for(task, seconds)
            return made
        except TimeoutError:
            raise SlowError(f"the mask was not made within {seconds:g} s; send the volume to /v1/jobs") from None

    def _count(self, change: int) -> None:
        with self._lock:
            self.length += change
