"""One model with several scans in hand, in threads of this process; and how busy the models of a run were."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial

from dropgen.platform.evaluation.quality import ClassRecord
from dropgen.serving.backend import Segment
from dropgen.serving.line import Done, Line, Task

IN_FLIGHT = 3  # volumes per model: one in it, one being read or waiting for it, one being written

OnDone = Callable[[Done], None]


def work_here(
    tasks: Iterable[Task],
    line: Line,
    segment: Segment,
    records: Mapping[str, ClassRecord],
    in_flight: int,
    on_done: OnDone,
    stop: threading.Event,
    grace: float | None = None,
) -> None:
    """Does all tasks in threads of this process.

    Args:
        tasks: One per scan.
        line: The way of every scan.
        segment: Makes a mask.
        records: What the model's training labels say of each class; none where they are not known.
        in_flight: Scans in hand at once.
        on_done: Hears of every task as it ends, in this thread.
        stop: Set when the run is interrupted, cleared when it begins.
        grace: Seconds that what is in hand then has to look at it; None for as long as it takes.

    Raises:
        ServiceError: As `Line.take`; what was done is told before.
        ResourceError: Likewise.
    """
    stop.clear()  # by the run before, where one process has several
    queue = deque(tasks)
    busy: set[Future[Done]] = set()
    try:
        while queue or busy:
            while queue and len(busy) < in_flight:
                busy.add(_started(partial(line.take, queue.popleft(), segment, records)))
            over, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in over:
                done = future.result()
                busy.remove(future)
                on_done(done)
    except BaseException:
        stop.set()
        for future in wait(busy, grace).done:
            if future.exception() is None:
                on_done(future.result())
        raise


def _started(call: Callable[[], Done]) -> Future[Done]:
    """Runs a call in a thread that nobody waits for when the process ends, unlike a pool's."""
    future: Future[Done] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


@dataclass(frozen=True)
class Effort:
    """How the models of a run spent their time, from the first scan in each to the last one out of it.

    Attributes:
        scans: That went through a model.
        seconds: Of that time, over all models.
        in_model: Seconds of it with a scan in the model.
    """

    scans: int
    seconds: float
    in_model: float

    @property
    def busy(self) -> float | None:
        """Share of the time with a scan in the model; None where none came after another."""
        return self.in_model / self.seconds if self.scans > 1 and self.seconds else None


def effort_of(dones: Iterable[Done]) -> Effort:
    """Adds up over all workers."""
    of_worker: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for done in dones:
        if done.in_model is not None:
            of_worker[done.worker].append(done.in_model)
    spans = of_worker.values()
    return Effort(
        sum(len(span) for span in spans),
        sum(max(left for _, left in span) - min(entered for entered, _ in span) for span in spans),
        sum(left - entered for span in spans for entered, left in span),
    )
