"""The checkpoints that a trained trial keeps: the one that its rule chose, the last one, and the source rule's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dropgen.config import Trial
from dropgen.errors import CheckpointError
from dropgen.platform.bundle import SPEC_FILE
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.bench import BESIDE, Workbench
from dropgen.platform.training.checkpoint import load_checkpoint
from dropgen.platform.training.loop import LAST

Checkpoint = Literal["chosen", "last", "source_rule"]


def fingerprint_file(bench: Workbench, trial: Trial, checkpoint: Checkpoint) -> Path:
    """The file whose bytes tell one checkpoint from another.

    Raises:
        CheckpointError: The trial is not trained, or does not keep that checkpoint.
    """
    bundle = bench.bundle(trial)
    path = {
        "chosen": bundle / SPEC_FILE,
        "last": bench.folder(trial) / LAST,
        "source_rule": bench.folder(trial) / BESIDE / SPEC_FILE,
    }[checkpoint]
    if not path.exists():
        raise CheckpointError(f"trial '{trial.label}' lacks {path}; delete its folder and train again")
    return path


def load_kept(bench: Workbench, trial: Trial, checkpoint: Checkpoint, device: str) -> Segmenter:
    """A checkpoint as it predicts; the last one with whatever options were chosen after training.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if checkpoint == "source_rule":
        return Segmenter.load(bench.folder(trial) / BESIDE, device)
    segmenter = Segmenter.load(bench.bundle(trial), device)
    if checkpoint == "last":
        state = load_checkpoint(fingerprint_file(bench, trial, checkpoint))
        assert state is not None
        segmenter.network.load_state_dict(state["network"])
    return segmenter
