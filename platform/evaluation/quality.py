"""Does a mask look like those of the training? Volumes and fragments per class, and what about them is odd."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects, label
from scipy.stats import t

from dropgen.config import Frozen

CONFIDENCE = 0.999  # of the prediction interval: of a thousand volumes like those of the training, one is called odd
LEAST_SPREAD = 0.05  # of ln(volume): a boundary half a voxel off changes a small organ by more
LEAST_SHARE = 0.9  # of the training's least: so much of a class may lie outside its largest fragment more than there
NEIGHBOURS = np.ones((3, 3, 3), bool)  # voxels that touch at a corner are one fragment


class ClassRecord(Frozen):
    """What the training labels say of one class; volumes are those of prepared labels.

    Attributes:
        cases: Labels looked at.
        present: Those that hold the class.
        log_ml: Mean of ln(volume in ml) over those; None where there are none.
        log_sd: Its sample standard deviation; None for fewer than two.
        least_share: The least share of the class that lay in one fragment; None as `log_ml`.
    """

    cases: int
    present: int
    log_ml: float | None = None
    log_sd: float | None = None
    least_share: float | None = None

    @property
    def interval_ml(self) -> tuple[float, float] | None:
        """Between which volumes one more case is expected, if ln(volume) is normal; None for fewer than two cases.

        mean ± t * sd * sqrt(1 + 1/n), the prediction interval of a normal sample.
        """
        if self.log_ml is None or self.log_sd is None:
            return None
        factor = float(t.ppf((1 + CONFIDENCE) / 2, self.present - 1)) * math.sqrt(1 + 1 / self.present)
        half = factor * max(self.log_sd, LEAST_SPREAD)
        return math.exp(min(self.log_ml - half, 700.0)), math.exp(min(self.log_ml + half, 700.0))


@dataclass(frozen=True)
class ClassFound:
    """One class in one mask.

    Attributes:
        ml: Volume.
        fragments: Connected components, over corners.
        share: Of its voxels in the largest of them; 0 where the class is absent.
    """

    ml: float
    fragments: int
    share: float


def find_classes(
    mask_xyz: np.ndarray, voxel_ml: float, classes: Sequence[str], regions: Sequence[Sequence[int]] = ()
) -> dict[str, ClassFound]:
    """Measures every class of a mask but background; with regions, `Labelling.regions`, every one of these."""
    if regions:
        inside = (np.isin(mask_xyz, values) for values in regions)
        return {
            name: _found(one, voxel_ml) if one.any() else ClassFound(0.0, 0, 0.0)
            for name, one in zip(classes[1:], inside, strict=True)
        }
    boxes = find_objects(mask_xyz, max_label=len(classes) - 1)
    return {
        name: _found(mask_xyz[box] == value, voxel_ml) if box is not None else ClassFound(0.0, 0, 0.0)
        for value, (name, box) in enumerate(zip(classes[1:], boxes, strict=True), 1)
    }


def record_classes(
    labels: Iterable[np.ndarray], voxel_ml: float, classes: Sequence[str], regions: Sequence[Sequence[int]] = ()
) -> dict[str, ClassRecord]:
    """What a study's training labels say of each class or region."""
    found = [find_classes(mask, voxel_ml, classes, regions) for mask in labels]
    records = {}
    for name in classes[1:]:
        held = [one[name] for one in found if one[name].fragments]
        logs = np.log([one.ml for one in held])
        records[name] = ClassRecord(
            cases=len(found),
            present=len(held),
            log_ml=float(logs.mean()) if held else None,
            log_sd=float(logs.std(ddof=1)) if len(held) > 1 else None,
            least_share=min((one.share for one in held), default=None),
        )
    return records


def flags(found: Mapping[str, ClassFound], records: Mapping[str, ClassRecord]) -> list[str]:
    """What a person should look at, one phrase each.

    Args:
        found: From `find_classes`.
        records: Of the training; a class without one, as in older bundles, is only asked whether it is all there is.
    """
    if not any(one.fragments for one in found.values()):
        return ["empty mask"]
    odd = []
    for name, one in found.items():
        record = records.get(name)
        if record is None:
            continue
        if not one.fragments:
            if record.present == record.cases > 1:
                odd.append(f"no {name}, which all {record.cases} training cases have")
            continue
        interval = record.interval_ml
        if interval is not None and not interval[0] <= one.ml <= interval[1]:
            odd.append(f"{name} has {one.ml:.3g} ml, expected {interval[0]:.3g} to {interval[1]:.3g}")
        if record.least_share is not None and one.share < LEAST_SHARE * record.least_share:
            odd.append(f"{name} is in {one.fragments} fragments, {one.share:.0%} of it in the largest")
    return odd


def _found(inside_xyz: np.ndarray, voxel_ml: float) -> ClassFound:
    parts_xyz, count = label(inside_xyz, NEIGHBOURS)
    sizes = np.bincount(parts_xyz.ravel())[1:]
    return ClassFound(float(sizes.sum()) * voxel_ml, int(count), float(sizes.max() / sizes.sum()))
