"""What `features.source: auto` came to: chosen once, on record, the same ever after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

from dropgen.manifest import Manifest, digest, read_json, write_json

Source = Literal["stored", "online"]


@dataclass(frozen=True)
class Choice:
    """Where the features of an experiment come from.

    Attributes:
        source: For every method that leaves it open.
        why: One line for people.
        stored_s: Seconds of a training step with stored features; None where it was not timed.
        online_s: The same with features computed from the crop.
        disk_bytes: What all stored features of the study take.
        seconds: What choosing took.
    """

    source: Source
    why: str
    stored_s: float | None
    online_s: float | None
    disk_bytes: int
    seconds: float

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The choice on record; None where there is none."""
        values = read_json(path)
        return None if values is None else cls(**values)

    def write(self, path: Path) -> None:
        """Puts it on record."""
        write_json(path, asdict(self))

    def note(self, manifest: Manifest) -> None:
        """Leaves it in the manifest of a run that it is used in."""
        manifest.finish_stage("features", digest(asdict(self)), self.seconds, [], asdict(self))
