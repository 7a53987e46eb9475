from __future__ import annotations

import re

import numpy as np
import pytest

from dropgen.config import Component
from dropgen.errors import ResourceError, TooLargeError
from dropgen.features.studies.volume import Volume
from dropgen.serving.room import plan_room, require_room
from tests_support.segmenters import make_segmenter

EDGE = 512
VOLUME = Volume(np.broadcast_to(np.float32(0), (EDGE, EDGE, EDGE)), np.eye(4))


def test_a_volume_that_does_not_fit_is_refused_with_both_numbers_and_one_that_fits_is_not() -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5))
    plan = plan_room(segmenter, VOLUME)
    assert require_room(segmenter, VOLUME, plan.peak) == plan
    with pytest.raises(ResourceError) as caught:
        require_room(segmenter, VOLUME, plan.peak - 1)
    message = str(caught.value)
    assert "512 x 512 x 512 voxels and 3 classes" in message
    needed, free = re.findall(r"(\d+\.\d+) GiB", message)
    assert float(needed) == pytest.approx(plan.peak / 2**30, abs=0.01) == pytest.approx(float(free), abs=0.01)
    assert all(f"{stage} " in message for stage in ("reading", "preparing", "windows"))


def test_maps_beside_the_mask_are_planned() -> None:
    segmenter = make_segmenter(Component.of("erm"))
    with_maps, without = (plan_room(segmenter, VOLUME, maps).stages["windows"] for maps in (4, 0))
    assert with_maps - without == 4 * EDGE**3


def test_a_grid_that_no_volume_may_have_is_too_large_too() -> None:
    segmenter = make_segmenter(Component.of("erm"), spacing=(0.01, 0.01, 0.01))
    with pytest.raises(TooLargeError, match="raise the spacing"):
        plan_room(segmenter, VOLUME)
