"""Run manifests and stage keys: what was run, with what, and whether it has to be run again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from dropgen import __version__
from dropgen.errors import ResourceError

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "ray", "monai", "zarr", "optuna", "mlflow", "numpy", "nibabel")


def digest(value: object) -> str:
    """A 16-digit hexadecimal hash of any JSON value; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """A 32-digit hexadecimal hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.cache
def code_version(*parts: str) -> str:
    """A hash over Python sources, so that changed code means changed keys.

    Args:
        parts: Folders or files inside the package, for example "features" or "platform/segmenter.py".
    """
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        path = REPOSITORY / "dropgen" / part
        for source in [path] if path.is_file() else sorted(path.rglob("*.py")):
            hasher.update(source.name.encode() + source.read_bytes())
    return hasher.hexdigest()


@functools.cache
def git_commit() -> str:
    """The checkout's commit, with "+changes" where files differ from it; "unknown" outside git."""
    try:
        command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+changes", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_json(path: Path, value: object) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("w") as file:
        json.dump(value, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Reads JSON; None where the file is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def peak_rss_mb() -> int:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


class Manifest:
    """The record that a verb leaves beside its output: `manifest.json`.

    A stage whose key (config slice + input fingerprints + code version) is on record as finished
    and whose outputs still exist is skipped.
    """

    def __init__(self, path: Path, verb: str, config: Mapping[str, Any]) -> None:
        previous = read_json(path) or {}
        self._path = path
        self._started = time.time()
        self._record: dict[str, Any] = {
            "verb": verb,
            "config": dict(config),
            "config_hash": digest(config),
            "commit": git_commit(),
            "versions": {"dropgen": __version__, "python": platform.python_version(), **versions()},
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "stages": previous.get("stages", {}),
            "exit": "running",
        }

    def stage(self, name: str, key: str) -> dict[str, Any] | None:
        """The recorded result of a finished stage with this key whose outputs still exist."""
        entry = self._record["stages"].get(name)
        if not entry or entry["key"] != key or not all(Path(path).exists() for path in entry["outputs"]):
            return None
        return dict(entry)

    def finish_stage(self, name: str, key: str, seconds: float, outputs: list[Path], result: object) -> None:
        """Records a finished stage."""
        self._record["stages"][name] = {
            "key": key, "seconds": round(seconds, 2), "outputs": [str(path) for path in outputs], "result": result,
        }  # fmt: skip
        self._write()

    @contextmanager
    def running(self) -> Iterator[Manifest]:
        """Writes the manifest at the start and, with the exit cause, at the end.

        Raises:
            ResourceError: It cannot be written.
        """
        self._write()
        try:
            yield self
        except BaseException as error:
            self._record["exit"] = f"{type(error).__name__}: {error}"
            with suppress(ResourceError):  # the error that is on its way says more
                self._write()
            raise
        self._record["exit"] = "finished"
        self._write()

    def _write(self) -> None:
        self._record |= {"seconds": round(time.time() - self._started, 2), "peak_rss_mb": peak_rss_mb()}
        try:
            write_json(self._path, self._record)
        except OSError as error:
            raise ResourceError(
                f"cannot write {self._path}: {error.strerror}; free disk space there or choose a writable folder with "
                "--root"
            ) from error


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """What is installed of each package: its version, or "not installed"."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
