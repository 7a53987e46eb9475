"""Every look at the test cases is one line of a file that only grows, so that nobody has to be believed."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from dropgen.config import Component, Trial
from dropgen.errors import ResourceError
from dropgen.features.index import StudyIndex
from dropgen.features.studies.study import Case
from dropgen.manifest import digest

LOG = "test-touches.jsonl"


@dataclass(frozen=True)
class Touch:
    """One prediction, or scoring, of the held-out cases by one model.

    Attributes:
        when: UTC, to the second.
        verb: Which verb asked for it.
        trial: The trial's key.
        method: Label of the trial's method.
        seed: Of the trial.
        adapt: Label of the test-time method; None without one.
        checkpoint: Which of the trial's checkpoints: "chosen" by the selection rule, or one that is told beside it.
        cases: Digest of the cases' names and files.
    """

    when: str
    verb: str
    trial: str
    method: str
    seed: int
    adapt: str | None
    checkpoint: str
    cases: str

    @classmethod
    def of(
        cls,
        verb: str,
        key: str,
        trial: Trial,
        adapt: Component | None,
        checkpoint: str,
        cases: Sequence[Case],
        index: StudyIndex,
    ) -> Touch:
        """The touch of a trial that is about to predict these cases."""
        seen = {case.id: (index.keys[case.id].volume, index.keys[case.id].label) for case in cases}
        when = datetime.now(UTC).isoformat(timespec="seconds")
        how = None if adapt is None else adapt.label
        return cls(when, verb, key, trial.method.label, trial.seed, how, checkpoint, digest(seen))

    @property
    def model(self) -> tuple[str, str | None, str]:
        """What predicted: a trial, with it a test-time method, and which checkpoint."""
        return self.trial, self.adapt, self.checkpoint

    def log(self, folder: Path) -> None:
        """Adds it to the log of an experiment's folder, before the first prediction: one that is killed has looked too.

        Raises:
            ResourceError: The log cannot be written.
        """
        path = folder / LOG
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # several trials are tested at once
                if _ends_within_a_line(file):
                    file.write(b"\n")
                file.write((json.dumps(asdict(self)) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ResourceError(
                f"cannot write {path}: {error.strerror}; no test case is predicted without a line there, so free disk "
                "space or make the folder writable"
            ) from error


def read_touches(folder: Path) -> list[Touch]:
    """All touches of an experiment, in their order; a line that is none is left out."""
    path = folder / LOG
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    names = {field.name for field in fields(Touch)}
    found = (_parsed(line) for line in lines)
    return [Touch(**values) for values in found if values is not None and set(values) == names]


def touches_said(touches: Sequence[Touch], rows: Iterable[Mapping[str, Any]]) -> str:
    """How often the test cases were looked at, in a sentence or two.

    Args:
        touches: Of the experiment.
        rows: Of its table; those that no touch is on record for are told.
    """
    counts = Counter(touch.model for touch in touches)
    silent = sum(_model(row) not in counts for row in rows)
    said = []
    if counts:
        most = max(counts.values())
        each = "once by each" if most == 1 else f"at most {most} times by one"
        models = f"{len(counts)} model{'' if len(counts) == 1 else 's'}"
        said.append(f"The test cases were predicted {len(touches)} times, {each} of {models} ({LOG}).")
    if silent:
        said.append(f"{silent} of the tested rows are from before every look at the test cases was logged.")
    return " ".join(said)


def _ends_within_a_line(file: BinaryIO) -> bool:
    """Whether the last writer died before its line was whole."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return False
    file.seek(size - 1)
    return file.read(1) != b"\n"


def _model(row: Mapping[str, Any]) -> tuple[str, str | None, str]:
    adapt = Path(row["evaluation"]).name.removeprefix("evaluation").removeprefix("-")
    return row["trial"], adapt or None, "chosen"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
