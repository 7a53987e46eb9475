"""What replaying the training augmentation on stored features does to them, measured on validation volumes.

Training moves an image and its stored features by one geometry. Here both go through the loader's own function, and
the moved features are compared with those of the moved image, which are what online training would see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dropgen.config import Augmentation, Component
from dropgen.features.extractors import Extractor, extract
from dropgen.features.index import CaseKeys
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import Case
from dropgen.features.studies.validation import validation_cases
from dropgen.features.symmetry import IDENTITY, AxisSymmetry
from dropgen.platform.evaluation.analyses.replay import Difference, difference, interior
from dropgen.platform.methods import build as build_method
from dropgen.platform.training.batches import Batches
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.plan import Sample, SamplePlan, Shape, affine_map

CASES = 3
EDGE = 64  # voxels per axis of what is compared, at most, so that it takes seconds
ANGLES = (0.0, 5.0, 15.0, 30.0, 45.0)  # degrees; training draws up to 45
SCALES = (0.8, 0.9, 1.0, 1.1, 1.2)  # training draws 0.8 to 1.2
CONTEXTS = 5  # how many sizes of the context around a crop
EXACT = 1e-3  # standard deviations: what rounding makes of 0
TURN = AxisSymmetry((1, 0, 2), (True, False, False))
AXES = "xyz"

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Row:
    """One comparison; errors are in standard deviations of a channel after the instance norm.

    Attributes:
        kind: "flip", "quarter turn", "rotation", "scaling": features moved by it against those of the moved image, in
            the interior. "context": features of a crop with so many voxels around it against the stored ones of the
            whole volume. "crop": without any, and with the crop's own statistics, as online training has them.
        axis: Along or about which; empty where that means nothing.
        amount: Degrees, voxels of the input per voxel of the crop, or voxels of context.
    """

    case: str
    kind: str
    axis: str
    amount: float
    cka: float
    mean_error: float
    max_error: float
    voxels: int


@dataclass(frozen=True)
class _Move:
    kind: str
    axis: str
    amount: float
    symmetry: AxisSymmetry = IDENTITY
    affine: np.ndarray | None = None


def compare_geometry(bench: Workbench, scratch: Path) -> list[Row]:
    """Compares features of a few validation volumes under every kind of move that training can draw.

    Args:
        bench: Of an experiment that trains on stored features.
        scratch: A folder for some megabytes, which are gone afterwards.

    Returns:
        Nothing where the volumes are smaller than the extractor's smallest input.
    """
    cases = validation_cases(bench.study, bench.experiment.selection.rule)[:CASES]
    return [row for case in cases for row in (*_moved(bench, case, scratch), *_cropped(bench, case))]


def exact(rows: Sequence[Row]) -> bool:
    """Whether every flip and quarter turn of stored features gave the features of the flipped or turned image."""
    return all(row.max_error < EXACT for row in rows if row.kind in ("flip", "quarter turn"))


def mean_over(rows: Sequence[Row], value: Callable[[Row], float], kind: str, amount: float | None = None) -> float:
    """Mean of a column over volumes and axes; NaN where there is no such row."""
    found = [value(row) for row in rows if row.kind == kind and amount in (None, row.amount)]
    return fmean(found) if found else float("nan")


def _moves() -> Iterator[_Move]:
    for index, axis in enumerate(AXES):
        flips = (index == 0, index == 1, index == 2)
        yield _Move("flip", axis, 180.0, AxisSymmetry(flips=flips))
    yield _Move("quarter turn", "z", 90.0, TURN)
    for index, axis in enumerate(AXES):
        for angle in ANGLES:
            turn = np.deg2rad(angle) * np.eye(3)[index]
            yield _Move("rotation", axis, angle, affine=affine_map(turn, np.zeros(6), np.ones(3)))
    for scale in SCALES:
        yield _Move("scaling", "", scale, affine=affine_map(np.zeros(3), np.zeros(6), np.full(3, scale)))


def _moved(bench: Workbench, case: Case, scratch: Path) -> Iterator[Row]:
    """Takes the middle of a volume for a volume, so that a moved image is there whole, and moves it."""
    extractor, augmentation = bench.extractor, bench.experiment.training.augmentation
    assert extractor is not None
    prepared, _, label = bench.stored(case)
    shape = _legal(prepared.shape, extractor)
    if shape is None:
        return
    square = min(shape[:2])
    box = _middle(prepared.shape, (square, square, shape[2]))
    unit = np.array(prepared.unit[:, *box])  # a copy: PyTorch warns about memory that it must not write to
    with TemporaryDirectory(dir=scratch) as folder:
        store, keys = FeatureStore(Path(folder)), CaseKeys("middle", "middle", "middle")
        features, stats = extract(extractor, unit)
        store.put_volume(keys.volume, replace(prepared, unit=unit), {"case": case.id})
        store.put_label(keys.volume, label[box], {"case": case.id})
        store.put_features(keys.volume, features, stats, {"case": case.id}, "float32")
        loader = _loader(store, {case.id: keys}, extractor, augmentation, unit.shape[1:], bench)
        margin = [_margin(extractor, size) for size in unit.shape[1:]]
        for move in _moves():
            kept = np.ones(extractor.channels, bool)
            sample = Sample(case.id, (0, 0, 0), loader.plan.crop, move.symmetry, move.affine, kept, 0)
            image, _, replayed = loader.read(sample)
            assert replayed is not None
            again = extractor(image[None], _batched(stats))[0]
            found = difference(replayed, again, interior(unit.shape[1:], margin, move.affine))
            yield Row(case.id, move.kind, move.axis, move.amount, *found)


def _cropped(bench: Workbench, case: Case) -> Iterator[Row]:
    """Compares features of the middle crop, made with more and more context, with the stored ones of the volume."""
    extractor, key = bench.extractor, bench.index.keys[case.id].features
    assert extractor is not None
    assert key is not None
    prepared, stored = bench.store.volume(bench.index.keys[case.id].volume), bench.store.features(key)
    step = max(1, extractor.multiple // 2)  # so that a legal crop with context on both sides is legal
    widest = 2 * step * (CONTEXTS - 1)
    room = [min(size - widest, wanted) for size, wanted in zip(prepared.shape, bench.study.crop, strict=True)]
    shape = _legal(room, extractor)
    if shape is None:
        return
    box = _middle(prepared.shape, shape)
    channels = range(extractor.channels)
    truth = stored.decode(torch.from_numpy(stored.read(channels, box)), channels)
    everywhere = torch.ones(shape, dtype=torch.bool)

    def compare(context: int, stats: np.ndarray | None) -> Difference:
        wide = _widened(box, context)
        image = torch.from_numpy(np.array(prepared.unit[:, *wide]))[None]
        x, y, z = (slice(context, context + size) for size in shape)
        return difference(truth, extractor(image, _batched(stats))[0, :, x, y, z], everywhere)

    for context in range(0, step * CONTEXTS, step):
        yield Row(case.id, "context", "", context, *compare(context, stored.stats))
    yield Row(case.id, "crop", "", 0, *compare(0, None))


def _loader(
    store: FeatureStore,
    keys: dict[str, CaseKeys],
    extractor: Extractor,
    augmentation: Augmentation,
    shape: tuple[int, ...],
    bench: Workbench,
) -> Batches:
    method = build_method(Component.of("rep_only"))
    x, y, z = shape
    return Batches(
        plan=SamplePlan(
            0, dict.fromkeys(keys, (x, y, z)), (x, y, z), lambda generator: method.draw(generator, extractor.channels)
        ),
        slots=(),
        method=method,
        classes=len(bench.study.classes),
        store=store,
        keys=keys,
        extractor=extractor,
        online_share=0,
        augmentation=augmentation.model_copy(update={"intensity": False}),
        device="cpu",
    )


def _legal(shape: Sequence[int], extractor: Extractor) -> Shape | None:
    """The largest input within a shape and `EDGE` that the extractor takes; None where it takes none so small."""
    x, y, z = (min(size, EDGE) // extractor.multiple * extractor.multiple for size in shape)
    return (x, y, z) if min(x, y, z) >= max(1, extractor.min_size) else None


def _margin(extractor: Extractor, size: int) -> int:
    """Voxels at a border that are left out: all that see it, but no more than leaves half of the crop."""
    locality = extractor.locality
    return size // 4 if locality == "global" else min(locality, size // 4)


def _middle(shape: Sequence[int], size: Sequence[int]) -> Box:
    x, y, z = (slice((have - want) // 2, (have - want) // 2 + want) for have, want in zip(shape, size, strict=True))
    return x, y, z


def _widened(box: Box, context: int) -> Box:
    x, y, z = (slice(edge.start - context, edge.stop + context) for edge in box)
    return x, y, z


def _batched(stats: np.ndarray | None) -> Tensor | None:
    return None if stats is None else torch.from_numpy(stats)[None]
