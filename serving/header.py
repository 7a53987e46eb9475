"""A NIfTI header judged by its first bytes, before anything is allocated or a reader sees the file.

Written against the standard and not with the reader that it guards: a 377-byte file once made nifti_clib ask for 18 GB.
Sources: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.volume import MAX_AXIS

HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348, and at least 4 more before its voxels
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}  # by code, one number a voxel
MAX_EXTENSION = 2**24  # bytes between header and voxels


@dataclass(frozen=True)
class Header:
    """What a header promises.

    Attributes:
        shape: Voxels along x, y and z.
        file_bytes: Least length of the unpacked file.
    """

    shape: tuple[int, int, int]
    file_bytes: int

    @property
    def voxels(self) -> int:
        """Their number."""
        return math.prod(self.shape)


def check_header(head: bytes, max_voxels: int, name: str = "the uploaded volume") -> Header:
    """Reads the first 540 bytes of an unpacked file, or all of a shorter one.

    Raises:
        VolumeError: This is no single-file NIfTI, or a field cannot be true.
        TooLargeError: More voxels than are taken.
    """
    fields = _fields(head, name)
    shape = _shape(fields.dim, name)
    if (bits := BITS.get(fields.datatype)) is None:
        raise VolumeError(f"{name} has data type {fields.datatype}, not one number per voxel; export one gray channel")
    if fields.bitpix != bits:
        raise VolumeError(
            f"{name} is damaged: data type {fields.datatype} has {bits} bits and bitpix says {fields.bitpix}; "
            "export it again"
        )
    _require_offset(fields.offset, fields.least_offset, name)
    _require_scaling(fields.slope, fields.intercept, name)
    if (voxels := math.prod(shape)) > max_voxels:
        raise TooLargeError(
            f"{name} has {list(shape)} voxels, {voxels} in all, larger than the {max_voxels} that this server takes; "
            "crop or resample it"
        )
    offset = int(fields.offset) or fields.least_offset
    return Header(shape, offset + voxels * bits // 8)


@dataclass(frozen=True)
class _Fields:
    dim: tuple[int, ...]
    datatype: int
    bitpix: int
    offset: float
    slope: float
    intercept: float
    least_offset: int


def _fields(head: bytes, name: str) -> _Fields:
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(f"{order}i", head)[0] == 348 and head[344:348] == b"n+1\0":
            dim = struct.unpack_from(f"{order}8h", head, 40)
            datatype, bitpix = struct.unpack_from(f"{order}2h", head, 70)
            offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
            return _Fields(dim, datatype, bitpix, offset, slope, intercept, least_offset=352)
        if len(head) >= 540 and struct.unpack_from(f"{order}i", head)[0] == 540 and head[4:8] == b"n+2\0":
            datatype, bitpix = struct.unpack_from(f"{order}2h", head, 12)
            dim = struct.unpack_from(f"{order}8q", head, 16)
            offset, slope, intercept = struct.unpack_from(f"{order}q2d", head, 168)
            return _Fields(dim, datatype, bitpix, offset, slope, intercept, least_offset=544)
    raise VolumeError(f"{name} is not a NIfTI file; convert it to .nii or .nii.gz")


def _shape(dim: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if not 1 <= dim[0] <= 7:
        raise VolumeError(f"{name} is damaged: it says that it has {dim[0]} dimensions; export it again")
    # A trailing axis of one voxel is not dropped: the reader does not either.
    if dim[0] != 3:
        raise VolumeError(f"{name} is {dim[0]}-D; export one 3-D volume per file")
    for axis, size in zip("xyz", dim[1:4], strict=True):
        if not 1 <= size <= MAX_AXIS:
            raise VolumeError(f"{name}: axis {axis} has {size} voxels, not 1 to {MAX_AXIS}; the header is damaged")
    return dim[1], dim[2], dim[3]


def _require_offset(offset: float, least: int, name: str) -> None:
    # 0 is written by programs that mean "right after the header".
    if not math.isfinite(offset) or offset != int(offset) or (offset != 0 and not least <= offset <= MAX_EXTENSION):
        raise VolumeError(
            f"{name} is damaged: its voxels begin at byte {offset:g}, not at {least} to {MAX_EXTENSION}; "
            "export it again"
        )


def _require_scaling(slope: float, intercept: float, name: str) -> None:
    # A slope of 0 or NaN means that voxels are stored as they are; nibabel writes NaN.
    if slope == 0 or math.isnan(slope):
        return
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise VolumeError(f"{name} scales its voxels by {slope:g} and adds {intercept:g}, not finite; export it again")
