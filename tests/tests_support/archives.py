"""The six benchmarks' archives as their owners publish them, with volumes of a few voxels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dropgen.features.studies.volume import write_volume

SHAPE = (2, 3, 2)
SPACING = np.diag([1.0, 1.0, 2.0, 1.0])


def image(path: Path, channels: int | None = None) -> None:
    """Channel c of a 4-D image holds c times 100 and a ramp, so that a channel can be told from the others."""
    ramp = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    array = ramp if channels is None else np.stack([ramp + 100 * c for c in range(channels)], axis=-1)
    write_volume(path, array, SPACING)


def label(path: Path, *values: int) -> None:
    """Every value once, background elsewhere."""
    mask = np.zeros(SHAPE, np.uint8)
    mask.flat[: len(values)] = values
    write_volume(path, mask, SPACING)


def brats(raw: Path) -> None:
    for i in range(1, 485):
        image(raw / f"imagesTr/BRATS_{i:03}.nii.gz", channels=4)
        label(raw / f"labelsTr/BRATS_{i:03}.nii.gz", 1, 2, 3)
    (raw / "imagesTr/._BRATS_001.nii.gz").write_bytes(b"a Mac's own")


def amos(raw: Path) -> None:
    parts = {"Tr": [*range(1, 201), *range(507, 547)], "Va": [*range(201, 301), *range(551, 571)]}
    for part, numbers in parts.items():
        for i in numbers:
            image(raw / f"images{part}/amos_{i:04}.nii.gz")
            label(raw / f"labels{part}/amos_{i:04}.nii.gz", 1, 15)
    image(raw / "imagesTs/amos_0301.nii.gz")  # published without a label


def cow(raw: Path) -> None:
    for i in range(1, 126):
        for kind in ("ct", "mr"):
            image(raw / f"imagesTr/topcow_{kind}_{i:03}_0000.nii.gz")
            label(raw / f"cow_seg_labelsTr/topcow_{kind}_{i:03}.nii.gz", 1, 12, *([15] if i % 5 == 0 else []))


def hvsmr(raw: Path) -> None:
    for i in range(60):
        image(raw / f"cropped/pat{i}_cropped.nii.gz")
        label(raw / f"cropped/pat{i}_cropped_seg.nii.gz", 1, 8)
        label(raw / f"cropped/pat{i}_cropped_seg_endpoints.nii.gz", 1)


def prostate(raw: Path) -> None:
    counts = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
    for site, count in counts.items():
        word = "Segmentation" if site == "BMC" else "segmentation"
        for i in range(count):
            image(raw / f"{site}/Case{i:02}.nii.gz")
            label(raw / f"{site}/Case{i:02}_{word}.nii.gz", *((1, 2) if site == "RUNMC" else (1,)))


def pandg(raw: Path) -> None:
    for split, numbers in {"train": range(6), "val": range(6, 9), "test": range(9, 13)}.items():
        for i in numbers:
            image(raw / f"{split}/images/scan{i:02}.nii.gz")
            label(raw / f"{split}/labels/scan{i:02}.nii.gz", 1)


ARCHIVES: dict[str, Callable[[Path], None]] = {
    "brats": brats, "amos": amos, "cow": cow, "hvsmr": hvsmr, "prostate": prostate, "pandg": pandg,
}  # fmt: skip
