from __future__ import annotations

import numpy as np
import pytest

from dropgen.errors import ConfigError
from dropgen.platform.bench.metrics import LAYOUTS, MetricsBench, bench_metrics, make_labels
from dropgen.platform.evaluation.surface import box_of

TINY = MetricsBench(shape=(24, 20, 16), classes=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_contenders_are_timed_and_measure_the_same(layout: str) -> None:
    rows = bench_metrics(TINY, layout)
    assert {row["contender"] for row in rows} == {"dropgen", "monai"}
    assert all(len(row["raw_s"]) == TINY.repeats and row["min_s"] > 0 for row in rows)


def test_the_labels_hold_every_class_twice_and_not_alike() -> None:
    truth, prediction = make_labels(MetricsBench(shape=(48, 48, 48), classes=3), "compact")
    assert set(np.unique(truth)) == set(np.unique(prediction)) == {0, 1, 2, 3}
    assert (truth != prediction).any()


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 8)])
def test_a_shape_that_is_no_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="three axes"):
        MetricsBench(shape=shape)


def test_scattered_classes_reach_across_the_volume() -> None:
    _, prediction = make_labels(TINY, "scattered")
    for label in (1, 2):
        box = box_of(prediction == label)
        assert box is not None
        assert [side.stop - side.start for side in box] == [23, 20, 16]
