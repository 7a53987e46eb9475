"""Volumes and models that the tests of the test-time methods share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dropgen.config import Component
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter


def volume(shape: tuple[int, int, int], seed: int = 0) -> Prepared:
    noise = np.random.default_rng(seed).normal(size=shape)
    array = gaussian_filter(noise, 1).astype(np.float32)
    return prepare([Volume(array, np.eye(4))], make_segmenter(Component.of("erm")).spec.preparation)


@pytest.fixture
def erm() -> Segmenter:
    return make_segmenter(Component.of("erm"))


@pytest.fixture
def rep_only() -> Segmenter:
    return make_segmenter(Component.of("rep_only"), seed=1)


@pytest.fixture
def one_crop() -> Prepared:
    """Exactly one window, so that every random crop is the whole volume."""
    return volume((16, 16, 16))


@pytest.fixture
def prepared() -> Prepared:
    return volume((24, 16, 20))
