"""One slice of every method: the Dice beside it are those of the evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.slices import analyse
from dropgen.platform.evaluation.results import scored_cases
from dropgen.platform.evaluation.touches import read_touches


def test_every_method_stands_beside_the_truth_best_first_with_the_dice_of_its_evaluation(scene: Scene) -> None:
    folder = scene.bench.root / scene.bench.experiment.name
    before = read_touches(folder)
    found = analyse(scene)
    titles = [axis.get_title() for axis in found.figure.axes if axis.get_title()]
    assert titles[:2] == ["image", "ground truth"]
    assert set(titles[2:]) == {group.name for group in scene.groups}
    means = [row for row in found.rows if row["class"] == "mean"]
    assert [row["model"] for row in means] == titles[2:]
    assert [row["dice"] for row in means] == sorted((row["dice"] for row in means), reverse=True)
    for group in scene.groups:
        (own,) = [row for row in means if row["model"] == group.name]
        (scored,) = [case for case in scored_cases(Path(group.lead["evaluation"])) if case.case == own["case"]]
        assert own["dice"] == pytest.approx(scored.mean)
    assert read_touches(folder) == before
