"""A small real model, and volumes no scanner would be asked for but every server must take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from dropgen.config import Component
from dropgen.features.studies.volume import Volume, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.models import Model
from tests_support.segmenters import make_segmenter


def make_volume(seed: int) -> Volume:
    """An odd-shaped volume on tilted, permuted and mirrored axes, float32."""
    noise = np.random.default_rng(seed).normal(size=(23, 17, 19))
    axes = Rotation.from_euler("xyz", [11, -7, 23], degrees=True).as_matrix()[:, [2, 0, 1]]
    affine = np.eye(4)
    affine[:3, :3] = axes * [1.3, -0.9, 1.7]
    affine[:3, 3] = [-31.5, 12.25, 7]
    return Volume((100 * gaussian_filter(noise, 2)).astype(np.float32), affine)


@pytest.fixture(scope="session")
def oblique_volume() -> Callable[[int], Volume]:
    return make_volume


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    classes = ("background", "left", "right")
    segmenter = make_segmenter(Component.of("dropgen", p=0.5), classes=classes, spacing=(1.25, 1.25, 1.25))
    found = np.unique(segmenter.predict(make_volume(0)))
    assert len(found) == 3, f"a model that finds classes {found} alone proves nothing"
    return segmenter


@pytest.fixture(scope="session")
def bundle(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    segmenter.save(folder)
    return folder


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    return Model.of(bundle, "models:/blobs@champion")


@pytest.fixture(scope="session")
def registry(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output root with `blobs` registered."""
    root = tmp_path_factory.mktemp("registry")
    register(root, bundle, "blobs")
    return root


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three good scans, .nii and .nii.gz, one with nnU-Net's channel mark."""
    folder = tmp_path / "scans"
    for seed, name in enumerate(("anna.nii.gz", "bert.nii", "carl_0000.nii.gz")):
        volume = make_volume(seed)
        write_volume(folder / name, volume.array, volume.affine)
    return folder
