"""The training loop: plain PyTorch, exact on resume, the same for one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dropgen.config import Training
from dropgen.errors import DivergenceError
from dropgen.platform.methods import Method
from dropgen.platform.training.batches import Batches, Prefetched
from dropgen.platform.training.checkpoint import load_checkpoint, save_checkpoint
from dropgen.platform.training.learner import Learner
from dropgen.platform.training.workers import Workers

LOSS_EVERY = 20
CONVERGED_SHARE, CONVERGED_GAIN = 0.2, 0.01


@dataclass(frozen=True)
class Progress:
    """Where a trial stands.

    Attributes:
        val_dice: Mean validation Dice in 0..1 where this step was validated, else None.
        data_wait: Share of the training time spent waiting for batches.
    """

    step: int
    steps: int
    loss: float
    val_dice: float | None
    data_wait: float


@dataclass
class History:
    """What a trial has seen so far; part of every checkpoint."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    train_seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def best(self) -> tuple[int, float]:
        """Step and Dice of the best validation, the earliest among equals."""
        return max(self.validation, key=lambda entry: (entry[1], -entry[0]), default=(0, -math.inf))

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for batches."""
        return self.wait_seconds / self.train_seconds if self.train_seconds else 0.0

    def converged(self, steps: int) -> bool:
        """Whether the last 20% of the steps added less than one point (0.01) of validation Dice."""
        early = [dice for step, dice in self.validation if step <= (1 - CONVERGED_SHARE) * steps]
        return bool(early) and self.best[1] - max(early) < CONVERGED_GAIN


@dataclass(frozen=True)
class Task:
    """All that one trial's loop needs.

    Attributes:
        validate: Mean validation Dice of the network as it stands; takes part on every rank.
        keep: Stores the network as the best so far; called on rank 0.
        folder: Where `last.ckpt` lives.
    """

    network: nn.Module
    method: Method
    batches: Batches
    training: Training
    validate: Callable[[], float]
    keep: Callable[[], None]
    folder: Path
    device: str


def fit(task: Task, workers: Workers, on_progress: Callable[[Progress], None]) -> History:
    """Trains from the last checkpoint, or from the start, to the last step.

    Validates every `validate_every` steps and after the last one; keeps the best network.

    Raises:
        DivergenceError: A loss is not finite; names the step, the method and the last finite loss.
    """
    training = task.training
    learner = Learner(task.network, task.method, training, task.device)
    start, history = _restore(task, learner)
    wrapped = workers.wrap(learner.network)
    pending: list[tuple[int, Tensor]] = []
    loader = Prefetched(task.batches, start, training.steps)
    began, waited_before, spent_before = time.perf_counter(), history.wait_seconds, history.train_seconds
    paused = 0.0
    for index, batch in loader:
        step = index + 1
        pending.append((step, learner.step(wrapped, batch)))

        validating = step % training.validate_every == 0 or step == training.steps
        saving = validating or step % training.checkpoint_every == 0
        if not (saving or step % LOSS_EVERY == 0):
            continue
        _record(task, history, pending, workers)
        history.train_seconds = spent_before + time.perf_counter() - began - paused
        history.wait_seconds = waited_before + loader.waited
        pause_began = time.perf_counter()
        dice = _validate(task, history, step, workers) if validating else None
        if saving and workers.rank == 0:
            _save(task, learner, step, history)
        on_progress(Progress(step, training.steps, history.losses[-1][1], dice, history.data_wait))
        paused += time.perf_counter() - pause_began
    return history


def _validate(task: Task, history: History, step: int, workers: Workers) -> float:
    dice = task.validate()
    history.validation.append((step, dice))
    if workers.rank == 0 and history.best[0] == step:
        task.keep()
    return dice


def _record(task: Task, history: History, pending: list[tuple[int, Tensor]], workers: Workers) -> None:
    values = torch.stack([loss.float() for _, loss in pending]).tolist()
    values = [sum(column) / workers.size for column in zip(*workers.gather(values), strict=True)]
    steps = [step for step, _ in pending]
    pending.clear()
    finite = history.losses[-1][1] if history.losses else None
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            last = "no loss was finite" if finite is None else f"the last finite loss was {finite:.4f}"
            raise DivergenceError(
                f"{task.method.name}: loss is {value} at step {step}; {last}; lower training.learning_rate", step
            )
        finite = value
        if step == steps[-1] or step == 1:
            history.losses.append((step, value))


def _save(task: Task, learner: Learner, step: int, history: History) -> None:
    save_checkpoint(
        task.folder / "last.ckpt",
        {
            "step": step,
            "network": learner.network.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "scheduler": learner.scheduler.state_dict(),
            "losses": history.losses,
            "validation": history.validation,
            "train_seconds": history.train_seconds,
            "wait_seconds": history.wait_seconds,
        },
    )


def _restore(task: Task, learner: Learner) -> tuple[int, History]:
    state = load_checkpoint(task.folder / "last.ckpt")
    if state is None:
        return 0, History()
    learner.network.load_state_dict(state["network"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    history = History(
        [tuple(entry) for entry in state["losses"]],
        [tuple(entry) for entry in state["validation"]],
        state["train_seconds"],
        state["wait_seconds"],
    )
    return int(state["step"]), history
