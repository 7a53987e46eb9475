"""A crew of workers on Ray that takes cases from their files into the store, several at a time in each worker."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from dropgen.errors import DropGenError
from dropgen.features.worker import Outcome, Recipe, Work, Worker

IN_FLIGHT = 3  # volumes per worker: one in the extractor, one being read or waiting for it, one being written


@dataclass
class Shift:
    """What a crew did.

    Attributes:
        outcomes: Of every case whose worker lived.
        lost: Cases that a dying worker had in hand, with what Ray says of its death.
        crashes: Bugs of this program.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    lost: list[tuple[Work, str]] = field(default_factory=list)
    crashes: list[RuntimeError] = field(default_factory=list)


def run_crew(
    works: Sequence[Work],
    recipe: Recipe,
    workers: int,
    in_flight: int,
    on_case: Callable[[str | None], None] = lambda problem: None,
) -> tuple[list[Outcome], list[str]]:
    """Does all work; the caller is connected to Ray.

    A worker that dies loses all that it had in hand. Those cases are tried once more, one at a time in each worker, so
    that the case that it dies of is known and costs no other.

    Args:
        works: One per case.
        recipe: What they share.
        workers: Processes, each with one CPU, spread over the nodes.
        in_flight: Cases that a worker has in hand at once.
        on_case: Hears of every case that is over, and what was wrong with it.

    Returns:
        What the workers tell, and what was wrong with broken cases.

    Raises:
        DropGenError: What no other case would escape, as `Worker.run`.
        RuntimeError: A bug; raised when all other cases are done.
    """
    first = _work_through(works, recipe, workers, in_flight, on_case)
    suspects = [work for work, _ in first.lost]
    again = _work_through(suspects, recipe, min(workers, len(suspects)), 1, on_case)
    problems = [outcome.problem for outcome in (*first.outcomes, *again.outcomes) if outcome.problem]
    for work, cause in again.lost:
        problem = f"case {work.case.id}: its worker died twice, likely out of memory ({cause}); try --workers 1"
        on_case(problem)
        problems.append(problem)
    if crashes := [*first.crashes, *again.crashes]:
        raise crashes[0]
    return [*first.outcomes, *again.outcomes], problems


def _work_through(
    works: Sequence[Work], recipe: Recipe, workers: int, in_flight: int, on_case: Callable[[str | None], None]
) -> Shift:
    actor: Any = ray.remote(Worker)
    hire = actor.options(num_cpus=1, max_concurrency=in_flight, scheduling_strategy="SPREAD").remote
    crew = [hire(recipe) for _ in range(workers)]
    queue, shift = deque(works), Shift()
    busy: dict[Any, tuple[int, Any, Work]] = {}  # a running case to its seat in the crew and the worker that has it
    while queue or busy:
        loads = Counter(seat for seat, _, _ in busy.values())
        seat = min(range(workers), key=loads.__getitem__)
        if queue and loads[seat] < in_flight:
            work = queue.popleft()
            busy[crew[seat].run.remote(work)] = (seat, crew[seat], work)
            continue
        (finished,), _ = ray.wait(list(busy), num_returns=1)
        seat, worker, work = busy.pop(finished)
        try:
            outcome: Outcome = ray.get(finished)
        except RayActorError as error:
            shift.lost.append((work, str(error).strip().splitlines()[0]))
            if crew[seat] is worker:  # the first to tell of this death
                crew[seat] = hire(recipe)
        except RayTaskError as error:
            if isinstance(error.cause, DropGenError):
                raise error.cause from None
            shift.crashes.append(RuntimeError(f"case {work.case.id}: {type(error.cause).__name__}: {error.cause}"))
            on_case(None)
        else:
            shift.outcomes.append(outcome)
            on_case(outcome.problem)
    return shift


@dataclass(frozen=True)
class Effort:
    """How one worker spent its time, from its first case's begin to its last case's end.

    Attributes:
        worker: The host and the process.
        volumes: Cases it ended.
        seconds: Wall time.
        extracting: Seconds of them in which the extractor was at work.
    """

    worker: str
    volumes: int
    seconds: float
    extracting: float

    @property
    def busy(self) -> float:
        """Share of the wall time in which the extractor was at work."""
        return self.extracting / self.seconds if self.seconds else 0.0


def efforts(outcomes: Sequence[Outcome]) -> list[Effort]:
    """One entry per worker."""
    of_worker: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        of_worker[outcome.worker].append(outcome)
    return [
        Effort(
            worker,
            len(own),
            max(outcome.ended for outcome in own) - min(outcome.began for outcome in own),
            sum(outcome.extracting for outcome in own),
        )
        for worker, own in sorted(of_worker.items())
    ]


def extractor_busy(found: Sequence[Effort]) -> float | None:
    """Share of the workers' wall time in which their extractors were at work; None where none was asked for."""
    seconds = sum(effort.seconds for effort in found)
    extracting = sum(effort.extracting for effort in found)
    return extracting / seconds if extracting else None
