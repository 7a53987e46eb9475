from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from dropgen.errors import ConfigError, VolumeError
from dropgen.features.studies import geometry
from dropgen.features.studies.prepare import Grid, Native, Preparation, Prepared, prepare, prepare_label, resolve_rule
from dropgen.features.studies.volume import Volume, read_mask, read_volume

CODES = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]
SHAPE = (11, 13, 17)
SPACING = (0.7, 1.1, 2.3)
UPRIGHT = np.eye(3)
OBLIQUE = Rotation.from_euler("xyz", (12, -17, 25), degrees=True).as_matrix()


def ras_affine(rotation: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(SPACING)
    affine[:3, 3] = (-30, 12, 55)
    return affine


def image_and_mask() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x, y, z = np.indices(SHAPE)
    mask = (((x - 4) / 3) ** 2 + ((y - 7) / 4) ** 2 + ((z - 9) / 5) ** 2 <= 1).astype(np.int32)
    mask[2:5, 1:4, 12:16] = 2
    return generator.normal(size=SHAPE).astype(np.float32), mask


def stored(array: np.ndarray, affine: np.ndarray, codes: str) -> Volume:
    """The same content in another axis order."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return Volume(apply_orientation(array, turn), affine @ inv_ornt_aff(turn, array.shape))


def centroid(mask: np.ndarray, affine: np.ndarray, label: int) -> np.ndarray:
    """World mm."""
    return affine[:3, :3] @ np.argwhere(mask == label).mean(0) + affine[:3, 3]


def of(
    spacing: tuple[float, float, float], crop: tuple[int, int, int] = (1, 1, 1), rule: str = "minmax"
) -> Preparation:
    return Preparation(spacing, crop, rule)


@pytest.mark.parametrize("rotation", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize("codes", CODES)
def test_at_native_spacing_a_mask_comes_back_exactly(codes: str, rotation: np.ndarray) -> None:
    array, labels = image_and_mask()
    image, mask = (stored(content, ras_affine(rotation), codes) for content in (array, labels))
    prepared = prepare([image], of(SPACING, crop=(16, 14, 12)))
    assert prepared.shape == (16, 14, 17) == prepared.grid.shape
    unit = (array - array.min()) / (array.max() - array.min())
    assert np.allclose(
        prepared.unit[0, 2:13, :13], unit, atol=1e-6
    )  # RAS order whatever the storage, pads 2 | 3 and 0 | 1
    label = prepare_label(mask, prepared.grid)
    assert np.array_equal(label[2:13, :13], labels) and label.dtype == np.uint8
    restored = prepared.grid.restore(label)
    assert restored.shape == mask.array.shape and restored.dtype == np.uint8
    assert np.array_equal(restored, mask.array)


@pytest.mark.parametrize("rotation", [UPRIGHT, OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize("codes", CODES)
def test_at_another_spacing_a_mask_keeps_its_place_in_the_world(codes: str, rotation: np.ndarray) -> None:
    array, labels = image_and_mask()
    reference = prepare([Volume(array, ras_affine(rotation))], of((1.0, 0.8, 1.5)))
    image, mask = (stored(content, ras_affine(rotation), codes) for content in (array, labels))
    prepared = prepare([image], of((1.0, 0.8, 1.5), crop=(8, 30, 8)))
    assert prepared.shape == (8, 30, 26)  # 7.7, 14.3 and 39.1 mm, the second padded from 18
    assert np.allclose(prepared.unit[:, :, 6:24], reference.unit, atol=1e-6)
    label = prepare_label(mask, prepared.grid)
    restored = prepared.grid.restore(label)
    assert restored.shape == mask.array.shape
    # In mm: 0.2 of a voxel for the ellipsoid, for the box half a voxel of the coarser grid along each axis.
    for value, most in ((1, 0.3), (2, np.linalg.norm([0.5, 0.55, 1.15]))):
        there = centroid(mask.array, mask.affine, value)
        assert np.linalg.norm(centroid(label, prepared.grid.affine, value) - there) < most
        assert np.linalg.norm(centroid(restored, mask.affine, value) - there) < most
    overlap = 2 * ((restored == mask.array) & (restored > 0)).sum() / ((restored > 0).sum() + (mask.array > 0).sum())
    assert overlap > 0.85


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SLA"])
def test_resampling_agrees_with_nibabel(codes: str, order: int) -> None:
    array, labels = image_and_mask()
    volume = stored(array if order else labels.astype(np.float32), ras_affine(OBLIQUE), codes)
    # Odd sizes before and after: an even and an odd grid with one centre tie between two nearest voxels there.
    grid = Grid.of(volume, of((1.03, 0.76, 1.57)))
    assert all(size % 2 for size in grid.shape)
    theirs = resample_from_to(nib.Nifti1Image(volume.array, volume.affine), (grid.shape, grid.affine), order=order)
    inside = (slice(1, -1), slice(1, -1), slice(1, -1))  # beyond the outermost voxel centres theirs fills with 0
    assert np.allclose(grid.place(volume.array, order)[inside], theirs.get_fdata()[inside], atol=1e-5)


def test_the_real_oblique_case_comes_back(data: Path) -> None:
    image = read_volume(data / "geometry" / "short_axis_oblique_0000.nii.gz")
    mask = read_mask(data / "geometry" / "short_axis_oblique.nii.gz")
    assert np.abs(image.affine[:3, :3]).min() > 0.1, "the case is meant to be oblique"
    native = tuple(np.linalg.norm(image.affine[:3, :3], axis=0)[[2, 0, 1]])  # its axes run P, S, R
    prepared = prepare([image], Preparation(native, (32, 32, 32), "minmax"))
    label = prepare_label(mask, prepared.grid)
    assert prepared.shape == (32, 256, 256)
    assert np.array_equal(prepared.grid.restore(label), mask.array)

    prepared = prepare([image], of((2.0, 2.0, 2.0)))
    label = prepare_label(mask, prepared.grid)
    restored = prepared.grid.restore(label)
    for value in (1, 2, 3):
        there = centroid(mask.array, mask.affine, value)
        assert np.linalg.norm(centroid(label, prepared.grid.affine, value) - there) < 0.5
        assert np.linalg.norm(centroid(restored, mask.affine, value) - there) < 0.5


SIZES = st.tuples(*[st.integers(1, 9)] * 3)
SPACINGS = st.tuples(*[st.floats(0.4, 3)] * 3)


@given(size=SIZES, spacing=SPACINGS, native=SPACINGS, crop=SIZES, codes=st.sampled_from(CODES))
def test_any_grid_restores_a_full_mask_and_survives_json(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    native: tuple[float, float, float],
    crop: tuple[int, int, int],
    codes: str,
) -> None:
    volume = stored(np.ones(size, np.int32), np.diag([*native, 1]), codes)
    grid = Grid.of(volume, of(spacing, crop))
    assert all(length >= least for length, least in zip(grid.shape, crop, strict=True))
    assert all(after - before in (0, 1) for before, after in grid.padding)
    label = prepare_label(volume, grid)
    assert label.shape == grid.shape and label.sum() == np.prod(grid.resampled_shape)
    assert np.array_equal(grid.restore(label), volume.array)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    # The centre of the field of view is where it was.
    middle = grid.affine @ [*((np.array(grid.shape) - 1 - np.ptp(np.array(grid.padding), axis=1)) / 2), 1]
    assert np.allclose(middle, volume.affine @ [*((np.array(volume.array.shape) - 1) / 2), 1])
    extent = np.abs(np.array(grid.resampled_shape) * spacing - np.array(size) * native)
    assert all(e <= s / 2 + 1e-6 or n == 1 for e, s, n in zip(extent, spacing, grid.resampled_shape, strict=True))


def test_intensities_are_scaled_before_padding_so_that_air_not_water_is_padded() -> None:
    hounsfield = np.full((4, 4, 4), -1024, np.float32)
    hounsfield[1:3, 1:3, 1:3] = 1024
    prepared = prepare([Volume(hounsfield, np.eye(4))], of((1, 1, 1), crop=(8, 4, 4), rule="hu"))
    assert not prepared.unit[0, [0, 1, 6, 7]].any() and prepared.unit.max() == 1


def test_zscore_statistics_ignore_the_padding() -> None:
    array = np.random.default_rng(0).normal(5, 2, (4, 5, 6)).astype(np.float32)
    small, padded = (
        prepare([Volume(array, np.eye(4))], of((1, 1, 1), crop=crop, rule="zscore")) for crop in ((1, 1, 1), (9, 9, 9))
    )
    assert (small.shift, small.scale) == (padded.shift, padded.scale)


def test_the_key_covers_every_field() -> None:
    keys = {
        of((1, 1, 1)).key(None), of((1, 1, 2)).key(None), of((1, 1, 1), (2, 1, 1)).key(None),
        of((1, 1, 1), rule="hu").key(None), Preparation((1, 1, 1), (1, 1, 1), "hu", ("a", "b")).key(None),
    }  # fmt: skip
    assert len(keys) == 5
    assert Preparation((1, 1, 1), (1, 1, 1), {"ct": "hu"}).key("ct") == of((1, 1, 1), rule="hu").key(None)


def test_the_rule_follows_the_modality_which_is_never_guessed() -> None:
    rules = {"ct": "hu", "mr": "minmax"}
    assert resolve_rule("hu", None) == "hu" and resolve_rule(rules, "mr") == "minmax"
    volume = Volume(np.full((2, 2, 2), 512, np.float32) + np.eye(2, dtype=np.float32), np.eye(4))
    by_modality = Preparation((1, 1, 1), (1, 1, 1), rules)
    assert prepare([volume], by_modality, "ct").unit.min() == 0.75
    assert prepare([volume], by_modality, "mr").unit.min() == 0
    with pytest.raises(VolumeError, match="must be given: ct, mr"):
        prepare([volume], by_modality)
    with pytest.raises(VolumeError, match="'mri'; did you mean 'mr'"):
        prepare([volume], by_modality, "mri")
    with pytest.raises(ConfigError, match="minmix"):
        prepare([volume], of((1, 1, 1), rule="minmix"))


def prepared_small() -> Prepared:
    return prepare([Volume(np.zeros((3, 3, 3), np.float32), np.eye(4))], of((1, 1, 1)))


def test_a_label_on_another_grid_is_refused() -> None:
    with pytest.raises(VolumeError, match="axis z of the label has 4 voxels"):
        prepare_label(Volume(np.zeros((3, 3, 4), np.int32), np.eye(4)), prepared_small().grid)
    with pytest.raises(VolumeError, match="origin along world x differs by 1 mm"):
        moved = np.eye(4)
        moved[0, 3] = 1
        prepare_label(Volume(np.zeros((3, 3, 3), np.int32), moved), prepared_small().grid)


@pytest.mark.parametrize("value", [-1, 256])
def test_a_label_value_that_uint8_cannot_hold_is_refused(value: int) -> None:
    with pytest.raises(VolumeError, match=f"label value {value}"):
        prepare_label(Volume(np.full((3, 3, 3), value, np.int32), np.eye(4)), prepared_small().grid)


def test_a_mask_of_another_shape_is_not_restored() -> None:
    with pytest.raises(VolumeError, match=r"shape \[3, 3, 2\]"):
        prepared_small().grid.restore(np.zeros((3, 3, 2)))


def test_a_spacing_too_fine_for_memory_is_refused_before_resampling() -> None:
    with pytest.raises(VolumeError, match="raise the spacing"):
        prepare([Volume(np.zeros((300, 300, 300), np.float32), np.eye(4))], of((0.1, 0.1, 0.1)))


@given(
    codes=st.sampled_from(CODES),
    sizes=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4)] * 3),
    crop=st.tuples(*[st.integers(1, 12)] * 3),
    axis=st.integers(0, 2),
    cuts=st.lists(st.integers(0, 12), max_size=3),
)
def test_a_mask_is_restored_slab_by_slab_to_the_very_voxels_of_resampling_it_whole(
    codes: str,
    sizes: tuple[int, int, int],
    spacing: tuple[float, float, float],
    crop: tuple[int, int, int],
    axis: int,
    cuts: list[int],
) -> None:
    volume = stored(np.zeros(sizes, np.float32), ras_affine(UPRIGHT), codes)
    grid = Grid.of(volume, of(spacing, crop))
    mask = np.random.default_rng(0).integers(0, 200, grid.shape, np.uint8)
    native = Native(grid)
    edges = sorted({0, grid.shape[axis], *(min(cut, grid.shape[axis]) for cut in cuts)})
    for start, stop in itertools.pairwise(edges):
        native.put(axis, start, mask.take(range(start, stop), axis))
    inner = mask[tuple(slice(b, b + size) for size, (b, _) in zip(grid.resampled_shape, grid.padding, strict=True))]
    shape, affine = geometry.ras_grid(grid.native_shape, volume.affine)
    step = geometry.step_between(affine, spacing)
    whole = geometry.resample(inner, shape, 1 / step, order=0)
    np.testing.assert_array_equal(geometry.to_ras(native.array, volume.affine), whole)
    np.testing.assert_array_equal(grid.restore(mask), native.array)
