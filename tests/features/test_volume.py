from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.errors import VolumeError
from dropgen.features.studies import volume
from dropgen.features.studies.volume import (
    mask_to_bytes,
    read_channels,
    read_grid,
    read_mask,
    read_note,
    read_volume,
    volume_from_bytes,
    write_mask,
    write_volume,
)

AFFINE = np.array([[0, -1.5, 0, 3], [0.5, 0, 0, -4], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ARRAY = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)


def nifti(array: np.ndarray, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image) -> bytes:
    return bytes(kind(array, affine).to_bytes())


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_image_comes_back_as_written(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, ARRAY, AFFINE)
    read = read_volume(tmp_path / name)
    assert np.array_equal(read.array, ARRAY) and read.array.dtype == np.float32
    assert np.array_equal(read.affine, AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert np.array_equal(nib.load(tmp_path / name).get_fdata(), ARRAY)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_grid_is_read_from_the_header_alone(tmp_path: Path, name: str) -> None:
    write_volume(tmp_path / name, ARRAY, AFFINE)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-8])  # the voxels cannot be read any more
    grid = read_grid(tmp_path / name)
    assert grid.array.shape == ARRAY.shape
    assert np.array_equal(grid.affine, AFFINE)
    with pytest.raises(VolumeError):
        read_volume(tmp_path / name)


def test_a_mask_comes_back_as_written(tmp_path: Path) -> None:
    mask = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    write_mask(tmp_path / "m.nii.gz", mask, AFFINE)
    read = read_mask(tmp_path / "m.nii.gz")
    assert np.array_equal(read.array, mask) and read.array.dtype == np.int32
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8
    assert mask_to_bytes(mask, AFFINE) == (tmp_path / "m.nii.gz").read_bytes()


def test_scaled_integers_nifti2_and_misleading_names_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), AFFINE)
    image.header.set_slope_inter(0.5, -2)
    assert np.array_equal(volume_from_bytes(image.to_bytes()).array.ravel(), np.arange(60) * 0.5 - 2)
    assert np.array_equal(volume_from_bytes(nifti(ARRAY, kind=nib.Nifti2Image)).array, ARRAY)
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(nifti(ARRAY)))
    assert np.array_equal(read_volume(tmp_path / "zipped.nii").array, ARRAY)


@given(cut=st.integers(0, 400), compress=st.booleans())
def test_a_truncated_file_is_a_volume_error(cut: int, compress: bool) -> None:
    whole = gzip.compress(nifti(ARRAY)) if compress else nifti(ARRAY)
    with pytest.raises(VolumeError, match="scan"):
        volume_from_bytes(whole[: cut * (len(whole) - 1) // 400], "scan")


@settings(max_examples=300)
@given(position=st.integers(0, 351), value=st.integers(0, 255), second=st.integers(0, 351))
def test_a_damaged_header_is_read_soundly_or_refused_in_a_sentence(position: int, value: int, second: int) -> None:
    data = bytearray(nifti(ARRAY))
    data[position] = data[second] = value
    try:
        read = volume_from_bytes(bytes(data), "scan")
    except VolumeError as error:
        assert "scan" in str(error) and "\n" not in str(error)
    else:
        assert read.array.ndim == 3 and np.isfinite(read.array).all() and np.linalg.det(read.affine) != 0


def test_a_flipped_bit_inside_a_gzip_file_is_noticed() -> None:
    data = bytearray(gzip.compress(nifti(ARRAY), compresslevel=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(VolumeError, match="damaged"):
        volume_from_bytes(bytes(data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    array = ARRAY.copy()
    array[1, 2, 3] = value
    write_volume(tmp_path / "a.nii.gz", array, AFFINE)
    with pytest.raises(VolumeError, match=rf"a\.nii\.gz: voxel \[1, 2, 3\] is {value}"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_value_beyond_float32_is_not_finite() -> None:
    with pytest.raises(VolumeError, match=r"\[0, 0, 0\] is inf"):
        volume_from_bytes(nifti(np.full((2, 2, 2), 1e300)))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5, 2), (3, 4, 5, 1, 3)])
def test_a_file_that_is_not_three_dimensional_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(VolumeError, match=str(list(shape)).replace("[", r"\[")):
        volume_from_bytes(nifti(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_colour_and_complex_voxels_are_refused(dtype: np.dtype) -> None:
    with pytest.raises(VolumeError, match="one gray channel"):
        volume_from_bytes(nifti(np.zeros((2, 2, 2), dtype)))


def with_dims(*dims: int) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["dim"] = (3, *dims, 1, 1, 1, 1)
    return bytes(header.binaryblock) + bytes(4 + 8)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("size", [0, 4097])
def test_an_absurd_axis_is_refused_from_the_header(axis: int, size: int) -> None:
    dims = [2, 2, 2]
    dims[axis] = size
    with pytest.raises(VolumeError, match=f"axis {'xyz'[axis]} has {size} voxels"):
        volume_from_bytes(with_dims(*dims))


def test_too_many_voxels_are_refused_before_any_is_decoded() -> None:
    with pytest.raises(VolumeError, match=str(4000**3)):
        volume_from_bytes(gzip.compress(with_dims(4000, 4000, 4000)))


def affine_with(column: int, values: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, column] = values
    return affine


@pytest.mark.parametrize(
    ("affine", "word"),
    [
        (affine_with(1, (0, 0, 0)), "axis y has a step of 0 mm"),
        (affine_with(1, (1, 0, 0)), "two of its axes coincide"),
        (affine_with(3, (np.nan, 0, 0)), "not finite"),
    ],
)
def test_an_affine_that_cannot_be_inverted_is_refused(affine: np.ndarray, word: str) -> None:
    image = nib.Nifti1Image(ARRAY, None)
    image.header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[row]
    data = bytes(image.header.binaryblock) + bytes(4) + ARRAY.tobytes(order="F")
    with pytest.raises(VolumeError, match=word):
        volume_from_bytes(data)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8b", b"\x1f\x8bxyz" * 50, bytes(1000), b"PK" * 400])
def test_bytes_that_are_no_nifti_are_refused(data: bytes) -> None:
    with pytest.raises(VolumeError):
        volume_from_bytes(data)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.nii.gz", tmp_path):
        with pytest.raises(VolumeError, match="cannot be opened"):
            read_volume(path)
        with pytest.raises(VolumeError, match="cannot be opened"):
            read_mask(path)


@pytest.mark.parametrize(("value", "word"), [(0.5, "whole numbers"), (1e12, "too large"), (np.nan, "is nan")])
def test_a_label_that_is_no_class_number_is_named(tmp_path: Path, value: float, word: str) -> None:
    array = np.zeros((2, 3, 4))
    array[1, 0, 2] = value
    write_volume(tmp_path / "m.nii", array, AFFINE)
    with pytest.raises(VolumeError, match=rf"voxel \[1, 0, 2\].*{word}|{word}"):
        read_mask(tmp_path / "m.nii")


def test_whole_numbers_stored_as_floats_are_labels(tmp_path: Path) -> None:
    write_volume(tmp_path / "m.nii", np.full((2, 3, 4), 3.0), AFFINE)
    assert (read_mask(tmp_path / "m.nii").array == 3).all()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.nii.gz"
    write_mask(path, np.zeros((2, 2, 2)), AFFINE)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(volume.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_mask(path, np.ones((2, 2, 2)), AFFINE)
    assert path.read_bytes() == before


def test_a_note_in_the_header_changes_no_voxel(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    write_volume(path, ARRAY, AFFINE, note="made of b")
    assert read_note(path) == "made of b"
    assert np.array_equal(read_volume(path).array, ARRAY)
    write_volume(path, ARRAY, AFFINE)
    assert read_note(path) == ""
    path.write_bytes(path.read_bytes()[:20])
    assert read_note(path) is None and read_note(tmp_path / "b.nii.gz") is None


def test_a_comment_of_any_length_stands_in_the_header_for_every_reader(tmp_path: Path) -> None:
    path, mask = tmp_path / "a.nii.gz", np.arange(24).reshape(2, 3, 4)
    comment = 500 * "größer "
    path.write_bytes(mask_to_bytes(mask, AFFINE, "note", comment))
    assert [one.text for one in nib.load(path).header.extensions] == [comment]
    assert read_note(path) == "note"
    assert np.array_equal(read_mask(path).array, mask)
    assert mask_to_bytes(mask, AFFINE, "note", comment) == path.read_bytes()


def test_a_4d_file_gives_one_volume_per_channel(tmp_path: Path) -> None:
    write_volume(tmp_path / "four.nii.gz", np.stack([ARRAY, -ARRAY], axis=-1), AFFINE)
    channels = read_channels(tmp_path / "four.nii.gz")
    assert [np.array_equal(one.array, sign * ARRAY) for one, sign in zip(channels, (1, -1), strict=True)] == [
        True,
        True,
    ]
    assert all(np.array_equal(one.affine, AFFINE) for one in channels)
    write_volume(tmp_path / "three.nii.gz", ARRAY, AFFINE)
    with pytest.raises(
        VolumeError, match=r"three\.nii\.gz is 3-D with shape \[3, 4, 5\]; its channels must be a fourth axis"
    ):
        read_channels(tmp_path / "three.nii.gz")
