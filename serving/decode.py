"""Decoding in a process of its own, with limits: a hostile file kills that process and not the replica.

`python -m dropgen.serving.decode SOURCE TARGET BYTES SECONDS VOXELS UNPACKED HEADERS` reads a .nii file, or a zip of a
DICOM series, and writes its voxels as .npy, and the headers of its slices into the folder HEADERS, if that is named.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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


def decode(source: Path, target: Path, voxels: int, unpacked: int = 0, headers: Path | None = None) -> Decoded:
    """Reads an unpacked .nii file, or a zip of one DICOM series.

    The array is mapped from `target`, so that its pages are the disk's.

    Args:
        source: The file.
        target: Where its voxels go, .npy.
        voxels: How many its header promises, or a zip may have; decides the limits.
        unpacked: Bytes that a zip may unfold to.
        headers: Folder, not there yet, for the slices without their pixels, if they are wanted.

    Raises:
        VolumeError: The reader refused the file.
        TooLargeError: It needed more memory or time than such a file may.
    """
    seconds = CPU_SECONDS + voxels // VOXELS_PER_SECOND
    command = [sys.executable, "-m", "dropgen.serving.decode", str(source), str(target)]
    limits = [str(INTERPRETER_BYTES + COPIES * voxels + unpacked), str(seconds), str(voxels), str(unpacked)]
    wanted = "" if headers is None else str(headers)
    try:
        child = subprocess.run(
            [*command, *limits, wanted],
            capture_output=True,
            text=True,
            check=False,
            timeout=4 * seconds,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise TooLargeError(f"{NAME} could not be read within {4 * seconds} s; export it again") from None
    if child.returncode != 0:
        cause = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        raise TooLargeError(f"{NAME} made its reader fail ({cause}) within its limits; export it again")
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise (TooLargeError if answer["large"] else VolumeError)(answer["error"])
    array = np.load(target, mmap_mode="c", allow_pickle=False)
    slices = () if headers is None or not headers.exists() else tuple(sorted(headers.iterdir()))
    return Decoded(Volume(array, np.array(answer["affine"], np.float64)), answer["modality"], slices)


def _environment() -> dict[str, str]:
    """What a reader needs, and nothing of the server's secrets."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.environ.get("PATH", os.defpath), **threads}


def _read(source: Path, voxels: int, unpacked: int, headers: Path | None) -> Decoded:
    with source.open("rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            return Decoded(read_volume(source), None)
    from dropgen.features.studies.dicom import read_series, write_header  # a NIfTI needs not wait for it

    files = unzip(source, unpacked, NAME)
    series = read_series(files, voxels, NAME)
    if headers is not None:
        headers.mkdir()
        for place, index in enumerate(series.order):
            files[index].seek(0)
            write_header(files[index], headers / f"{place:05d}.dcm")
    return Decoded(series.volume, series.modality)


def _main(source: str, target: str, memory: str, seconds: str, voxels: str, unpacked: str, headers: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the patient
    try:
        decoded = _read(Path(source), int(voxels), int(unpacked), Path(headers) if headers else None)
        np.save(target, decoded.volume.array)
        answer = {"affine": decoded.volume.affine.tolist(), "modality": decoded.modality}
    except TooLargeError as error:
        answer = {"error": str(error), "large": True}
    except VolumeError as error:
        answer = {"error": str(error).replace(source, NAME), "large": False}
    except MemoryError:
        answer = {"error": f"{NAME} takes more memory to read than its header promises; export it again", "large": True}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
