"""Store entries of each kind for tests that read, damage or race them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dropgen.features.store import FeatureStore
from dropgen.features.studies.prepare import Preparation, Prepared, prepare
from dropgen.features.studies.volume import Volume


def prepared(seed: int = 0) -> Prepared:
    array = np.random.default_rng(seed).normal(size=(5, 6, 7)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 1.5, 1.0])
    affine[:3, 3] = [-3.25, 1 / 3, 7]
    return prepare([Volume(array, affine)], Preparation((1.0, 1.0, 1.0), (8, 8, 8), "zscore"))


def filled(store: FeatureStore) -> FeatureStore:
    """A store with one entry of each kind, all with the key `k`."""
    generator = np.random.default_rng(1)
    store.put_volume("k", prepared(), {"case": "one"})
    store.put_label("k", generator.integers(0, 3, (4, 5, 6)).astype(np.uint8), {"case": "one"})
    store.put_features("k", generator.normal(size=(3, 4, 5, 6)), np.float32([0.1, 2.5]), {"case": "one"})
    return store


def leftovers(store: FeatureStore) -> list[Path]:
    return list(store.folder.glob("*/.*"))
