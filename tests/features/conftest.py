"""Tiny studies on disk, to be broken one way at a time."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dropgen.features.store import FeatureStore
from dropgen.features.studies.volume import write_mask, write_volume

SHAPE = (5, 6, 7)


@dataclass
class StudyFolder:
    """A sound three-case study; change a row, a file or a YAML key, then `write()`."""

    path: Path
    rows: list[dict[str, str]]
    settings: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "tiny", "source": "manifest.csv", "classes": ["background", "organ"], "spacing": [1, 1, 1],
            "crop": [4, 4, 4], "intensity": "minmax", "orientation_augmentation": False,
        }
    )  # fmt: skip

    def write(self) -> Path:
        with (self.path / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, self.rows[0].keys())
            writer.writeheader()
            writer.writerows(self.rows)
        study = self.path / "study.yaml"
        study.write_text(yaml.safe_dump(self.settings))
        return study

    def image(self, index: int) -> Path:
        return self.path / self.rows[index]["image"]

    def label(self, index: int) -> Path:
        return self.path / self.rows[index]["label"]


@pytest.fixture
def tiny(tmp_path: Path) -> StudyFolder:
    generator = np.random.default_rng(0)
    rows = []
    for name, split, domain in (("one", "train", "a"), ("two", "val", "b"), ("three", "test", "b")):
        row = {"image": f"images/{name}_0000.nii.gz", "label": f"labels/{name}.nii.gz", "split": split}
        rows.append(row | {"subject": name, "domain": domain})
        write_volume(tmp_path / row["image"], generator.normal(size=SHAPE).astype(np.float32), np.eye(4))
        write_mask(tmp_path / row["label"], generator.integers(0, 2, SHAPE), np.eye(4))
    return StudyFolder(tmp_path, rows)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")
