"""What a benchmark is, and the archive it is found in: files recognised by name, everything else reported."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dropgen.errors import StudyError
from dropgen.features.studies.splits import Split

LISTED = 20  # lines of one kind in a report; an archive of the wrong kind would fill the screen


@dataclass(frozen=True)
class Item:
    """One case, where the archive holds it.

    Attributes:
        channel: Which channel of a 4-D image is the case's image; None where the file is 3-D.
    """

    id: str
    subject: str
    domain: str
    modality: str
    split: Split
    image: Path
    label: Path
    channel: int | None = None


@dataclass
class Archive:
    """A benchmark's files as they lie on disk, and everything about them that is not as published.

    Hidden files are passed over: archives packed on a Mac hold one beside every volume.

    Attributes:
        raw: The unpacked archive.
        problems: One line each; any of them means that the split cannot be the published one.
        warnings: One line each; worth a look, yet every file has its place.
    """

    raw: Path
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def files(self, folder: str, pattern: str, others: Iterable[str] = ()) -> dict[str, Path]:
        """The files of a folder by what the pattern's group `id` catches, sorted by file name.

        Args:
            folder: Below `raw`.
            pattern: A regular expression of a whole file name.
            others: Patterns of files that are published there and not needed.
        """
        place = self.raw / folder
        if not place.is_dir():
            self.problems.append(f"{folder}/ is missing")
            return {}
        found: dict[str, Path] = {}
        unknown = []
        for path in sorted(path for path in place.iterdir() if not path.name.startswith(".")):
            if match := re.fullmatch(pattern, path.name):
                if match["id"] in found:
                    self.problems.append(f"{folder}/{path.name} and {found[match['id']].name} are the same case")
                found[match["id"]] = path
            elif not any(re.fullmatch(other, path.name) for other in others):
                unknown.append(f"{folder}/{path.name} is none of the published files")
        self.problems += _shortened(unknown)
        return found

    def expect(self, what: str, found: int, expected: int) -> None:
        """Notes a number that is not the published one."""
        if found != expected:
            self.problems.append(f"{what}: expected {expected}, found {found}")

    def expect_pairs(self, images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
        """Notes every image without a label and every label without an image."""
        lonely = [f"{self._name(images[name])} has no label" for name in images if name not in labels]
        lonely += [f"{self._name(labels[name])} has no image" for name in labels if name not in images]
        self.problems += _shortened(lonely)

    def require_complete(self, benchmark: Benchmark) -> None:
        """Raises StudyError with what was expected and what was found, if anything is not as published."""
        if problems := list(dict.fromkeys(self.problems)):  # a folder with images and labels is looked through twice
            count = f"{len(problems)} difference{'s' if len(problems) > 1 else ''}"
            raise StudyError(
                f"{self.raw} is not {benchmark.name} as its owners publish it ({count}); the split depends on every "
                f"file, so nothing was written; expected is {benchmark.layout}:",
                problems,
            )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.raw).as_posix()


@dataclass(frozen=True)
class Benchmark:
    """A public data set with a published shift between its domains.

    Attributes:
        layout: What its owners publish, in words.
        find: Puts every case into its split; notes in the archive what is not as published. Takes the chosen `flags`.
        renumber: The class of a label value, None for a value that must not occur; None where labels stay as they are.
        flags: What can be chosen at conversion.
    """

    name: str
    classes: tuple[str, ...]
    spacing: tuple[float, float, float]
    crop: tuple[int, int, int]
    intensity: str | Mapping[str, str]
    orientation_augmentation: bool
    layout: str
    find: Callable[[Archive, frozenset[str]], list[Item]]
    renumber: Callable[[int], int | None] | None = None
    flags: tuple[str, ...] = ()


def _shortened(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LISTED else [*lines[:LISTED], f"... and {len(lines) - LISTED} more like these"]
