"""Baselines that another program trains: what each one offers, and how an experiment's own methods are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from dropgen.config import LEAVE_ONE_OUT, Component, Experiment, Trial
from dropgen.console import warn
from dropgen.errors import ConfigError
from dropgen.platform.external import nnunet
from dropgen.platform.external.step import Step
from dropgen.platform.training.bench import Workbench, trials_of


class External(Protocol):
    """A module of this folder that runs another program.

    Its trials have a result and an evaluation like every other, and no bundle: they can be compared, not served.
    """

    def available(self) -> str | None:
        """Why it cannot run here, or None where it can."""

    def build(self, component: Component) -> Any:
        """Its hyperparameters, a dataclass; raises ConfigError where one is unknown or out of range."""

    def key(self, bench: Workbench, trial: Trial) -> str:
        """Digest of everything that a trial's result depends on."""

    def steps(self, bench: Workbench, trial: Trial) -> tuple[Step, ...]:
        """The commands that `run` calls, in order, none of them run."""

    def known_result(self, bench: Workbench, trial: Trial) -> dict[str, Any] | None:
        """What `run` would return at once, or None where there is work to do."""

    def run(self, bench: Workbench, trial: Trial, report: Callable[[str, int], None]) -> dict[str, Any]:
        """Trains, predicts and scores one trial; returns its result, with the summary under `evaluation`."""


EXTERNALS: dict[str, External] = {"nnunet": nnunet}


def split(experiment: Experiment) -> tuple[Experiment, tuple[Trial, ...]]:
    """Parts an experiment into what is trained here and the trials of other programs.

    Raises:
        ConfigError: Nothing is left to train here, or another program's option is wrong.
    """
    theirs = tuple(method for method in experiment.methods if method.name in EXTERNALS)
    if not theirs:
        return experiment, ()
    if experiment.selection.rule == LEAVE_ONE_OUT:
        raise ConfigError(
            f"{theirs[0].name} trains once, on the study's own split, and cannot be chosen by selection.rule = "
            f"{LEAVE_ONE_OUT}; leave it out or name another rule"
        )
    ours = tuple(method for method in experiment.methods if method not in theirs)
    if not ours:
        names = ", ".join(method.name for method in theirs)
        raise ConfigError(f"experiment '{experiment.name}' has only {names}; add a method to compare it with, as erm")
    trials = trials_of(experiment.model_copy(update={"methods": theirs}))
    for trial in trials:
        EXTERNALS[trial.method.name].build(trial.method)
    return experiment.model_copy(update={"methods": ours}), trials


def trained_here(experiment: Experiment) -> Experiment:
    """The experiment without what other programs train, for a verb that does not call them; says so."""
    ours, others = split(experiment)
    for name in dict.fromkeys(trial.method.name for trial in others):
        warn(f"{name} is left out here; its own program trains and tests it in `dropgen run`")
    return ours


def require_available(trials: tuple[Trial, ...]) -> None:
    """Refuses trials whose program is not installed, before anything is computed.

    Raises:
        ConfigError: With the reason.
    """
    for name in dict.fromkeys(trial.method.name for trial in trials):
        if reason := EXTERNALS[name].available():
            raise ConfigError(f"method {name} cannot run: {reason}")
