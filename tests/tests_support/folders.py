"""A folder of scans through `dropgen segment`, with a segment function of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dropgen.serving.backend import Segment
from dropgen.serving.batch import PLAIN, Asked, segment_cases
from dropgen.serving.cases import find_cases
from dropgen.serving.journal import Journal
from dropgen.serving.models import Model


def segment_folder(source: Path, target: Path, model: Model, segment: Segment, asked: Asked = PLAIN) -> dict[str, Any]:
    """What the command does, its audit log beside the masks' folder."""
    audit = Journal(target.parent / "audit.jsonl")
    return segment_cases(find_cases(source, target), source, target, model, segment, audit, asked=asked)
