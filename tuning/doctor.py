"""`dropgen doctor`: whether this machine can do the work, one line per finding."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from dropgen.console import say
from dropgen.errors import DropGenError, ResourceError
from dropgen.features.cluster import connect

PYTHON = (3, 11)
MEMORY_GIB = 8  # what the demo stays under
DISK_GIB = 2
# PyTorch 2.9 made 3D convolutions about four times slower; a healthy CPU does this one in well under a second.
CONVOLUTION_SECONDS = 2.0


@dataclass(frozen=True)
class Finding:
    """One checked thing: what was found, and whether it will do."""

    name: str
    ok: bool
    found: str


def examine(root: Path) -> list[Finding]:
    """Runs every check; none of them writes anything that stays."""
    return [_python(), *_packages(), _memory(), _disk(root), _convolution(), _device(), _weights(), _ray()]


def _python() -> Finding:
    wanted = ".".join(map(str, PYTHON))
    return Finding("python", sys.version_info >= PYTHON, f"{platform.python_version()}, needs {wanted} or newer")


def _packages() -> list[Finding]:
    """Installed versions against the ranges that the installed project itself declares."""
    try:
        declared = metadata.requires("dropgen") or []
    except metadata.PackageNotFoundError:
        return [Finding("dropgen", True, "runs from its folder, not installed; package ranges are not checked")]
    found = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = str(requirement.specifier) or "any version"
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found.append(Finding(requirement.name, False, f"not installed, needs {wanted}"))
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        found.append(Finding(requirement.name, fits, f"{version}, needs {wanted}"))
    return found


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    available, total = memory.available / 2**30, memory.total / 2**30
    return Finding("memory", available >= MEMORY_GIB, f"{available:.1f} of {total:.1f} GiB free, wants {MEMORY_GIB}")


def _disk(root: Path) -> Finding:
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 2**30
    ok = free >= DISK_GIB and os.access(existing, os.W_OK)
    return Finding("disk", ok, f"{free:.1f} GiB free under {root}, wants {DISK_GIB} and the right to write")


def _convolution() -> Finding:
    """Times one forward and backward 3x3x3 convolution, 16 to 16 channels at 48^3, after a warm-up."""
    image_bcxyz = torch.randn(1, 16, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Conv3d(16, 16, 3, padding=1, padding_mode="reflect", bias=False)
    seconds = min(_seconds(lambda: layer(image_bcxyz).sum().backward()) for _ in range(2))
    return Finding("3D convolution", seconds < CONVOLUTION_SECONDS, f"{seconds:.3f} s forward and backward at 48^3")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _device() -> Finding:
    if not torch.cuda.is_available():
        return Finding("device", True, f"CPU, {os.cpu_count()} cores; no CUDA device")
    return Finding("device", True, f"{torch.cuda.get_device_name()}, {torch.cuda.device_count()} CUDA device(s)")


def _weights() -> Finding:
    """MIND needs no weights, so a missing folder is no fault."""
    folder = os.environ.get("DROPGEN_WEIGHTS")
    if not folder:
        return Finding("weights", True, "DROPGEN_WEIGHTS is not set; needed by extractors with weights, not by MIND")
    files = sorted(path.name for path in Path(folder).expanduser().glob("*") if path.is_file())
    return Finding("weights", bool(files), f"{folder} holds {', '.join(files) or 'nothing'}")


def _ray() -> Finding:
    began = time.perf_counter()
    try:
        with connect():
            return Finding("ray", True, f"a cluster answered after {time.perf_counter() - began:.1f} s")
    except (DropGenError, RuntimeError, OSError) as error:
        return Finding("ray", False, re.sub(r"\s+", " ", str(error)))


def command(arguments: argparse.Namespace) -> dict[str, Any]:
    """`dropgen doctor`.

    Raises:
        ResourceError: Something will not do.
    """
    findings = examine(arguments.root)
    for finding in findings:
        say(f"{'ok ' if finding.ok else 'NO '} {finding.name}: {finding.found}")
    document = {"ok": all(finding.ok for finding in findings), "findings": [asdict(finding) for finding in findings]}
    if not document["ok"]:
        names = ", ".join(finding.name for finding in findings if not finding.ok)
        error = ResourceError(f"this machine falls short in: {names}")
        error.document = document
        raise error
    return document
