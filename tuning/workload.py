"""How much of an experiment is left, by what is on disk: trainings, steps, tests, what other programs train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dropgen.config import Component, Trial
from dropgen.platform.adaptation import build as build_adaptation
from dropgen.platform.evaluate import held_out_cases, known_evaluation
from dropgen.platform.evaluation.adapted import stable_trial, tries
from dropgen.platform.external import EXTERNALS
from dropgen.platform.methods import build as build_method
from dropgen.platform.train import Workbench
from dropgen.platform.training.checkpoint import load_checkpoint
from dropgen.platform.training.folds import FOLDS
from dropgen.platform.training.trial import finished
from dropgen.tuning.disk import weight_bytes
from dropgen.tuning.space import Plan, Space
from dropgen.tuning.standing import is_open, sampled, samples


@dataclass(frozen=True)
class MethodWork:
    """What an experiment asks of one method.

    Attributes:
        sets: Different hyperparameters.
        trials: Trainings in all, one per set and seed; a sampled space trains its best point alone with later seeds.
        done: Those that no run repeats: finished, diverged or stopped early.
        begun: Those of the others that go on from a checkpoint.
        steps: Training steps that are left.
        tests: Trained models that are left to be tested.
        example: One of the trials, of those that are left where there are any.
        weight_bytes: Of one network.
    """

    name: str
    sets: int
    seeds: int
    trials: int
    done: int
    begun: int
    steps: int
    tests: int
    example: Trial
    weight_bytes: int


@dataclass(frozen=True)
class AdaptationWork:
    """What a test-time method is applied to.

    Attributes:
        models: Trained models that are left for it.
        predictions: Of all of them, tuning on the validation cases included.
    """

    label: str
    models: int
    predictions: int


@dataclass(frozen=True)
class ExternalWork:
    """Trials of another program; `done` of them are on record, `commands` are the lines of the first that is not."""

    name: str
    trials: int
    done: int
    unavailable: str | None
    commands: tuple[str, ...]


def fixed_work(bench: Workbench, planned: Plan) -> list[MethodWork]:
    """Of every method whose trials are known beforehand."""
    names = dict.fromkeys(trial.method.name for trial in planned.fixed)
    return [_method_work(bench, [one for one in planned.fixed if one.method.name == name]) for name in names]


def _method_work(bench: Workbench, trials: Sequence[Trial]) -> MethodWork:
    left = [trial for trial in trials if is_open(bench, trial)]
    reached = [_reached(bench, trial) for trial in left]
    seeds = len({trial.seed for trial in trials})
    return MethodWork(
        name=trials[0].method.name,
        sets=len({trial.method.label for trial in trials}),
        seeds=seeds,
        trials=len(trials),
        done=len(trials) - len(left),
        begun=sum(step > 0 for step in reached),
        steps=sum(bench.trainings * bench.experiment.training.steps - step for step in reached),
        tests=_untested(bench, trials, len(trials), seeds),
        example=(left or list(trials))[0],
        weight_bytes=weight_bytes(bench, trials[0].method),
    )


def space_work(bench: Workbench, space: Space) -> MethodWork:
    """Of a method whose hyperparameters are sampled."""
    points, seeds = samples(bench, space), bench.experiment.seeds
    known = [trial for trial, _ in sampled(bench, space)]
    done = [trial for trial in known if not is_open(bench, trial)]
    reached = [_reached(bench, trial) for trial in known if trial not in done]
    trials = points + len(seeds) - 1
    left = max(0, trials - len(done))
    return MethodWork(
        name=space.method.name,
        sets=points,
        seeds=len(seeds),
        trials=trials,
        done=min(trials, len(done)),
        begun=sum(step > 0 for step in reached),
        steps=left * bench.trainings * bench.experiment.training.steps - sum(reached),
        tests=_untested(bench, known, trials, len(seeds)),
        example=Trial(method=space.corners()[0], seed=seeds[0]),
        weight_bytes=weight_bytes(bench, space.corners()[0]),
    )


def _reached(bench: Workbench, trial: Trial) -> int:
    """The step that an open trial goes on from."""
    folder = bench.folder(trial)
    done = len(list((folder / FOLDS).glob("*.json"))) * bench.experiment.training.steps
    states = [load_checkpoint(place / "last.ckpt") for place in (folder, *(folder / FOLDS).glob("*/"))]
    return done + sum(int(state["step"]) for state in states if state is not None)


def _untested(bench: Workbench, trials: Sequence[Trial], count: int, seeds: int) -> int:
    """How many of `count` models are left to be tested; with `search.test: chosen` one set of hyperparameters is."""
    count -= sum(not is_open(bench, trial) and not _trained(bench, trial) for trial in trials)  # diverged or stopped
    wanted = count if bench.experiment.search.test == "every" else min(count, seeds)
    tested = [trial for trial in trials if _trained(bench, trial) and known_evaluation(bench, trial, None) is not None]
    return max(0, wanted - len(tested))


def adaptation_work(bench: Workbench, planned: Plan, adapt: Component) -> AdaptationWork:
    """Of a test-time method on the models that it suits."""
    adaptation, experiment = build_adaptation(adapt), bench.experiment
    suited = [trial for trial in planned.fixed if adaptation.suits(build_method(trial.method))]
    left = [trial for trial in suited if not _adapted(bench, trial, adapt)]
    if experiment.search.test == "chosen":
        left = left[: len(experiment.seeds) * len({trial.method.name for trial in left})]
    each = tries(bench, adapt) + len(held_out_cases(bench.study, experiment.selection.rule))
    return AdaptationWork(adapt.label, len(left), len(left) * each)


def _adapted(bench: Workbench, trial: Trial, adapt: Component) -> bool:
    partner = stable_trial(bench.experiment, trial, adapt)
    ready = all(_trained(bench, one) for one in (trial, partner) if one is not None)
    return ready and known_evaluation(bench, trial, adapt) is not None


def _trained(bench: Workbench, trial: Trial) -> bool:
    return finished(bench.folder(trial)) is not None


def external_work(bench: Workbench, trials: Sequence[Trial]) -> tuple[ExternalWork, ...]:
    """Of every program that trains trials of its own."""
    found = []
    for name in dict.fromkeys(trial.method.name for trial in trials):
        own = [trial for trial in trials if trial.method.name == name]
        left = [trial for trial in own if EXTERNALS[name].known_result(bench, trial) is None]
        commands = tuple(step.shell for step in EXTERNALS[name].steps(bench, left[0])) if left else ()
        found.append(ExternalWork(name, len(own), len(own) - len(left), EXTERNALS[name].available(), commands))
    return tuple(found)
