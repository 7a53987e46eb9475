from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dropgen.errors import ConfigError
from dropgen.features.studies.intensity import RULES, scale_intensity

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VOLUMES = npst.arrays(np.float32, npst.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=FINITE)


@given(array=VOLUMES, rule=st.sampled_from(RULES))
@example(array=np.array([[[0, 1e-45]]], np.float32), rule="minmax")
@example(array=np.array([[[0, 1e-45]]], np.float32), rule="zscore")
@example(array=np.array([[[0, 1e-45]]], np.float32), rule="percentile")
def test_unit_scale_is_finite_and_within_zero_and_one(array: np.ndarray, rule: str) -> None:
    scaling = scale_intensity(array, rule)
    assert scaling.unit.dtype == np.float32 and scaling.unit.shape == array.shape
    assert np.isfinite(scaling.unit).all() and scaling.unit.min() >= 0 and scaling.unit.max() <= 1
    assert np.isfinite(scaling.shift) and scaling.scale > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [-7.0, 0.0, 1e6])
def test_a_constant_volume_becomes_zero(rule: str, value: float) -> None:
    scaling = scale_intensity(np.full((2, 3, 4), value, np.float32), rule)
    assert not scaling.unit.any() and (scaling.shift, scaling.scale) == (0, 1)


def test_minmax_sends_the_extremes_to_zero_and_one() -> None:
    unit = scale_intensity(np.array([[[-2, 0, 6]]], np.float32), "minmax").unit
    assert np.allclose(unit, [[[0, 0.25, 1]]])


def test_percentile_clips_outliers_where_minmax_lets_them_rule() -> None:
    array = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    array[0, 0, 0], array[9, 9, 9] = -1e6, 1e6
    unit = scale_intensity(array, "percentile").unit
    low, high = np.percentile(array, (0.5, 99.5))
    assert np.allclose(unit, np.clip((array - low) / (high - low), 0, 1), atol=1e-5)
    assert scale_intensity(array, "minmax").unit.ravel()[1:-1].std() < 1e-3 < unit.std()


def test_percentile_keeps_a_small_object_in_an_empty_volume() -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[5, 5, 5] = 3
    assert scale_intensity(array, "percentile").unit[5, 5, 5] == 1


def test_zscore_channel_is_the_zscore_of_the_raw_values() -> None:
    array = np.random.default_rng(0).gamma(2, 300, (6, 7, 8)).astype(np.float32)
    scaling = scale_intensity(array, "zscore")
    assert np.allclose((scaling.unit - scaling.shift) / scaling.scale, (array - array.mean()) / array.std(), atol=1e-4)
    assert scaling.unit.min() == 0 and scaling.unit.max() == 1


def test_hounsfield_window_is_fixed_and_clipped() -> None:
    unit = scale_intensity(np.array([[[-3000, -1024, 0, 512, 1024, 3000]]], np.float32), "hu").unit
    assert np.allclose(unit, [[[0, 0, 0.5, 0.75, 1, 1]]])


def test_the_scaling_of_single_crops_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"'crop_minmax' is refused: features are stored once per volume.*minmax"):
        scale_intensity(np.zeros((1, 1, 1), np.float32), "crop_minmax")


def test_an_unknown_rule_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'percentile'"):
        scale_intensity(np.zeros((1, 1, 1), np.float32), "percentiles")
