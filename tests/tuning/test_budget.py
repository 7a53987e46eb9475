"""What each method got of a search stands beside what it reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.config import Experiment
from dropgen.manifest import write_json
from dropgen.platform.training.trial import DIVERGED
from dropgen.tuning.budget import budget, budget_note
from dropgen.tuning.scheduling import STOPPED
from dropgen.tuning.search import open_bench
from dropgen.tuning.space import plan
from dropgen.tuning.standing import known_trials
from tests_support.tiny import tiny_experiment

METHODS = [{"name": "erm"}, {"name": "mixup", "p": [0.25, 0.5]}, {"name": "dropgen", "p": [0.25, 0.5]}]


def pretend(root: Path, experiment: Experiment, ends: dict[str, str]) -> list[dict[str, object]]:
    """The budget where trials ended as told, in a result otherwise."""
    planned = plan(experiment)
    bench = open_bench(experiment, root, planned)
    for trial in planned.fixed:
        end = ends.get(trial.label, "result.json")
        result = {"method": trial.method.name, "options": trial.method.options, "seed": trial.seed, "val_dice": 0.5}
        write_json(bench.folder(trial) / end, result)
    return budget(bench, known_trials(bench, planned))


def test_every_method_gets_each_of_its_settings_with_every_seed(root: Path) -> None:
    lines = pretend(root, tiny_experiment(root, methods=METHODS, seeds=[1, 2, 3]), {})
    assert [(line["method"], line["settings"], line["trials"], line["seeds"]) for line in lines] == [
        ("erm", 1, 3, 3), ("mixup", 2, 6, 3), ("dropgen", 2, 6, 3),
    ]  # fmt: skip
    assert budget_note(lines) == (
        "Trained: ERM 3 trials (1 setting), MixUp 6 trials (2 settings), DropGen 6 trials (2 settings). "
        "All chosen settings have 3 seeds."
    )


def test_what_ended_early_is_told_and_so_are_unequal_seeds(root: Path) -> None:
    ends = {
        "mixup p=0.25 seed=1": STOPPED, "mixup p=0.5 seed=1": STOPPED, "dropgen p=0.25 seed=2": DIVERGED,
        "dropgen p=0.5 seed=2": DIVERGED,
    }  # fmt: skip
    lines = pretend(root, tiny_experiment(root, methods=METHODS[1:], seeds=[1, 2, 3]), ends)
    note = budget_note(lines)
    assert "MixUp 6 trials (2 settings, 2 stopped early), DropGen 6 trials (2 settings, 2 diverged)" in note
    assert "All chosen settings have 2 seeds." in note
    lines[0]["seeds"] = 3
    assert "Not alike: the chosen settings have 2 to 3 seeds." in budget_note(lines)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_methods_of_equal_spaces_get_equal_trials_whatever_the_sampler(root: Path, sampler: str) -> None:
    search = {"sampler": sampler, "trials": 2, "scheduler": "none" if sampler == "grid" else "asha"}
    planned = plan(tiny_experiment(root, methods=METHODS[1:], seeds=[1, 2], search=search))
    fixed = [sum(trial.method.name == name for trial in planned.fixed) for name in ("mixup", "dropgen")]
    sizes = [space.size for space in planned.spaces]
    assert (fixed, sizes) == (([4, 4], []) if sampler == "grid" else ([0, 0], [2, 2]))
