"""One byte per value: how far a normed crop is from the float32 one, and that any Zarr reader gets the same back.

The rows of the table in docs/feature-store.md: `python -m pytest -s tests/features/test_compact.py`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dropgen.errors import StoreError
from dropgen.features.extractors import extract, instance_norm
from dropgen.features.extractors.mind import Mind
from dropgen.features.store import FeatureStore
from dropgen.features.store.compact import decode, encode
from dropgen.features.studies.phantom import PhantomSpec, make_phantom_study
from dropgen.features.studies.prepare import Preparation, prepare
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import Volume, read_volume

CROP = 32
ONE_OF_EACH = PhantomSpec(size=48, train_subjects=1, val_subjects=1, test_subjects=1)
WHOLE = (slice(None),) * 3
# Below this the norm's eps has pressed a crop to under a tenth of its usual size: where float16 as well keeps a few
# levels or none, an angle says nothing and only the size of the error counts.
FAINT = 0.1


@dataclass(frozen=True)
class Loss:
    """What a storage type changes in normed crops; one entry per crop and channel."""

    cosine: np.ndarray
    rms: np.ndarray
    faint: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, features_cxyz: np.ndarray, stored_cxyz: np.ndarray, step: int) -> Loss:
        starts = itertools.product(*(range(0, size - CROP + 1, step) for size in features_cxyz.shape[1:]))
        rows = []
        for start in starts:
            box = (slice(None), *(slice(edge, edge + CROP) for edge in start))
            exact, found = (
                instance_norm(torch.from_numpy(array[box].copy())[None])[0].double().flatten(1)
                for array in (features_cxyz, stored_cxyz)
            )
            size = exact.square().mean(1).sqrt()
            cosine = torch.cosine_similarity(exact, found, dim=1)
            rms = (exact - found).square().mean(1).sqrt()
            variance = torch.from_numpy(features_cxyz[box].astype(np.float64)).flatten(1).var(1, unbiased=False)
            rows.append(torch.stack((cosine, rms, (size < FAINT).double(), variance)).numpy())
        cosine, rms, faint, variance = np.stack(rows, axis=1)
        return cls(cosine, rms, faint > 0, variance)

    @property
    def quietest(self) -> np.ndarray:
        """Cosines of the channel with the least mean variance."""
        channel = self.variance.mean(axis=0).argmin()
        return self.cosine[:, channel][~self.faint[:, channel]]

    def row(self, name: str) -> str:
        clear = self.cosine[~self.faint]
        return (
            f"| {name} | {self.cosine.size} | {self.faint.mean():.1%} | {clear.mean():.6f} "
            f"| {np.quantile(clear, 0.01):.6f} | {clear.min():.6f} | {self.quietest.mean():.6f} "
            f"| {self.rms.mean():.4f} | {self.rms.max():.4f} |"
        )


@pytest.fixture
def through(tmp_path: Path) -> Callable[[np.ndarray, str], np.ndarray]:
    """Features as they come back from a store of a type."""
    store = FeatureStore(tmp_path / "store")

    def round_trip(features: np.ndarray, dtype: str) -> np.ndarray:
        store.put_features(dtype, features, None, {"case": "one"}, dtype)
        return store.features(dtype).whole()

    return round_trip


def measured(name: str, features: np.ndarray, through: Callable[[np.ndarray, str], np.ndarray], step: int) -> Loss:
    losses = {dtype: Loss.of(features, through(features, dtype), step) for dtype in ("float16", "int8")}
    for dtype, loss in losses.items():
        sys.stdout.write(f"\n{loss.row(f'{name}, {dtype}')}")
    return losses["int8"]


@pytest.mark.parametrize("case", [0, -1], ids=["source", "unseen"])
def test_a_normed_crop_of_the_phantom_keeps_its_direction(
    case: int, tmp_path: Path, through: Callable[[np.ndarray, str], np.ndarray]
) -> None:
    study = load_study(make_phantom_study(tmp_path / "study", spec=ONE_OF_EACH), tmp_path)
    chosen = study.cases[case]
    prepared = prepare([read_volume(chosen.image)], study.preparation, chosen.modality)
    features, _ = extract(Mind(), prepared.unit)
    loss = measured(f"MIND, phantom {chosen.domain}", features, through, step=8)
    assert loss.cosine.mean() >= 0.9999
    assert loss.cosine.min() >= 0.999
    assert loss.quietest.mean() >= 0.9999
    assert loss.rms.max() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rule"), [("pat0003_flair", "percentile"), ("pat0005_t1c", "minmax")])
def test_a_normed_crop_of_a_real_volume_keeps_its_direction(
    name: str, rule: str, data: Path, through: Callable[[np.ndarray, str], np.ndarray]
) -> None:
    volume = read_volume(data / "brats2013" / "images" / f"{name}_0000.nii.gz")
    # Half of the brain and the air around it: crops of air alone are the ones with the least variance.
    half = Volume(volume.array[16:144, 16:144, 8:104], volume.affine)
    features, _ = extract(Mind(), prepare([half], Preparation((1.0, 1.0, 1.0), (CROP,) * 3, rule)).unit)
    loss = measured(f"MIND, {name}", features, through, step=16)
    clear = loss.cosine[~loss.faint]
    assert clear.mean() >= 0.9999
    assert np.quantile(clear, 0.01) >= 0.999
    assert np.quantile(loss.quietest, 0.01) >= 0.999
    assert loss.rms.max() <= 0.03


@given(
    values=hnp.arrays(
        np.float32, st.tuples(*[st.integers(1, 5)] * 3), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
    ),
)
@settings(max_examples=100)
def test_every_value_comes_back_within_half_a_level(values: np.ndarray) -> None:
    codes, scale, offset = encode(values)
    found = decode(torch.from_numpy(codes)[None], np.float32([[scale], [offset]]))[0].numpy()
    limits = np.finfo(np.float32)
    rounding = 4 * limits.eps * np.abs(values).max() + limits.tiny
    assert codes.dtype == np.int8
    assert np.abs(found - values).max() <= scale / 2 + rounding


@pytest.mark.parametrize("value", [0.0, -1e-30, 1.0, 1 / 3, 12345.678])
def test_a_constant_channel_comes_back_exactly(value: float, through: Callable[[np.ndarray, str], np.ndarray]) -> None:
    features = np.full((2, 3, 4, 5), value, np.float32)
    assert np.array_equal(through(features, "int8"), features)


def test_codes_read_by_any_zarr_reader_and_its_attributes_give_the_features(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    features = np.random.default_rng(0).normal(size=(3, 4, 5, 6)).astype(np.float32)
    store.put_features("k", features, np.float32([0.5]), {"case": "one"}, "int8")
    store.verify("features", "k")
    array = zarr.open_array(store.path("features", "k"), mode="r")
    scale, offset = (np.float32(array.attrs[name])[:, None, None, None] for name in ("scale", "offset"))
    stored = store.features("k")
    assert array.dtype == stored.dtype == np.int8
    assert np.allclose(array[...] * scale + offset, features, atol=scale.max() / 2 + 1e-6)
    assert np.allclose(array[...] * scale + offset, stored.whole(), rtol=0, atol=1e-6)
    assert stored.stats == 0.5
    some = stored.read([2, 0], WHOLE)
    assert some.dtype == np.int8
    assert np.array_equal(stored.decode(torch.from_numpy(some), [2, 0]).numpy(), stored.whole()[[2, 0]])


def test_an_entry_takes_half_the_bytes_of_float16(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    features = np.random.default_rng(0).normal(size=(12, 32, 32, 32)).astype(np.float32)
    for dtype in ("int8", "float16"):
        store.put_features(dtype, features, None, {}, dtype)
    sizes = store.sizes()
    assert 0.5 <= sizes["features", "int8"] / sizes["features", "float16"] < 0.51


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    features = np.ones((4, 3, 3, 3), np.float32)
    features[3, 0, 0, 0] = value
    with pytest.raises(StoreError, match=r"case one: channel 3 of the features holds values that are not finite"):
        FeatureStore(tmp_path).put_features("k", features, None, {"case": "one"}, "int8")
