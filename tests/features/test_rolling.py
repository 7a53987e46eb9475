"""Features that follow the windows are those of the whole volume, extracted once and held for a window's depth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropgen.config import Component
from dropgen.features.extractors import Extractor, build, extract
from dropgen.features.extractors.mind import Mind
from dropgen.features.extractors.rolling import RollingFeatures, rolling_bytes, rolls
from dropgen.features.planes import Box

Shape = tuple[int, int, int]


def windows(shape: Shape, crop: int, axis: int, step: int) -> list[tuple[slice, slice, slice]]:
    """Boxes that move along an axis, anywhere along the others."""
    generator = np.random.default_rng(0)
    starts = sorted({*range(0, shape[axis] - crop + 1, step), shape[axis] - crop})
    found = []
    for start in starts:
        corner = [int(generator.integers(size - min(crop, size) + 1)) for size in shape]
        corner[axis] = start
        x, y, z = (slice(edge, edge + min(crop, size)) for edge, size in zip(corner, shape, strict=True))
        found.append((x, y, z))
    return found


@pytest.mark.parametrize("name", ["mind", "random", "identity"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_box_has_the_features_of_the_whole_volume(name: str, axis: int) -> None:
    shape = [13, 14, 15]
    shape[axis] = 40
    unit = np.random.default_rng(0).random(shape, np.float32)
    extractor = build(Component.of(name))
    whole, _ = extract(extractor, unit[None])
    rolling = RollingFeatures(extractor, unit[None], axis, 12, "cpu")
    for _ in range(2):  # a second pass begins anew
        for box in windows((shape[0], shape[1], shape[2]), 12, axis, 5):
            np.testing.assert_allclose(rolling.cut(box), whole[:, *box], rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(depth=st.integers(1, 9), beyond=st.integers(0, 12), step=st.integers(1, 9), axis=st.integers(0, 2))
def test_whatever_the_windows_every_plane_is_extracted_once(depth: int, beyond: int, step: int, axis: int) -> None:
    seen: list[int] = []

    class Counted(Mind):
        def __call__(self, image_b1xyz: Tensor, stats: Tensor | None = None) -> Tensor:
            seen.append(image_b1xyz.shape[2 + axis])
            return super().__call__(image_b1xyz, stats)

    mind, step = Counted(), min(step, depth)
    shape = [3, 3, 3]
    shape[axis] = depth + beyond
    unit = np.random.default_rng(0).random(shape, np.float32)
    whole, _ = extract(Mind(), unit[None])
    rolling = RollingFeatures(mind, unit[None], axis, depth, "cpu")
    for box in windows((shape[0], shape[1], shape[2]), depth, axis, step):
        np.testing.assert_allclose(rolling.cut(box), whole[:, *box], rtol=0, atol=1e-6)
    assert sum(seen) <= shape[axis] + 2 * mind.halo * len(seen)
    assert rolling._held_cxyz.shape[1 + axis] == depth


def test_only_extractors_whose_slabs_are_exact_and_cheap_roll() -> None:
    class Like:
        multiple = min_size = 1
        locality = halo = 3

    def like(**changes: object) -> Extractor:
        one = Like()
        for name, value in changes.items():
            setattr(one, name, value)
        return one  # type: ignore[return-value]

    assert rolls(like(), 12)
    assert not rolls(like(), 11)  # halos would cost more than half of a slab again
    assert not rolls(like(halo=2), 64)  # inexact
    assert not rolls(like(multiple=16, min_size=32), 64)  # its pooling sees other blocks
    assert not rolls(like(locality="global", halo="global"), 64)


def test_memory_grows_with_the_depth_and_not_with_the_volume() -> None:
    mind = Mind()
    short, long = (rolling_bytes(mind, (edge, 512, 300), 0, 64) for edge in (256, 512))
    assert short == long < 4 * 12 * 512 * 512 * 300


def test_a_volume_is_fitted_in_no_larger_a_part_than_one_slab() -> None:
    fitted: list[int] = []

    class Fitted(Mind):
        def fit(self, image_b1xyz: Tensor, inner: Box = (slice(None),) * 3) -> Tensor:
            fitted.append(image_b1xyz[0, 0].numel())
            return super().fit(image_b1xyz, inner)

    mind, unit = Fitted(), np.random.default_rng(0).random((1, 64, 9, 8), np.float32)
    RollingFeatures(mind, unit, 0, 10, "cpu")
    slab = (10 + 2 * mind.halo) * 9 * 8
    assert len(fitted) > 1
    assert max(fitted) <= slab
    assert rolling_bytes(mind, (64, 9, 8), 0, 10) == mind.channels * (mind.tile_bytes * slab + 4 * (slab + 10 * 9 * 8))
