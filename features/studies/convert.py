"""From a benchmark's archive to a study: a manifest that points at the archive, and a YAML file beside it.

A file is written only where the archive's own cannot be the case's: one channel of a 4-D image, a label whose values
have to change. Its header holds a digest of the source and of the change, so that a conversion that was stopped goes on
and one whose archive has changed repeats what it must.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml

from dropgen.errors import ConfigError, ResourceError, StudyError, VolumeError
from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.sources import COLUMNS, MANIFEST
from dropgen.features.studies.volume import read_channels, read_mask, read_note, write_volume
from dropgen.manifest import digest, write_bytes

CONVERT_VERSION = 1  # raise it when the same archive gives other files, so that they are written again
STUDY = "study.yaml"


@dataclass
class Conversion:
    """A finished conversion.

    Attributes:
        written: Files made from the archive's.
        reused: Files that an earlier conversion had made.
        warnings: What is not as published and yet harmless, one line each.
    """

    study: Path
    items: tuple[Item, ...]
    written: int
    reused: int
    warnings: tuple[str, ...]


def convert(
    benchmark: Benchmark,
    raw: Path,
    out: Path,
    flags: frozenset[str] = frozenset(),
    on_file: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Makes a study of a benchmark's archive, which is only read.

    Args:
        benchmark: Which one.
        raw: The unpacked archive.
        out: Folder for `manifest.csv`, `study.yaml` and what has to be written; made if needed.
        flags: Of `benchmark.flags`.
        on_file: Called with the archive's files that were dealt with and their number, for a progress bar.

    Raises:
        ConfigError: A flag is not the benchmark's, or `out` lies in the archive.
        StudyError: The archive is not as published, or a label holds an unknown value; lists everything. No manifest
            is written then.
        ResourceError: A file cannot be written.
    """
    raw, out = raw.resolve(), out.resolve()
    if unknown := flags - set(benchmark.flags):
        raise ConfigError(f"{benchmark.name} has no {', '.join(sorted(unknown))}; leave it out")
    if out.is_relative_to(raw):
        raise ConfigError(f"{out} lies in the archive {raw}, which is only read; name another folder for the study")
    archive = Archive(raw)
    items = benchmark.find(archive, flags)
    archive.require_complete(benchmark)
    maker = _Maker(benchmark, raw, out)
    try:
        finished = maker.make(items, on_file or (lambda done, total: None))
        if maker.problems:
            raise StudyError(f"{raw}: {benchmark.name} cannot be converted; no manifest was written:", maker.problems)
        write_bytes(out / MANIFEST, _manifest(finished, out).encode())
        archive.warnings += _write_study(benchmark, out)
    except OSError as error:
        raise ResourceError(
            f"cannot write {error.filename or out}: {error.strerror}; free disk space there or name another folder, "
            "the same command continues"
        ) from error
    return Conversion(out / STUDY, tuple(finished), maker.written, maker.reused, tuple(archive.warnings))


class _Maker:
    """Gives every case a 3-D image and a label of known values."""

    def __init__(self, benchmark: Benchmark, raw: Path, out: Path) -> None:
        self._benchmark, self._raw, self._out = benchmark, raw, out
        self.written = self.reused = 0
        self.problems: list[str] = []

    def make(self, items: Iterable[Item], on_file: Callable[[int, int], None]) -> list[Item]:
        by_image: dict[Path, list[Item]] = defaultdict(list)
        for item in items:
            by_image[item.image].append(item)
        finished: list[Item] = []
        for done, (image, group) in enumerate(by_image.items(), start=1):
            try:
                label = self._label(group[0].label)
                images = self._channels(image, group)
                finished += [replace(item, image=images[item.id], label=label) for item in group]
            except VolumeError as error:
                self.problems.append(str(error))
            on_file(done, len(by_image))
        return finished

    def _channels(self, image: Path, group: list[Item]) -> dict[str, Path]:
        """The image of each case of one file by the case's id; a channel is written where it has to be."""
        images = {item.id: image if item.channel is None else self._place(item) for item in group}
        stale = [item for item in group if item.channel is not None and not self._is_done(images[item.id], image)]
        if stale:
            channels = read_channels(image)
            for item in stale:
                if item.channel is None or item.channel >= len(channels):
                    raise VolumeError(f"{image} has {len(channels)} channels, and {item.id} is number {item.channel}")
                volume = channels[item.channel]
                write_volume(images[item.id], volume.array, volume.affine, self._note(image))
                self.written += 1
        return images

    def _label(self, source: Path) -> Path:
        """The archive's label where its values are the classes, else one that was written."""
        renumber = self._benchmark.renumber
        target = self._out / "labels" / source.relative_to(self._raw)
        if renumber is None:
            return source
        if self._is_done(target, source):
            return target
        mask = read_mask(source)
        values, where = np.unique(mask.array, return_inverse=True)
        numbers = {int(value): renumber(int(value)) for value in values}
        if unknown := [str(value) for value, number in numbers.items() if number is None]:
            raise VolumeError(f"{source}: label value {', '.join(unknown)} is none of {self._benchmark.name}'s")
        classes = [number for number in numbers.values() if number is not None]
        if classes == list(numbers):
            return source
        renumbered = np.array(classes, np.uint8)[where].reshape(mask.array.shape)
        write_volume(target, renumbered, mask.affine, self._note(source))
        self.written += 1
        return target

    def _is_done(self, target: Path, source: Path) -> bool:
        done = read_note(target) == self._note(source)
        self.reused += done
        return done

    def _place(self, item: Item) -> Path:
        return self._out / item.domain / f"{item.id}.nii.gz"

    def _note(self, source: Path) -> str:
        stat = source.stat()
        return f"dropgen {digest([CONVERT_VERSION, self._benchmark.name, source.name, stat.st_size, stat.st_mtime_ns])}"


def _manifest(items: Iterable[Item], out: Path) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for item in items:
        image, label = (os.path.relpath(path, out) for path in (item.image, item.label))
        writer.writerow(
            {
                "image": image, "label": label, "split": item.split, "subject": item.subject, "domain": item.domain,
                "modality": item.modality, "id": item.id,
            }
        )  # fmt: skip
    return text.getvalue()


def _write_study(benchmark: Benchmark, out: Path) -> list[str]:
    """Writes the study's YAML; one that is there and says something else is kept, with a warning."""
    values = {
        "name": benchmark.name,
        "source": MANIFEST,
        "classes": list(benchmark.classes),
        "spacing": list(benchmark.spacing),
        "crop": list(benchmark.crop),
        "intensity": benchmark.intensity if isinstance(benchmark.intensity, str) else dict(benchmark.intensity),
        "orientation_augmentation": benchmark.orientation_augmentation,
    }
    path = out / STUDY
    text = yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
    if path.exists() and path.read_text() != text:
        return [f"{path} is not what a conversion writes and was kept; remove it to have it written again"]
    write_bytes(path, text.encode())
    return []
