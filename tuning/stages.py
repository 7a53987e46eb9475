"""Stages of the main job, each skipped where its result is on record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dropgen.console import say
from dropgen.manifest import Manifest


@dataclass
class Stages:
    """Runs stages, or skips those on record, and keeps their times.

    Attributes:
        seconds: What each stage took in this run.
        computed: What each stage took when it was last really done.
    """

    manifest: Manifest
    seconds: dict[str, float] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def do(self, name: str, key: str, work: Callable[[], tuple[list[Path] | None, Any]], due: bool = False) -> Any:
        """The stage's result, from the record or from `work`.

        Args:
            name: Stage name.
            key: Everything that the result depends on, hashed.
            work: Returns the outputs whose presence proves the stage (None: not complete, do not
                record it) and the result, as plain values.
            due: Whether it must be done in spite of the record.
        """
        began = time.perf_counter()
        entry = None if due else self.manifest.stage(name, key)
        if entry is not None:
            self.skipped.append(name)
            self.computed[name] = entry["seconds"]
            self.seconds[name] = round(time.perf_counter() - began, 2)
            say(f"{name}: skipped, done before in {entry['seconds']:.1f} s")
            return entry["result"]
        say(f"{name} ...")
        outputs, result = work()
        seconds = round(time.perf_counter() - began, 2)
        self.seconds[name] = self.computed[name] = seconds
        if outputs is not None:
            self.manifest.finish_stage(name, key, seconds, outputs, result)
        say(f"{name}: {seconds:.1f} s")
        return result
