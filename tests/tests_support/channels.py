"""The phantom in two channels, as nnU-Net writes them: every image, and beside it the same in inverted contrast."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from dropgen.config import Experiment
from dropgen.features.studies.phantom import PhantomSpec, make_phantom_study
from dropgen.features.studies.shift import inverted
from dropgen.features.studies.volume import read_volume, write_volume
from dropgen.manifest import read_json, write_json
from tests_support.tiny import SPEC, tiny_experiment

NAMES = ("plain", "inverted")
FULL_SCALE = 1000


def two_channel_study(folder: Path, spec: PhantomSpec = SPEC) -> Path:
    """An nnU-Net raw folder whose `dataset.json` names the channels; the path of its `study.yaml`."""
    study = make_phantom_study(folder, spec=spec)
    for image in folder.glob("images*/*_0000.nii.gz"):
        volume = read_volume(image)
        generator = np.random.default_rng(len(image.name))
        turned = np.clip(inverted(gaussian_filter(volume.array / FULL_SCALE, 0.5), generator), 0, 1)
        second = image.with_name(image.name.replace("_0000", "_0001"))
        write_volume(second, np.rint(turned * FULL_SCALE).astype(np.int16), volume.affine)
    described = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", described | {"channel_names": dict(zip("01", NAMES, strict=True))})
    manifest = folder / "manifest.csv"
    rows = list(csv.DictReader(manifest.open(newline="")))
    with manifest.open("w", newline="") as file:  # without a column of images it only says what a folder cannot
        writer = csv.DictWriter(file, ("id", "subject", "domain"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return study


def two_channel_experiment(root: Path, **changes: Any) -> Experiment:
    """The tiny experiment on images of two channels."""
    return tiny_experiment(root, **changes, study=str(two_channel_study(root / "channels")))
