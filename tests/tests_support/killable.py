"""Trainings in processes of their own that a test may kill at any step."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from dropgen.platform.train import train_trial, trials_of
from tests_support.tiny import tiny_bench


@dataclass(frozen=True)
class Training:
    """One that runs.

    Attributes:
        process: Its process.
        told: Where it says every step that it has done; closed with the process.
    """

    process: ForkServerProcess
    told: Connection

    def step(self) -> int | None:
        """Waits for the next step that is done; None once the process has ended."""
        try:
            step: int = self.told.recv()
        except EOFError:
            return None
        return step


def start_training(root: Path, **changes: Any) -> Training:
    """Trains the first trial of a tiny experiment from where the last attempt stopped.

    The process is forked from a server that has imported everything once, which would take each of them eight seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_trial.__module__])  # this module is not where the server looks
    told, teller = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(root, changes, teller), daemon=True)
    process.start()
    teller.close()  # the process alone holds it, so that its end is the end of what it tells
    return Training(process, told)


def _train(root: Path, changes: dict[str, Any], teller: Connection) -> None:
    bench = tiny_bench(root, **changes)
    train_trial(bench, trials_of(bench.experiment)[0], lambda now: teller.send(now.step))
