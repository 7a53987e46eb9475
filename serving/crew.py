"""Models in processes of their own on Ray, each with several scans in hand.

Voxels never leave the process that read them: what travels is a scan's place and what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dropgen.features.cluster import connect, require_shared  # isort: skip  (first: settings that ray reads on import)
import ray
import torch
from ray.exceptions import RayTaskError

from dropgen import memory
from dropgen.errors import DropGenError
from dropgen.features.actors import work_off
from dropgen.platform.bundle import SPEC_FILE
from dropgen.serving.backend import LocalModel, Recipe
from dropgen.serving.cases import Scan
from dropgen.serving.ledger import LEDGER_FILE, Outcome
from dropgen.serving.line import Done, Line, Task
from dropgen.serving.threads import IN_FLIGHT, OnDone

Say = Callable[[str], None]


@dataclass(frozen=True)
class Crew:
    """How many work.

    Attributes:
        workers: Processes with a model each.
        in_flight: Scans that each has in hand.
        address: A running cluster; by default as `cluster.connect`.
        threads: CPU threads of each model; by default its share of the cores.
    """

    workers: int
    in_flight: int = IN_FLIGHT
    address: str | None = None
    threads: int | None = None


class Worker:
    """A model in a process of its own.

    Args:
        recipe: Which model.
        line: The way of every scan.
        workers: How many processes share this machine.
        threads: CPU threads of the model.
    """

    def __init__(self, recipe: Recipe, line: Line, workers: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._line = line
        self._model: LocalModel | DropGenError
        try:
            self._model = LocalModel(recipe, workers)
        except DropGenError as error:  # Ray would tell of it as of a dead process
            self._model = error

    def run(self, task: Task) -> Done:
        """See `Line.take`."""
        model = self._opened()
        return self._line.take(task, model.segment, model.segmenter.spec.training)

    def about(self, scans: Sequence[Scan], in_flight: int) -> list[str]:
        """See `LocalModel.about`."""
        return self._opened().about(scans, in_flight)

    def _opened(self) -> LocalModel:
        if isinstance(self._model, DropGenError):
            raise self._model
        return self._model


def work_on_ray(tasks: Sequence[Task], line: Line, recipe: Recipe, crew: Crew, on_done: OnDone, say: Say) -> None:
    """Does all tasks in processes of their own, on a GPU each where there are any.

    A worker that dies costs no case: what it had in hand is tried once more, alone, and what it dies of twice is told
    as a failure.

    Args:
        tasks: One per scan.
        line: The way of every scan.
        recipe: The model.
        crew: How many work.
        on_done: Hears of every task as it ends.
        say: Hears what the model tells before the first scan is read.

    Raises:
        DropGenError: The model cannot be loaded, the masks cannot be written, or a node does not see the folders.
    """
    with connect(crew.address, cpus=crew.workers):
        files = (recipe.bundle / SPEC_FILE, tasks[0].scan.paths[0], line.target / LEDGER_FILE)
        require_shared([file for file in files if file.is_file()])
        threads = crew.threads or max(1, cores() // crew.workers)
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        actor: Any = ray.remote(Worker)

        asked = False

        def hire(in_flight: int) -> Any:
            nonlocal asked
            options = actor.options(
                num_cpus=1, num_gpus=gpus, max_concurrency=in_flight, scheduling_strategy="SPREAD",
                runtime_env={"env_vars": memory.ONE_ARENA},
            )  # fmt: skip
            worker = options.remote(recipe, line, crew.workers, threads)
            if not asked:
                asked = True
                for text in _answer(worker.about.remote([task.scan for task in tasks], in_flight)):
                    say(text)
            return worker

        undone = work_off(
            tasks, hire, crew.workers, crew.in_flight, on_done, lambda _: None, lambda task: replace(task, again=True)
        )
        if undone.crashes:
            task, error = undone.crashes[0]
            raise RuntimeError(f"{task.scan.case}: {type(error).__name__}: {error}")
        for task, cause in undone.lost:
            reason = f"its worker died twice at it, likely out of memory ({cause}); see dropgen segment --in-flight"
            on_done(Done(task, Outcome(task.scan.case, task.scan.file, "failed", reason), None))


def cores() -> int:
    """Processors of the node that has most."""
    return int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))


def _answer(reference: Any) -> list[str]:
    try:
        told: list[str] = ray.get(reference)
        return told
    except RayTaskError as error:
        if isinstance(error.cause, DropGenError):
            raise error.cause from None
        raise
