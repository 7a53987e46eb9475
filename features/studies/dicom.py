"""One DICOM series in, one volume with its affine out; what would put a voxel in the wrong place is refused by name.

Only what the standard lets be read without decoding: uncompressed single-frame images. Slices are named in errors by
their instance number, because file names can hold a patient's name.
Source of the geometry: DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.volume import MAX_AXIS, Volume

CLASSES = {str(CTImageStorage): "CT", str(MRImageStorage): "MR"}
SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)  # deflated is a bomb's, and a codec is a decoder to attack
BITS = (8, 16, 32)
PARALLEL = 1e-3  # of direction cosines, which scanners write with six digits
TILT = 2e-3  # of the step between slices that leaves the normal: 0.1 degrees
UNEVEN = 0.01  # of the step
SAME_PLACE = 1e-3  # mm
# What pydicom raises for damaged files.
DECODE_ERRORS = (
    InvalidDicomError, BytesLengthException, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError,
    NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Series:
    """A series as one volume.

    Attributes:
        volume: float32 [X, Y, Z]: columns, rows, slices; RAS+ affine.
        modality: CT or MR, by its DICOM tag.
        order: Which of the files each slice came from, along the third axis.
    """

    volume: Volume
    modality: str
    order: tuple[int, ...]


@dataclass(frozen=True)
class _Slice:
    index: int
    number: str
    series: str
    kind: str
    grid: tuple[int, int]  # rows, columns
    data: Any  # a pydicom Dataset
    row: np.ndarray  # direction in which columns count up, LPS
    column: np.ndarray  # direction in which rows count up
    position: np.ndarray  # centre of the first voxel, mm, LPS
    spacing: tuple[float, float]  # between rows, between columns, mm


def read_series(files: Sequence[BinaryIO | Path], max_voxels: int, name: str = "the series") -> Series:
    """Reads the slices of one series, in any order.

    Args:
        files: One slice each.
        max_voxels: More are refused, by the headers and before a voxel is decoded.
        name: What error messages call it.

    Raises:
        VolumeError: No DICOM, not one series, or its slices make no regular grid; names the slice.
        TooLargeError: More voxels than are taken.
    """
    if len(files) < 2:
        raise VolumeError(f"{name} has {len(files)} DICOM slices; send all slices of one series")
    slices = [_slice(index, file, f"file {index + 1} of {name}") for index, file in enumerate(files)]
    first = slices[0]
    for one in slices:
        _require_alike(first, one, name)
    rows, columns = first.grid
    if (voxels := rows * columns * len(slices)) > max_voxels:
        raise TooLargeError(
            f"{name} has {voxels} voxels, more than the {max_voxels} that are taken; crop or resample it"
        )
    normal = np.cross(first.row, first.column)
    slices.sort(key=lambda one: float(one.position @ normal))
    step = _step(slices, normal, name)
    array = np.empty((columns, rows, len(slices)), np.float32)
    for index, one in enumerate(slices):
        array[:, :, index] = _pixels(one, name).T
    lps = np.eye(4)
    lps[:3, 0] = first.row * first.spacing[1]
    lps[:3, 1] = first.column * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = slices[0].position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Series(Volume(array, affine), CLASSES[first.kind], tuple(one.index for one in slices))


def write_header(file: BinaryIO | Path, path: Path) -> None:
    """Writes a slice without its pixels and without private elements.

    Raises:
        VolumeError: It cannot be written again as it was read.
    """
    if not isinstance(file, Path):
        file.seek(0)
    try:
        data = dcmread(file, stop_before_pixels=True)
        data.remove_private_tags()
        data.save_as(path)
    except (*DECODE_ERRORS, RuntimeError) as error:
        raise VolumeError(f"a slice's header is damaged ({type(error).__name__}); export it again") from None


def _slice(index: int, file: BinaryIO | Path, name: str) -> _Slice:
    try:
        data = dcmread(file)
        number = str(int(data.get("InstanceNumber", 0)))
        syntax, kind = data.file_meta.TransferSyntaxUID, str(data.SOPClassUID)
        if kind not in CLASSES:
            raise VolumeError(f"{name} (slice {number}) is no plain CT or MR image; leave reports, dose and others out")
        if syntax not in SYNTAXES:
            raise VolumeError(f"{name} (slice {number}) is compressed; export the series uncompressed")
        if "LOCALIZER" in data.get("ImageType", ()):
            raise VolumeError(f"{name} (slice {number}) is a localizer; leave it out of the series")
        _require_pixels(data, f"{name} (slice {number})")
        orientation = np.array([float(value) for value in data.ImageOrientationPatient])
        position = np.array([float(value) for value in data.ImagePositionPatient])
        spacing = tuple(float(value) for value in data.PixelSpacing)
        series, grid = str(data.SeriesInstanceUID), (int(data.Rows), int(data.Columns))
    except DECODE_ERRORS as error:
        raise VolumeError(f"{name} is damaged or no DICOM image ({type(error).__name__}); export it again") from None
    if orientation.shape != (6,) or position.shape != (3,) or len(spacing) != 2:
        raise VolumeError(f"{name} (slice {number}) lacks a number of its position, orientation or spacing")
    row, column = orientation[:3], orientation[3:]
    numbers = np.concatenate([orientation, position, spacing])
    lengths = np.array([row @ row, column @ column])
    if (
        not np.isfinite(numbers).all()
        or min(spacing) <= 0
        or np.abs(lengths - 1).max() > 2 * PARALLEL
        or abs(row @ column) > PARALLEL
    ):
        raise VolumeError(f"{name} (slice {number}) has an impossible position, orientation or spacing")
    return _Slice(index, number, series, kind, grid, data, row, column, position, (spacing[0], spacing[1]))


def _require_pixels(data: Any, name: str) -> None:
    """Compares what the header promises with what is there, before anything is decoded."""
    rows, columns, bits = int(data.Rows), int(data.Columns), int(data.BitsAllocated)
    if int(data.get("NumberOfFrames", 1) or 1) != 1 or int(data.SamplesPerPixel) != 1:
        raise VolumeError(f"{name} holds several frames or colours; export one gray image per file")
    if not (1 <= rows <= MAX_AXIS and 1 <= columns <= MAX_AXIS) or bits not in BITS:
        raise VolumeError(f"{name} has {rows} x {columns} voxels of {bits} bits, which no scanner makes")
    needed, there = rows * columns * bits // 8, len(data.PixelData)
    if not needed <= there <= needed + 1:  # padded to an even length
        raise VolumeError(f"{name} is damaged: {there} bytes where its header promises {needed}; export it again")
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise VolumeError(f"{name} scales its voxels by {slope:g} and adds {intercept:g}; export it again")


def _require_alike(first: _Slice, one: _Slice, name: str) -> None:
    if one.series != first.series:
        raise VolumeError(f"{name} mixes series: slice {one.number} is of another than slice {first.number}; send one")
    if one.kind != first.kind:
        raise VolumeError(f"{name} mixes CT and MR: slices {first.number} and {one.number}; send one series")
    if one.grid != first.grid or not np.allclose(one.spacing, first.spacing, rtol=1e-4):
        raise VolumeError(f"{name}: slice {one.number} has another size or pixel spacing than slice {first.number}")
    if max(np.abs(one.row - first.row).max(), np.abs(one.column - first.column).max()) > PARALLEL:
        raise VolumeError(f"{name}: slice {one.number} is not parallel to slice {first.number}; is it a localizer?")


def _step(slices: Sequence[_Slice], normal: np.ndarray, name: str) -> np.ndarray:
    """From one slice's first voxel to the next one's, mm, LPS."""
    positions = np.array([one.position for one in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    for index, gap in enumerate(gaps):
        here, there = slices[index].number, slices[index + 1].number
        if gap <= SAME_PLACE:
            raise VolumeError(f"{name}: slices {here} and {there} are at the same place; send one time or echo of it")
        if abs(gap - usual) > UNEVEN * usual:
            missing = round(gap / usual) - 1
            if missing > 0 and abs(gap - (missing + 1) * usual) <= UNEVEN * gap:
                raise VolumeError(f"{name}: {missing} missing between slices {here} and {there}; send the whole series")
            raise VolumeError(
                f"{name}: slices {here} and {there} are {gap:.3g} mm apart, others {usual:.3g} mm; resample it evenly"
            )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    if np.linalg.norm(step - (step @ normal) * normal) > TILT * usual:
        raise VolumeError(
            f"{name} was made with a tilted gantry: from slice {slices[0].number} to {slices[1].number} on each lies "
            "aside of the one before; correct the shear first"
        )
    aside = positions - positions[0] - np.arange(len(slices))[:, None] * step
    strays = np.linalg.norm(aside - np.outer(aside @ normal, normal), axis=1)
    if strays.max() > UNEVEN * usual:
        raise VolumeError(f"{name}: slice {slices[int(strays.argmax())].number} lies beside the line of the others")
    return np.asarray(step)


def _pixels(one: _Slice, name: str) -> np.ndarray:
    try:
        raw = one.data.pixel_array
    except (*DECODE_ERRORS, RuntimeError) as error:
        raise VolumeError(
            f"{name}: slice {one.number} cannot be decoded ({type(error).__name__}); export it again"
        ) from None
    slope, intercept = float(one.data.get("RescaleSlope", 1)), float(one.data.get("RescaleIntercept", 0))
    return np.asarray(raw.astype(np.float64) * slope + intercept, np.float32)
