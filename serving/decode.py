"""Decoding in a process of its own, with limits: a hostile file kills that process and not the replica.

`python -m dropgen.serving.decode SOURCE TARGET BYTES SECONDS` reads a .nii file and writes its voxels as .npy.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from dropgen.errors import TooLargeError, VolumeError
from dropgen.features.studies.volume import Volume, read_volume
from dropgen.manifest import REPOSITORY

NAME = "the uploaded volume"
INTERPRETER_BYTES = 3 * 2**29  # address space of Python, NumPy and SciPy before a voxel is read
COPIES = 24  # bytes per voxel at the peak: as stored (up to 8), scaled to float64, as float32, and the finite mask
CPU_SECONDS = 120
VOXELS_PER_SECOND = 2**20  # a tenth of what a slow core decodes


def decode(source: Path, target: Path, voxels: int) -> Volume:
    """Reads an unpacked .nii file; the array is mapped from `target`, so its pages are the disk's.

    Args:
        source: The file.
        target: Where its voxels go, .npy.
        voxels: How many its header promises; decides the limits.

    Raises:
        VolumeError: The reader refused the file.
        TooLargeError: It needed more memory or time than such a file may.
    """
    seconds = CPU_SECONDS + voxels // VOXELS_PER_SECOND
    command = [sys.executable, "-m", "dropgen.serving.decode", str(source), str(target)]
    limits = [str(INTERPRETER_BYTES + COPIES * voxels), str(seconds)]
    try:
        child = subprocess.run(
            [*command, *limits], capture_output=True, text=True, check=False, timeout=4 * seconds, env=_environment()
        )
    except subprocess.TimeoutExpired:
        raise TooLargeError(f"{NAME} could not be read within {4 * seconds} s; export it again") from None
    if child.returncode != 0:
        cause = signal.Signals(-child.returncode).name if child.returncode < 0 else f"exit code {child.returncode}"
        raise TooLargeError(f"{NAME} made its reader fail ({cause}) within its limits; export it again")
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise (TooLargeError if answer["large"] else VolumeError)(answer["error"])
    return Volume(np.load(target, mmap_mode="c", allow_pickle=False), np.array(answer["affine"], np.float64))


def _environment() -> dict[str, str]:
    """What a reader needs, and nothing of the server's secrets."""
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"PYTHONPATH": os.pathsep.join(paths), "PATH": os.environ.get("PATH", os.defpath), **threads}


def _main(source: str, target: str, memory: str, seconds: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the patient
    try:
        volume = read_volume(Path(source))
        np.save(target, volume.array)
        answer = {"affine": volume.affine.tolist()}
    except VolumeError as error:
        answer = {"error": str(error).replace(source, NAME), "large": False}
    except MemoryError:
        answer = {"error": f"{NAME} takes more memory to read than its header promises; export it again", "large": True}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    _main(*sys.argv[1:])
