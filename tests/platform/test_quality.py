from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dropgen.platform.evaluation.quality import ClassRecord, find_classes, flags, record_classes

CLASSES = ("background", "liver", "spleen")


def boxes(*placed: tuple[int, tuple[slice, slice, slice]]) -> np.ndarray:
    mask = np.zeros((20, 20, 20), np.uint8)
    for value, box in placed:
        mask[box] = value
    return mask


def cube(start: int, edge: int) -> tuple[slice, slice, slice]:
    return (slice(start, start + edge),) * 3


def test_volumes_fragments_and_the_largest_share_are_counted_per_class() -> None:
    mask = boxes((1, cube(0, 3)), (1, cube(5, 2)), (1, (slice(10, 11),) * 3), (2, cube(14, 4)))
    found = find_classes(mask, 0.5, CLASSES)
    assert (found["liver"].ml, found["liver"].fragments) == (0.5 * (27 + 8 + 1), 3)
    assert found["liver"].share == pytest.approx(27 / 36)
    assert (found["spleen"].ml, found["spleen"].fragments, found["spleen"].share) == (32, 1, 1)
    touching = boxes((1, cube(0, 2)), (1, cube(2, 2)))
    assert find_classes(touching, 1, CLASSES)["liver"].fragments == 1  # over a corner


@given(mask=arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 2)))
def test_every_voxel_of_a_class_is_in_its_volume(mask: np.ndarray) -> None:
    for value, name in enumerate(CLASSES[1:], 1):
        one = find_classes(mask, 2.0, CLASSES)[name]
        assert one.ml == 2 * np.count_nonzero(mask == value)
        assert (one.fragments > 0) == (one.share > 0) == (mask == value).any()


def test_one_case_more_like_those_of_the_training_is_rarely_called_odd_and_a_halved_organ_always() -> None:
    generator, odd = np.random.default_rng(0), 0
    for _ in range(2000):
        logs = generator.normal(7, 0.2, 11)
        record = ClassRecord(cases=10, present=10, log_ml=logs[:10].mean(), log_sd=logs[:10].std(ddof=1))
        assert record.interval_ml is not None
        odd += not record.interval_ml[0] <= math.exp(logs[10]) <= record.interval_ml[1]
    assert odd <= 8  # 2 are expected; 9 or more have a chance of 2e-4
    steady = ClassRecord(cases=50, present=50, log_ml=math.log(100), log_sd=0.1)
    assert steady.interval_ml is not None and steady.interval_ml[0] > 50


def test_what_the_training_labels_say_is_recorded() -> None:
    labels = [boxes((1, cube(0, edge)), (2, cube(15, 1))) for edge in (4, 5, 6)]
    labels.append(boxes((1, cube(0, 5)), (1, cube(8, 5))))
    records = record_classes(iter(labels), 0.001, CLASSES)
    liver, spleen = records["liver"], records["spleen"]
    assert (liver.cases, liver.present, spleen.present) == (4, 4, 3)
    logs = np.log(np.array([64, 125, 216, 250]) / 1000)
    assert (liver.log_ml, liver.log_sd) == (pytest.approx(logs.mean()), pytest.approx(logs.std(ddof=1)))
    assert (liver.least_share, spleen.least_share) == (0.5, 1)
    empty = record_classes(iter([]), 1, CLASSES)["liver"]
    assert (empty.cases, empty.present, empty.interval_ml) == (0, 0, None)


def test_a_mask_like_those_of_the_training_has_no_flag_and_each_oddity_its_own() -> None:
    labels = [boxes((1, cube(0, 6 + shift)), (2, cube(14, 4))) for shift in (0, 1, 0, 1, 0)]
    records = record_classes(iter(labels), 0.001, CLASSES)

    def told(mask: np.ndarray) -> list[str]:
        return flags(find_classes(mask, 0.001, CLASSES), records)

    assert told(labels[0]) == []
    assert told(np.zeros((4, 4, 4), np.uint8)) == ["empty mask"]
    assert told(boxes((1, cube(0, 6)))) == ["no spleen, which all 5 training cases have"]
    (tiny,) = told(boxes((1, cube(0, 1)), (2, cube(14, 4))))
    assert tiny.startswith("liver has 0.001 ml, expected ")
    square = (slice(0, 6), slice(0, 6))
    halves = boxes((1, (*square, slice(0, 3))), (1, (*square, slice(5, 8))), (2, cube(14, 4)))
    assert told(halves) == ["liver is in 2 fragments, 50% of it in the largest"]
    assert flags(find_classes(halves, 0.001, CLASSES), {}) == []  # an older bundle knows nothing of its training
