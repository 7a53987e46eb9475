"""Decoding in a process of its own, with limits: a hostile file kills that process and not the replica.

`python -m dropgen.serving.decode` takes a `Wanted` as JSON, reads a .nii file, or a zip or folder of a DICOM series,
and writes its voxels as .npy, and the headers of its slices into a folder, if one is named.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.volume import Volume, read_volume
from dropgen.manifest import REPOSITORY
from dropgen.serving.series import ZIP_MAGIC, unzip

NAME = "the uploaded volume"
INTERPRETER_BYTES = 3 * 2**29  # address space of Python, NumPy and SciPy before a voxel is read
COPIES = 24  # bytes per voxel at the peak: as stored (up to 8), scaled to float64, as float32, and the finite mask
CPU_SECONDS = 120
VOXELS_PER_SECOND = 2**20  # a tenth of what a slow core decodes


@dataclass(frozen=True)
class Decoded:
    """What a file holds.

    Attributes:
        volume: The image.
        modality: By its DICOM tag; None for NIfTI, which has none.
        slices: Headers of a series in the order of the third axis, where they were wanted; none for NIfTI.
    """

    volume: Volume
    modality: str | None
    slices: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What is read, and within which limits.

    Attributes:
        source: The file, or the folder of a series.
        target: Where its voxels go, .npy.
        voxels: How many its header promises, or a series may have; decides the limits.
        unpacked: Bytes that a zip may unfold to, or that the files of a folder have.
        headers: Folder, not there yet, for the slices without their pixels, if they are wanted.
        derived: Whether a folder's series may have been computed from another.
        name: What error messages call it.
    """

    source: Path
    target: Path
    voxels: int
    unpacked: int = 0
    headers: Path | None = None
    derived: bool = False
    name: str = NAME

    @property
    def memory(self) -> int:
        """Bytes of address space for the reader."""
        return INTERPRETER_BYTES + COPIES * self.voxels + self.unpacked

    @property
    def seconds(self) -> int:
        """Of the processor."""
        return CPU_SECONDS + self.voxels // VOXELS_PER_SECOND


def decode(wanted: Wanted) -> Decoded:
    """Reads an unpacked .nii file, or a zip or folder of one DICOM series.

    The array is mapped from `wanted.target`, so that its pages are the disk's.

    Raises:
        VolumeError: The reader refused the file.
        TooLargeError: It needed more memory or time than such a file may.
    """
    told = json.dumps(asdict(wanted), default=str)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "dropgen.serving.decode", told],
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * wanted.seconds,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise TooLargeError(f"{wanted.name} could not be read within {4 * wanted.seconds} s; export it again") from None
    if child.returncode != 0:
        cause = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        raise TooLargeError(f"{wanted.name} made its reader fail ({cause}) within its limits; export it again")
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise (TooLargeError if answer["large"] else VolumeError)(answer["error"])
    array, headers = np.load(wanted.target, mmap_mode="c", allow_pickle=False), wanted.headers
    slices = () if headers is None or not headers.exists() else tuple(sorted(headers.iterdir()))
    return Decoded(Volume(array, np.array(answer["affine"], np.float64)), answer["modality"], slices)


def _environment() -> dict[str, str]:
    """What a reader needs, and nothing of the server's secrets."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.environ.get("PATH", os.defpath), **threads}


def _read(wanted: Wanted) -> Decoded:
    files: Sequence[BinaryIO | Path]
    if wanted.source.is_dir():
        files = _of_folder(wanted)
    else:
        with wanted.source.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                return Decoded(read_volume(wanted.source), None)
        files = unzip(wanted.source, wanted.unpacked, wanted.name)
    from dropgen.features.studies.dicom import read_series, write_header  # a NIfTI needs not wait for it

    series = read_series(files, wanted.voxels, wanted.name)
    if wanted.headers is not None:
        wanted.headers.mkdir()
        for place, index in enumerate(series.order):
            write_header(files[index], wanted.headers / f"{place:05d}.dcm")
    return Decoded(series.volume, series.modality)


def _of_folder(wanted: Wanted) -> list[Path]:
    """Its slices, where they are a series that is meant to be segmented."""
    from dropgen.features.studies.dicom_tree import list_series

    listed = list_series(wanted.source.glob("*.dcm"), wanted.derived)
    if refused := [one.reason for one in listed if one.reason]:
        raise VolumeError(f"{wanted.name} cannot be segmented: {refused[0]}")
    return [file for one in listed for file in one.files]


def _main(told: dict[str, Any]) -> None:
    for name in ("source", "target", "headers"):
        told[name] = None if told[name] is None else Path(told[name])
    wanted = Wanted(**told)
    resource.setrlimit(resource.RLIMIT_AS, (wanted.memory, wanted.memory))
    resource.setrlimit(resource.RLIMIT_CPU, (wanted.seconds, wanted.seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted.memory, wanted.memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the patient
    try:
        decoded = _read(wanted)
        np.save(wanted.target, decoded.volume.array)
        answer = {"affine": decoded.volume.affine.tolist(), "modality": decoded.modality}
    except TooLargeError as error:
        answer = {"error": str(error), "large": True}
    except VolumeError as error:
        answer = {"error": str(error).replace(str(wanted.source), wanted.name), "large": False}
    except MemoryError:
        needed = "takes more memory to read than its header promises"
        answer = {"error": f"{wanted.name} {needed}; export it again", "large": True}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
