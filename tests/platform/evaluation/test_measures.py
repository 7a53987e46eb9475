from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.config import Evaluation
from dropgen.features.studies.study import Case, Study
from dropgen.platform.evaluation.measures import IN_MM, MEASURES, how, measure, summarise_measures

CLASSES = ("background", "organ", "vessel")
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def case(subject: str = "p", domain: str = "new", name: str = "c") -> Case:
    return Case(name, subject, domain, None, "test", (Path(name),), Path(name))


def study(**options: Any) -> Study:
    return Study("toy", CLASSES, (1, 1, 1), (16, 16, 16), "minmax", True, (case(),), **options)


def labels(organ: int = 0, vessel: int = 0) -> np.ndarray:
    """Blocks of so many slices."""
    mask = np.zeros((12, 6, 4), np.uint8)
    mask[:organ, :3] = 1
    mask[:vessel, 3:] = 2
    return mask


@given(st.integers(0, 2**32 - 1))
def test_every_measure_has_one_value_per_class_and_volumes_are_counted(seed: int) -> None:
    truth, prediction = np.random.default_rng(seed).integers(0, 3, (2, 5, 4, 3), dtype=np.uint8)
    truth[0, 0, :2] = 1, 2
    found = measure(prediction, truth, AFFINE, case(), study(tubular=("vessel",)), 2.0)
    assert list(found) == list(MEASURES)
    for label in (1, 2):
        true, predicted = int((truth == label).sum()), int((prediction == label).sum())
        assert found["volume_error_ml"][label - 1] == pytest.approx((predicted - true) * 20 / 1000)
        assert found["volume_error_relative"][label - 1] == pytest.approx(predicted / true - 1)
    assert np.isnan(found["cldice"][0])
    assert 0 <= found["cldice"][1] <= 1


def test_a_placeholder_spacing_gives_nothing_in_mm_and_everything_else() -> None:
    toy = study(placeholder_spacing=("new",))
    real, guessed = (
        measure(labels(5, 4), labels(6, 6), AFFINE, case(domain=domain), toy, 2.0) for domain in ("old", "new")
    )
    for name in MEASURES:
        if name in IN_MM:
            assert np.isfinite(real[name]).all()
            assert np.isnan(guessed[name]).all()
        else:
            np.testing.assert_array_equal(real[name], guessed[name])


def test_a_missed_class_has_no_distance_but_is_counted() -> None:
    found = measure(labels(5), labels(6, 6), AFFINE, case(), study(tubular=("vessel",)), 2.0)
    assert {name: float(found[name][1]) for name in ("dice", "cldice", "nsd", "missed")} == {
        "dice": 0, "cldice": 0, "nsd": 0, "missed": 1,
    }  # fmt: skip
    assert np.isnan(found["hd95_mm"][1])
    assert found["missed"][0] == 0


def test_a_class_that_is_not_there_is_told_by_how_often_and_how_much_of_it_is_found() -> None:
    found = measure(labels(6, 2), labels(6), AFFINE, case(), study(tubular=("vessel",)), 2.0)
    assert (found["false_positive"][1], found["false_positive_voxels"][1]) == (1, 2 * 3 * 4)
    told = {name for name in MEASURES if not np.isnan(found[name][1])}
    assert told == {"false_positive", "false_positive_voxels"}
    assert np.isnan(found["false_positive"][0])
    assert measure(labels(6), labels(6), AFFINE, case(), study(), 2.0)["false_positive"][1] == 0


def test_cases_of_a_subject_are_averaged_first_and_volume_errors_of_both_signs_do_not_cancel() -> None:
    toy = study()
    scans = [("p", 4), ("p", 8), ("q", 6)]
    scores = [
        (case(who, name=str(i)), measure(labels(size), labels(6), AFFINE, case(), toy, 2.0))
        for i, (who, size) in enumerate(scans)
    ]
    spread = summarise_measures(scores, toy)["classes"]["new"]["organ"]["volume_error_relative"]
    assert spread["n"] == 2
    assert spread["mean"] == pytest.approx((1 / 3 + 0) / 2)
    rate = summarise_measures(scores, toy)["classes"]["new"]["vessel"]["false_positive"]
    assert (rate["mean"], rate["n"]) == (0, 2)
    json.loads(json.dumps(summarise_measures(scores, toy)), parse_constant=lambda name: pytest.fail(name))


def test_what_the_measures_depend_on_changes_their_key() -> None:
    plain = how(study(), Evaluation())
    assert how(study(), Evaluation(overlap=0.25)) == plain
    for other in (
        how(study(), Evaluation(nsd_tolerance=1.0)),
        how(study(tubular=("vessel",)), Evaluation()),
        how(study(placeholder_spacing=("new",)), Evaluation()),
    ):
        assert other != plain
