"""A crew of workers on Ray that takes cases from their files into the store, several at a time in each worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from dropgen.features.actors import work_off
from dropgen.features.worker import Outcome, Recipe, Work, Worker

IN_FLIGHT = 3  # volumes per worker: one in the extractor, one being read or waiting for it, one being written


def run_crew(
    works: Sequence[Work],
    recipe: Recipe,
    workers: int,
    in_flight: int,
    on_case: Callable[[str | None], None] = lambda problem: None,
) -> tuple[list[Outcome], list[str]]:
    """Does all work; the caller is connected to Ray.

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
    outcomes: list[Outcome] = []

    def hire(in_flight: int) -> Any:
        actor: Any = ray.remote(Worker)
        options = actor.options(num_cpus=1, max_concurrency=in_flight, scheduling_strategy="SPREAD")
        return options.remote(recipe)

    def over(outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_case(outcome.problem)

    undone = work_off(works, hire, workers, in_flight, over, lambda work: on_case(None))
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    for work, cause in undone.lost:
        problem = f"case {work.case.id}: its worker died twice, likely out of memory ({cause}); try --workers 1"
        on_case(problem)
        problems.append(problem)
    if undone.crashes:
        work, crash = undone.crashes[0]
        raise RuntimeError(f"case {work.case.id}: {type(crash).__name__}: {crash}")
    return outcomes, problems


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
