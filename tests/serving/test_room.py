"""What a prediction is expected to take, before it takes it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dropgen.config import Component
from dropgen.errors import TooLargeError
from dropgen.features.studies.volume import Volume
from dropgen.platform.adaptation import build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.room import require_room
from tests_support.segmenters import make_segmenter

EDGE = 512
VOLUME = Volume(np.zeros((EDGE, EDGE, EDGE), np.uint8), np.eye(4))


def bytes_per_voxel(segmenter: Segmenter) -> float:
    with pytest.raises(TooLargeError) as caught:
        require_room(segmenter, VOLUME, 0)
    (gib,) = re.findall(r"about (\S+) GiB", str(caught.value))
    return float(gib) * 2**30 / EDGE**3


def test_a_test_time_method_is_expected_to_hold_its_own_volumes_of_every_class() -> None:
    erm, rep_only = make_segmenter(Component.of("erm")), make_segmenter(Component.of("rep_only"))
    plain, classes = bytes_per_voxel(erm), len(erm.spec.classes)
    assert bytes_per_voxel(AdaptedSegmenter(build(Component.of("tent")), erm)) == plain
    for name, copies in (("sfb", 2.5), ("alpha", 3.0)):
        held = bytes_per_voxel(AdaptedSegmenter(build(Component.of(name)), erm, rep_only))
        features = bytes_per_voxel(rep_only) - plain
        assert held - plain - features == pytest.approx(4 * copies * classes, abs=1)


def test_both_branches_of_dsbn_are_counted() -> None:
    plain = bytes_per_voxel(make_segmenter(Component.of("erm")))
    assert bytes_per_voxel(make_segmenter(Component.of("dsbn"))) - plain == pytest.approx(4 * 3, abs=1)
