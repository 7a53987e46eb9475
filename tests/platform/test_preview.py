from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation as turn
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.preview import preview

CLASSES = ("background", "left kidney", "right kidney", "spleen")


def scene(shape: tuple[int, int, int] = (40, 32, 24), thick: float = 1.0) -> tuple[Volume, np.ndarray]:
    mask = np.zeros(shape, np.uint8)
    mask[4:12, 10:20, 4:20] = 1
    mask[28:36, 10:20, 4:20] = 2
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 5 * mask
    return Volume(image, np.diag([1.0, 1.0, thick, 1.0])), mask


def drawn(figure: Figure) -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba", dpi=60)
    return np.frombuffer(buffer.getvalue(), np.uint8)


@pytest.mark.parametrize("thick", [1.0, 8.0])
def test_three_slices_run_through_the_mask_with_a_contour_of_every_class(thick: float) -> None:
    volume, mask = scene(thick=thick)
    figure = preview(volume, mask, CLASSES, "anna", ["left kidney has 3 ml, expected 90 to 200"])
    assert len(figure.axes) == 3
    slices = [int(axis.get_xlabel().split()[2]) - 1 for axis in figure.axes]
    assert slices == [7, 11, 15]  # the mask's sixteen slices begin at 4
    for axis in figure.axes:
        contours = [artist for artist in axis.collections if isinstance(artist, QuadContourSet)]
        assert len(contours) == 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["left kidney", "right kidney"]
    assert {text.get_text() for text in figure.texts} == {"anna", "left kidney has 3 ml, expected 90 to 200"}
    assert len(drawn(figure))


def test_the_picture_does_not_depend_on_how_the_file_is_stored() -> None:
    volume, mask = scene()
    stored = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt("PIL"))
    other = Volume(turn(volume.array, stored), volume.affine @ inv_ornt_aff(stored, volume.array.shape))
    one = drawn(preview(volume, mask, CLASSES, "anna", []))
    np.testing.assert_array_equal(one, drawn(preview(other, turn(mask, stored), CLASSES, "anna", [])))


def test_an_empty_mask_shows_the_volume() -> None:
    volume, mask = scene()
    figure = preview(volume, np.zeros_like(mask), CLASSES, "anna", ["empty mask"])
    assert [int(axis.get_xlabel().split()[2]) for axis in figure.axes] == [6, 12, 18]
    assert not figure.legends
    assert len(drawn(figure))


def test_a_slice_of_one_voxel_can_be_drawn() -> None:
    dot = Volume(np.ones((1, 1, 1), np.float32), np.eye(4))
    figure = preview(dot, np.ones((1, 1, 1), np.uint8), CLASSES, "dot", [])
    assert len(drawn(figure))
