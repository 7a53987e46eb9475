"""One NIfTI file in, one array with its affine out; every way a file can be broken is named here."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from dropgen.errors import VolumeError

MAX_AXIS = 4096  # voxels; beyond any scanner, so a header that says more is damaged
MAX_VOXELS = 2**31
COMMENT = 6  # code of a header extension of plain text (NIfTI-1.1)
MIN_UNIT_DETERMINANT = 1e-6  # of the affine with its columns scaled to length 1: below, two axes coincide
GZIP_MAGIC = b"\x1f\x8b"
# What nibabel, gzip and NumPy raise between them for damaged headers and data.
DECODE_ERRORS = (
    OSError, EOFError, ValueError, OverflowError, zlib.error, ImageFileError, HeaderDataError, HeaderTypeError
)  # fmt: skip


@dataclass(frozen=True)
class Volume:
    """One image or mask as stored in its file.

    Attributes:
        array: [X, Y, Z] in file order; float32 for an image, int32 for a mask.
        affine: [4, 4] float64, voxel index to world millimetres (RAS+).
    """

    array: np.ndarray
    affine: np.ndarray


def is_nifti(path: Path) -> bool:
    """Whether a file's content says that it is NIfTI, gzipped or not; False for one that cannot be read."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(2)
            stream.seek(0)
            plain: Any = gzip.GzipFile(fileobj=stream) if magic == GZIP_MAGIC else stream
            return _nifti_kind(plain) is not None
    except DECODE_ERRORS:
        return False


def read_volume(path: Path) -> Volume:
    """Reads an image as float32.

    Raises:
        VolumeError: The file is missing, undecodable, truncated, not a 3-D one-channel NIfTI, holds voxels
            that are not finite, or has a singular affine.
    """
    with _open(path) as stream:
        return _image(stream, str(path))


def read_channels(path: Path) -> tuple[Volume, ...]:
    """Reads a 4-D image as one volume per channel, which is its last axis.

    Raises:
        VolumeError: As `read_volume`, where the file is not 4-D.
    """
    with _open(path) as stream:
        array_xyzc, affine = _decode(stream, str(path), axes=4)
    channels = tuple(Volume(array_xyzc[..., i].astype(np.float32), affine) for i in range(array_xyzc.shape[3]))
    for channel in channels:
        _require_finite(channel.array, str(path))
    return channels


def read_grid(path: Path) -> Volume:
    """Shape and affine of a file from its header alone: the array is zeros that take no memory.

    Raises:
        VolumeError: As `read_volume`, but nothing about the voxels.
    """
    with _open(path) as stream:
        return Volume(*_decode(stream, str(path), header_only=True))


def volume_from_bytes(data: bytes, name: str = "the image") -> Volume:
    """Reads an image from the bytes of a .nii or .nii.gz file, with the checks of `read_volume`.

    Args:
        data: The file's content.
        name: What error messages call it.
    """
    return _image(io.BytesIO(data), name)


def read_mask(path: Path) -> Volume:
    """Reads a label map as int32.

    Raises:
        VolumeError: As `read_volume`, and where a value is not a whole number.
    """
    with _open(path) as stream:
        array, affine = _decode(stream, str(path))
    _require_finite(array, str(path))
    if array.dtype.kind == "f" and not (whole := array == np.rint(array)).all():
        x, y, z = _first(~whole)
        raise VolumeError(f"{path}: label at voxel [{x}, {y}, {z}] is {array[x, y, z]:g}; labels must be whole numbers")
    with np.errstate(invalid="ignore"):  # a number beyond int32 changes here and is reported below
        mask = array.astype(np.int32)
    if not (same := mask == array).all():
        x, y, z = _first(~same)
        raise VolumeError(f"{path}: label at voxel [{x}, {y}, {z}] is {array[x, y, z]:g}, too large to be a class")
    return Volume(mask, affine)


def write_mask(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """Writes a mask [X, Y, Z] as uint8 NIfTI; a reader sees the whole file or none."""
    write_volume(path, mask.astype(np.uint8), affine)


def mask_to_bytes(mask: np.ndarray, affine: np.ndarray, note: str = "", comment: str = "") -> bytes:
    """A mask [X, Y, Z] as the bytes of a uint8 .nii.gz file.

    Args:
        mask: Label values.
        affine: [4, 4], voxel index to world mm.
        note: As of `write_volume`.
        comment: Of any length, for a header extension of code 6.
    """
    return _encode(mask.astype(np.uint8), affine, compress=True, note=note, comment=comment)


def write_volume(path: Path, array: np.ndarray, affine: np.ndarray, note: str = "") -> None:
    """Writes an array [X, Y, Z] as NIfTI in its own dtype, gzipped when the name ends in .gz.

    The same array always gives the same bytes.

    Args:
        path: The file; a reader sees the whole of it or none.
        array: Voxels.
        affine: [4, 4], voxel index to world mm.
        note: At most 79 ASCII characters for the header, which `read_note` reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(_encode(array, affine, compress=path.suffix == ".gz", note=note))
    partial.replace(path)


def read_note(path: Path) -> str | None:
    """The note in the header of a file that `write_volume` wrote; None where there is no such file."""
    try:
        return bytes(nib.Nifti1Image.from_filename(path).header["descrip"].item()).decode()
    except (*DECODE_ERRORS, KeyError):
        return None


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise VolumeError(f"{path} cannot be opened ({error.strerror}); check the path in the manifest") from None


def _image(stream: BinaryIO, name: str) -> Volume:
    array, affine = _decode(stream, name)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is reported as such
        array = array.astype(np.float32)
    _require_finite(array, name)
    return Volume(array, affine)


def _decode(stream: BinaryIO, name: str, header_only: bool = False, axes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    magic = stream.read(2)
    stream.seek(0)
    plain: Any = gzip.GzipFile(fileobj=stream) if magic == GZIP_MAGIC else stream
    try:
        kind = _nifti_kind(plain)
        if kind is None:
            raise VolumeError(f"{name} is not a NIfTI file; convert it to .nii or .nii.gz")
        image = kind.from_stream(plain)
        _require_shape(image.shape, image.get_data_dtype(), name, axes)
        affine = np.asarray(image.affine, np.float64)
        _require_invertible(affine, name)
        if header_only:
            return np.broadcast_to(np.float32(0), image.shape), affine
        array = np.asarray(image.dataobj)
        plain.read(1)  # the end of a gzip stream is where its checksum is compared
    except DECODE_ERRORS as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise VolumeError(f"{name} is damaged or truncated ({cause}); copy or export it again") from None
    return array, affine


def _nifti_kind(stream: Any) -> type[nib.Nifti1Image] | None:
    header = stream.read(nib.Nifti2Header.sizeof_hdr)
    stream.seek(0)
    kinds = (nib.Nifti1Image, nib.Nifti2Image)
    return next((kind for kind in kinds if kind.header_class.may_contain_header(header)), None)


def _require_shape(shape: tuple[int, ...], dtype: np.dtype, name: str, axes: int) -> None:
    if dtype.kind not in "iuf":
        raise VolumeError(f"{name} holds {dtype} voxels, not one number each; export one gray channel")
    if len(shape) != axes:
        remedy = "export one 3-D volume per file" if axes == 3 else "its channels must be a fourth axis"
        raise VolumeError(f"{name} is {len(shape)}-D with shape {list(shape)}; {remedy}")
    for axis, size in zip("xyzc", shape, strict=False):
        if not 1 <= size <= MAX_AXIS:
            raise VolumeError(f"{name}: axis {axis} has {size} voxels, not 1 to {MAX_AXIS}; the header is damaged")
    if (voxels := math.prod(shape)) > MAX_VOXELS:
        raise VolumeError(
            f"{name}: shape {list(shape)} is {voxels} voxels, more than {MAX_VOXELS}; crop or resample it"
        )


def _require_invertible(affine: np.ndarray, name: str) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError(f"{name}: the affine holds a value that is not finite; repair the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    for axis, length in zip("xyz", lengths, strict=True):
        if length == 0:
            raise VolumeError(f"{name}: the affine is singular, axis {axis} has a step of 0 mm; repair the header")
    if abs(determinant := np.linalg.det(affine[:3, :3] / lengths)) < MIN_UNIT_DETERMINANT:
        raise VolumeError(
            f"{name}: the affine is singular, two of its axes coincide (determinant of the unit axes "
            f"{determinant:.1e}); repair the header"
        )


def _require_finite(array: np.ndarray, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        x, y, z = _first(~finite)
        count = array.size - int(np.count_nonzero(finite))
        raise VolumeError(
            f"{name}: voxel [{x}, {y}, {z}] is {array[x, y, z]} (not finite: {count} in all); mend or mask such voxels"
        )


def _first(where: np.ndarray) -> tuple[int, int, int]:
    x, y, z = np.unravel_index(int(np.argmax(where)), where.shape)
    return int(x), int(y), int(z)


def _encode(array: np.ndarray, affine: np.ndarray, compress: bool, note: str = "", comment: str = "") -> bytes:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = note
    if comment:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(COMMENT, comment.encode()))
    data = bytes(image.to_bytes())
    return gzip.compress(data, compresslevel=3, mtime=0) if compress else data
