"""A folder of scans through `dropgen segment`, with a segment function of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dropgen.serving.batch import PLAIN, Asked, segment_cases
from dropgen.serving.cases import Scan, find_cases
from dropgen.serving.journal import Journal
from dropgen.serving.models import Model
from dropgen.serving.quality import Segmented
from dropgen.serving.threads import work_here


def segment_folder(
    source: Path,
    target: Path,
    model: Model,
    segment: Callable[[Scan], Segmented],
    asked: Asked = PLAIN,
    in_flight: int = 1,
) -> dict[str, Any]:
    """What the command does, its audit log beside the masks' folder."""

    def work(tasks: Any, line: Any, on_done: Any) -> None:
        work_here(tasks, line, lambda scan: nullcontext(segment(scan)), {}, in_flight, on_done, threading.Event())

    return segment_cases(
        find_cases(source, target), source, target, model, work, Journal(target.parent / "audit.jsonl"), asked
    )
