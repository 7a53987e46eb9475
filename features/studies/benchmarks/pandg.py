"""PanDG (PancreasDG), pancreas MR: from the venous to the out-of-phase sequence."""

from __future__ import annotations

from typing import get_args

from dropgen.features.studies.benchmarks.benchmark import Archive, Benchmark, Item
from dropgen.features.studies.splits import Split

DOMAINS: dict[Split, str] = {"train": "venous", "val": "out-of-phase", "test": "out-of-phase"}
NAME = r"(?P<id>.+?)(?:_0000)?\.nii(?:\.gz)?"


def find(archive: Archive, flags: frozenset[str]) -> list[Item]:
    """The owners' folders are the split; image and label are paired by id, never by position."""
    items: list[Item] = []
    first: dict[str, Split] = {}
    for split in get_args(Split):
        images, labels = archive.files(f"{split}/images", NAME), archive.files(f"{split}/labels", NAME)
        archive.expect_pairs(images, labels)
        if not images:
            archive.problems.append(f"{split}/images: expected volumes, found none")
        for name in images:
            if name in first:
                archive.problems.append(f"{name} is in {first[name]}/ and in {split}/; a person belongs to one split")
            first.setdefault(name, split)
        items += [
            Item(name, name, DOMAINS[split], "mr", split, images[name], labels[name])
            for name in images
            if name in labels
        ]
    return items


PANDG = Benchmark(
    name="pandg",
    classes=("background", "pancreas"),
    spacing=(1.09, 1.09, 4.4),
    crop=(256, 256, 64),
    intensity="minmax",
    orientation_augmentation=True,
    layout="train/, val/ and test/, each with images/ and labels/ whose files have the same names",
    find=find,
)
