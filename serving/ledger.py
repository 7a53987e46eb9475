"""What a folder of masks already holds, so that a second run does only what is new or changed."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dropgen.errors import ConfigError, ResourceError
from dropgen.manifest import read_json, write_json
from dropgen.serving.quality import Findings, remove_beside

LEDGER_FILE = ".dropgen-ledger.json"
OUTCOMES_FILE = "outcomes.csv"
COLUMNS = ("case", "file", "outcome", "reason", "seconds", "flags", "entropy", "disagreement")
PER_CLASS = ("voxels", "ml", "fragments")
SAVE_SECONDS = 1.0  # writing both files after every one of thousands of cases would cost more than the cases


@dataclass(frozen=True)
class Outcome:
    """What became of one input file or series.

    Attributes:
        case: Name of the mask without its extension; empty for what can have none.
        file: Name of the input file, or the folder of the DICOM series, below the input.
        outcome: Skipped where its mask was there, left out where it is nothing to segment.
        reason: Why it failed or was left out.
        seconds: Reading, predicting and writing.
        findings: What is told of the mask; None where there is none.
    """

    case: str
    file: str
    outcome: Literal["done", "skipped", "failed", "left out"]
    reason: str = ""
    seconds: float = 0.0
    findings: Findings | None = None


@dataclass(frozen=True)
class Known:
    """A mask of an earlier run.

    Attributes:
        key: Hash of everything that it depended on.
        findings: What was told of it.
    """

    key: str
    findings: Findings


class Ledger:
    """The record of one output folder: a hidden JSON file for the next run, a table for people.

    Args:
        folder: Where the masks go.
        masks: Names of the masks that this run may write, in the order of the table.
        beside: Names of what it may write beside them.
        classes: Columns of the table.

    Raises:
        ConfigError: The folder holds one of these names and no ledger says that it is ours to replace.
    """

    def __init__(self, folder: Path, masks: Sequence[str], beside: Sequence[str], classes: Sequence[str]) -> None:
        self._folder = folder
        self._masks = tuple(masks)
        self._classes = tuple(classes)
        self._others: list[Outcome] = []
        self._outcomes: dict[str, Outcome] = {}
        self._saved = 0.0
        stored, names = read_json(folder / LEDGER_FILE), (*masks, *beside)
        if stored is None and (foreign := next((name for name in names if (folder / name).exists()), None)):
            raise ConfigError(f"{folder / foreign} exists but was not written by dropgen segment; name an empty folder")
        self._entries: dict[str, dict[str, Any]] = stored or {}
        self.save()

    @property
    def outcomes(self) -> list[Outcome]:
        """What is over, in the order of the input, however many worked on it; what has no mask comes first."""
        return [*self._others, *(self._outcomes[mask] for mask in self._masks if mask in self._outcomes)]

    def known(self, mask: str) -> Known | None:
        """What is on record of a mask that still exists, else None."""
        entry = self._entries.get(mask)
        if entry is None or "findings" not in entry or not (self._folder / mask).exists():
            return None
        return Known(entry["key"], Findings(**entry["findings"]))

    def tell(self, outcome: Outcome) -> None:
        """Puts what has no mask into the table."""
        self._others.append(outcome)

    def add(self, outcome: Outcome, mask: str, key: str | None) -> None:
        """Records an outcome; the mask that a failed file left behind from earlier is removed.

        Args:
            outcome: What happened.
            mask: Name of the mask.
            key: Hash of everything the mask depends on; None where there is no mask.
        """
        self._outcomes[mask] = outcome
        if key is None or outcome.findings is None:
            self._entries.pop(mask, None)
            (self._folder / mask).unlink(missing_ok=True)
            remove_beside(self._folder / mask)
        else:
            self._entries[mask] = {"key": key, "findings": asdict(outcome.findings)}
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes both files; a reader finds the old ones or the new ones.

        Raises:
            ResourceError: The disk is full or not writable.
        """
        try:
            write_json(self._folder / LEDGER_FILE, self._entries)
            self._write_table(self._folder / OUTCOMES_FILE)
        except OSError as error:
            raise ResourceError(
                f"cannot write to {self._folder} ({error.strerror}); free space or name another folder"
            ) from error
        self._saved = time.monotonic()

    def _write_table(self, table: Path) -> None:
        partial = table.with_name(f".{table.name}.{os.getpid()}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *(f"{what} {name}" for what in PER_CLASS for name in self._classes)])
            for one in self.outcomes:
                writer.writerow([one.case, one.file, one.outcome, one.reason, one.seconds, *self._told(one.findings)])
        partial.replace(table)

    def _told(self, findings: Findings | None) -> list[Any]:
        if findings is None:
            return [""] * (len(COLUMNS) - 5 + len(PER_CLASS) * len(self._classes))
        sure = ["" if value is None else value for value in (findings.entropy, findings.disagreement)]
        per_class = [getattr(findings, what)[name] for what in PER_CLASS for name in self._classes]
        return ["; ".join(findings.flags), *sure, *per_class]
