"""What one replica of the service takes on, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from dropgen.serving.upload import Caps


@dataclass(frozen=True)
class Limits:
    """What a replica takes on.

    Attributes:
        max_memory: Bytes that one prediction may take.
        caps: Of a body at /v1/segment.
        job_caps: Of a volume at /v1/jobs.
        queue: Requests for a mask that may wait or be worked on.
        jobs: Jobs that may be unfinished, over all replicas.
        answer_seconds: From a received body to its mask.
        keep_seconds: How long a finished job is kept.
        sources: Folders that a job's volume may be named in.
        margin: Bytes that a replica may keep beyond what is planned; infinite for any.
    """

    max_memory: int
    caps: Caps = field(default_factory=lambda: Caps(unpacked_bytes=2**29))
    job_caps: Caps = field(default_factory=lambda: Caps(2**32, 2**33, 2**31, seconds=3600))
    queue: int = 16
    jobs: int = 1000
    answer_seconds: float = 900
    keep_seconds: float = 24 * 3600
    sources: tuple[Path, ...] = ()
    margin: float = math.inf
