"""The training loop: plain PyTorch, exact on resume, the same for one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dropgen.config import Training
from dropgen.errors import DivergenceError
from dropgen.features.studies.labelling import Labelling
from dropgen.platform.methods import Method
from dropgen.platform.training.batches import Batches, Prefetched
from dropgen.platform.training.checkpoint import load_checkpoint, save_checkpoint
from dropgen.platform.training.learner import Learner
from dropgen.platform.training.losses import PLAIN
from dropgen.platform.training.probe import Probe
from dropgen.platform.training.workers import Workers

LAST = "last.ckpt"
LOSS_EVERY = 20
CONVERGED_SHARE, CONVERGED_GAIN = 0.2, 0.01


@dataclass(frozen=True)
class Progress:
    """Where a trial stands.

    Attributes:
        val_dice: Mean validation Dice in 0..1 where this step was validated, else None.
        data_wait: Share of the training time spent waiting for batches.
        validated_step: The last step that was validated, whichever process did it; 0 before the first.
        best_dice: The best validation Dice so far, likewise.
    """

    step: int
    steps: int
    loss: float
    val_dice: float | None
    data_wait: float
    validated_step: int
    best_dice: float


@dataclass
class History:
    """What a trial has seen so far; part of every checkpoint.

    Attributes:
        losses: Step and loss.
        validation: Step and Dice by the selection rule.
        beside: The same by the rule that only watches, where one does.
        probes: Step, cosine (None where there is none) and inner product of condition 1, where it is asked for.
        resumed: Steps from which a later process went on.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    beside: list[tuple[int, float]] = field(default_factory=list)
    probes: list[tuple[int, float | None, float]] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)
    train_seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def best(self) -> tuple[int, float]:
        """Step and Dice of the best validation, the earliest among equals."""
        return best_of(self.validation)

    @property
    def best_beside(self) -> tuple[int, float] | None:
        """The same by the rule that only watches; None where it did not see every validation."""
        if not self.beside or [step for step, _ in self.beside] != [step for step, _ in self.validation]:
            return None
        return best_of(self.beside)

    @property
    def data_wait(self) -> float:
        """Share of the training time spent waiting for batches."""
        return self.wait_seconds / self.train_seconds if self.train_seconds else 0.0

    def converged(self, steps: int) -> bool:
        """Whether the last 20% of the steps added less than one point (0.01) of validation Dice to what was learnt.

        A curve that never left 0 is flat and has not converged: nothing was learnt yet.
        """
        early = [dice for step, dice in self.validation if step <= (1 - CONVERGED_SHARE) * steps]
        return bool(early) and max(early) >= CONVERGED_GAIN and self.best[1] - max(early) < CONVERGED_GAIN


def best_of(curve: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The entry of the best Dice, the earliest among equals."""
    return max(curve, key=lambda entry: (entry[1], -entry[0]), default=(0, -math.inf))


@dataclass(frozen=True)
class Judge:
    """A rule that keeps the best network so far.

    Attributes:
        score: Mean validation Dice of the network as it stands at a step; takes part on every rank.
        keep: Stores the network; called on rank 0.
    """

    score: Callable[[int], float]
    keep: Callable[[], None]


@dataclass(frozen=True)
class Task:
    """All that one trial's loop needs.

    Attributes:
        rule: The selection rule.
        beside: A rule that only watches, to tell what it would have chosen; None where nobody asks.
        folder: Where `last.ckpt` lives.
        labelling: What label values mean.
        probe: What is measured of the network on the way; None where nobody asks.
    """

    network: nn.Module
    method: Method
    batches: Batches
    training: Training
    rule: Judge
    beside: Judge | None
    folder: Path
    device: str
    labelling: Labelling = PLAIN
    probe: Probe | None = None


def fit(task: Task, workers: Workers, on_progress: Callable[[Progress], None]) -> History:
    """Trains from the last checkpoint, or from the start, to the last step.

    Validates every `validate_every` steps and after the last one; keeps the best network.

    Raises:
        DivergenceError: A loss is not finite; names the step, the method and the last finite loss.
    """
    training = task.training
    learner = Learner(task.network, task.method, training, task.device, task.labelling)
    start, history = _restore(task, learner)
    wrapped = workers.wrap(learner.network)
    pending: list[tuple[int, Tensor]] = []
    loader = Prefetched(task.batches, start, training.steps)
    began, waited_before, spent_before = time.perf_counter(), history.wait_seconds, history.train_seconds
    paused = 0.0
    for index, batch in loader:
        step = index + 1
        pending.append((step, learner.step(wrapped, batch)))
        if task.probe is not None and workers.rank == 0 and task.probe.due(step):
            pause_began = time.perf_counter()
            history.probes.append((step, *task.probe(learner.network)))
            paused += time.perf_counter() - pause_began

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
        on_progress(_progress(history, step, training.steps, dice))
        paused += time.perf_counter() - pause_began
    return history


def _progress(history: History, step: int, steps: int, dice: float | None) -> Progress:
    validated = history.validation[-1][0] if history.validation else 0
    best = max((dice for _, dice in history.validation if math.isfinite(dice)), default=0.0)
    return Progress(step, steps, history.losses[-1][1], dice, history.data_wait, validated, best)


def _validate(task: Task, history: History, step: int, workers: Workers) -> float:
    for judge, curve in ((task.rule, history.validation), (task.beside, history.beside)):
        if judge is not None:
            curve.append((step, judge.score(step)))
            if workers.rank == 0 and best_of(curve)[0] == step:
                judge.keep()
    return history.validation[-1][1]


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
        task.folder / LAST,
        {
            "step": step,
            "network": learner.network.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "scheduler": learner.scheduler.state_dict(),
            "losses": history.losses,
            "validation": history.validation,
            "beside": history.beside,
            "probes": history.probes,
            "resumed": history.resumed,
            "train_seconds": history.train_seconds,
            "wait_seconds": history.wait_seconds,
        },
    )


def _restore(task: Task, learner: Learner) -> tuple[int, History]:
    state = load_checkpoint(task.folder / LAST)
    if state is None:
        return 0, History()
    learner.network.load_state_dict(state["network"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    history = History(
        [tuple(entry) for entry in state["losses"]],
        [tuple(entry) for entry in state["validation"]],
        [tuple(entry) for entry in state["beside"]],
        [tuple(entry) for entry in state["probes"]],
        [*state["resumed"], int(state["step"])],
        state["train_seconds"],
        state["wait_seconds"],
    )
    return int(state["step"]), history
