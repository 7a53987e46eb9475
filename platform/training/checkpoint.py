"""Training checkpoints: whole or absent, whatever moment the process dies at."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dropgen.errors import CheckpointError, ResourceError


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes beside the old checkpoint, flushes to disk, then takes its place.

    Raises:
        ResourceError: The disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            partial.unlink()
        raise ResourceError(f"cannot write checkpoint {path}: {error}; free disk space and run again") from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The last checkpoint, or None where there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} is damaged; delete it to start this trial over") from error
    return state
