"""One tiny experiment, trained with its probes and evaluated, as analyses see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.results import group_rows
from dropgen.platform.train import train_trial, trials_of
from tests_support.tiny import tiny_bench


def row_of(result: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    copied = ("method", "p", "options", "seed", "steps", "val_dice", "folder")
    return {name: result[name] for name in copied} | {
        "trial": result["key"],
        "selected": result["method"] == "dropgen",
        "source_dice": summary["source_dice"],
        "target_dice": summary["target_dice"],
        "adaptation": None,
        "evaluation": str(Path(result["folder"]) / "evaluation"),
    }


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    bench = tiny_bench(
        tmp_path_factory.mktemp("scene"),
        methods=[{"name": "erm"}, {"name": "dropgen", "p": 0.25}],
        training={"steps": 40, "validate_every": 20, "checkpoint_every": 20},
        analyses=["condition1"],
    )
    trials = trials_of(bench.experiment)
    rows = [row_of(train_trial(bench, trial), evaluate_trial(bench, trial)) for trial in trials]
    return Scene(bench, group_rows(rows))
