"""Work for Ray actors, several pieces in hand in each; what a dying actor had in hand is tried once more, alone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from dropgen.errors import DropGenError

W = TypeVar("W")
R = TypeVar("R")


@dataclass
class Undone(Generic[W]):
    """What did not end in a result.

    Attributes:
        lost: Work whose actor died, with what Ray says of its death.
        crashes: Work that met a bug of this program.
    """

    lost: list[tuple[W, str]] = field(default_factory=list)
    crashes: list[tuple[W, BaseException]] = field(default_factory=list)


def work_off(
    works: Sequence[W],
    hire: Callable[[int], Any],
    actors: int,
    in_flight: int,
    on_result: Callable[[R], None],
    on_crash: Callable[[W], None],
    again: Callable[[W], W] = lambda work: work,
) -> Undone[W]:
    """Does all work; the caller is connected to Ray.

    No more is handed to an actor than it may have in hand, so what waits takes no memory. An actor that dies loses all
    that it had in hand. That work is tried once more, one piece at a time in each actor, so that the one that it dies
    of is known and costs no other.

    Args:
        works: One piece each.
        hire: Makes an actor whose `run` takes so many pieces at once.
        actors: How many.
        in_flight: Pieces that an actor has in hand at once.
        on_result: Hears of every result as it comes.
        on_crash: Hears of every bug as it comes.
        again: What a piece that is tried once more is replaced with.

    Returns:
        What its actor died of twice, and all crashes.

    Raises:
        DropGenError: As `run` raised it: what no other piece would escape.
    """
    first = _shift(works, hire, actors, in_flight, on_result, on_crash)
    suspects = [again(work) for work, _ in first.lost]
    second = _shift(suspects, hire, min(actors, len(suspects)), 1, on_result, on_crash)
    return Undone(second.lost, first.crashes + second.crashes)


def _shift(
    works: Sequence[W],
    hire: Callable[[int], Any],
    actors: int,
    in_flight: int,
    on_result: Callable[[R], None],
    on_crash: Callable[[W], None],
) -> Undone[W]:
    crew = [hire(in_flight) for _ in range(actors)]
    queue, undone = deque(works), Undone[W]()
    busy: dict[Any, tuple[int, Any, W]] = {}  # a running piece to its seat in the crew and the actor that has it
    while queue or busy:
        loads = Counter(seat for seat, _, _ in busy.values())
        seat = min(range(actors), key=loads.__getitem__)
        if queue and loads[seat] < in_flight:
            work = queue.popleft()
            busy[crew[seat].run.remote(work)] = (seat, crew[seat], work)
            continue
        (finished,), _ = ray.wait(list(busy), num_returns=1)
        seat, actor, work = busy.pop(finished)
        try:
            result: R = ray.get(finished)
        except RayActorError as error:
            undone.lost.append((work, str(error).strip().splitlines()[0]))
            if crew[seat] is actor:  # the first to tell of this death
                crew[seat] = hire(in_flight)
        except RayTaskError as error:
            if isinstance(error.cause, DropGenError):
                raise error.cause from None
            undone.crashes.append((work, error.cause))
            on_crash(work)
        else:
            on_result(result)
    return undone
