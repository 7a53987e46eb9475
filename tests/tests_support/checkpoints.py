"""Comparing training checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from dropgen.platform.training.checkpoint import load_checkpoint


def digest_of(checkpoint: Path) -> str:
    """One hash over every tensor and number of a checkpoint but the times, and where a process took over."""
    hasher = hashlib.sha256()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hasher.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key, entry in value.items():
                if key not in ("train_seconds", "wait_seconds", "resumed"):
                    hasher.update(str(key).encode())
                    walk(entry)
        elif isinstance(value, list | tuple):
            for entry in value:
                walk(entry)
        else:
            hasher.update(repr(value).encode())

    walk(load_checkpoint(checkpoint))
    return hasher.hexdigest()
