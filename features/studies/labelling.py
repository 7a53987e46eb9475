"""What the values of a label map mean, as nnU-Net v2 defines it: classes, overlapping regions, and voxels to ignore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dropgen.errors import StudyError
from dropgen.manifest import read_json

BACKGROUND, IGNORE = "background", "ignore"


@dataclass(frozen=True)
class Labelling:
    """How label maps are read, scored and written.

    Attributes:
        classes: Names, background first. Without regions the position is the label value.
        regions: Of every class but background the label values that it is made of; they may overlap. Empty where
            classes are label values: then every voxel has one class, and a network one output per class; with regions
            it has one output per region, each a yes or no of its own.
        order: The value that is written where each region is found, later ones over earlier ones; empty likewise.
        ignore: The value of voxels that nobody labelled, one above all others; None where there are none. They take
            no part in loss or metrics.
    """

    classes: tuple[str, ...]
    regions: tuple[tuple[int, ...], ...] = ()
    order: tuple[int, ...] = ()
    ignore: int | None = None

    @property
    def plain(self) -> bool:
        """Whether every voxel has a known class and one alone."""
        return not self.regions and self.ignore is None

    @property
    def outputs(self) -> int:
        """Channels of a network's logits."""
        return len(self.regions) or len(self.classes)

    @property
    def last(self) -> int:
        """The greatest value that a class or region has; `ignore` is one more."""
        return max((value for region in self.regions for value in region), default=len(self.classes) - 1)

    @property
    def highest(self) -> int:
        """The greatest value that a label map may hold."""
        return self.last if self.ignore is None else self.ignore

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What every value of a map is called, `ignore` excepted.

        With regions it is the smallest one that holds the value, "only" where that has other values too: of a whole
        tumour with a core, the voxels outside the core are "whole tumour only".
        """
        if not self.regions:
            return self.classes
        named = [self.classes[0]]
        for value in range(1, self.last + 1):
            holding = [place for place, region in enumerate(self.regions) if value in region]
            smallest = min(holding, key=lambda place: len(self.regions[place]))
            named.append(self.classes[1 + smallest] + (" only" if len(self.regions[smallest]) > 1 else ""))
        return tuple(named)

    def inside(self, labels: np.ndarray, place: int) -> np.ndarray:
        """Where a label map holds class or region `place`, counted from 1: a boolean array of its shape."""
        values = self.regions[place - 1] if self.regions else (place,)
        return labels == values[0] if len(values) == 1 else np.isin(labels, values)

    def counted(self, prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both maps with background where the truth is to be ignored, so that no metric counts those voxels."""
        if self.ignore is None:
            return prediction, truth
        known = truth != self.ignore
        return prediction * known, truth * known

    def to_yaml(self) -> dict[str, Any]:
        """The keys of a study's YAML file that say the same."""
        if self.plain:
            return {"classes": list(self.classes)}
        values: dict[str, Any] = {self.classes[0]: 0}
        values |= {name: list(self.regions[place]) if self.regions else place + 1
                   for place, name in enumerate(self.classes[1:])}  # fmt: skip
        if self.ignore is not None:
            values[IGNORE] = self.ignore
        return {"labels": values} | ({"regions_class_order": list(self.order)} if self.regions else {})


def labelling_of(labels: Mapping[str, object], order: Sequence[int], where: str) -> Labelling:
    """Reads `labels` and `regions_class_order` of nnU-Net's `dataset.json`, or the same keys of a study's YAML file.

    Args:
        labels: Names to values; a list of several values is a region, and then everything but background is one.
        order: Ignored without regions, as nnU-Net does.
        where: What error messages call their place.

    Raises:
        StudyError: They are not as nnU-Net wants them; names the label and the value.
    """
    if labels.get(BACKGROUND) != 0:
        raise StudyError(f"{where}: labels needs background: 0, and has {labels.get(BACKGROUND, 'none')}")
    found = {name: _values(value) for name, value in labels.items() if name not in (BACKGROUND, IGNORE)}
    for name, values in found.items():
        if not values:
            raise StudyError(f"{where}: label '{name}' = {labels[name]}; write one value from 1 on, or a list")
    used = sorted({value for values in found.values() for value in values})
    if not used or used != list(range(1, len(used) + 1)):
        raise StudyError(f"{where}: the values of labels are 0, {', '.join(map(str, used))}; leave no gap from 0 on")
    ignore = labels.get(IGNORE)
    if ignore is not None and ignore != used[-1] + 1:
        raise StudyError(
            f"{where}: label '{IGNORE}' = {ignore}; it must be one above all others, which end at {used[-1]}"
        )
    unlabelled = used[-1] + 1 if ignore is not None else None
    if all(len(values) == 1 for values in found.values()):
        if len(found) > len(used):
            raise StudyError(f"{where}: two labels have the same value; give every one its own")
        return Labelling((BACKGROUND, *sorted(found, key=lambda name: found[name])), ignore=unlabelled)
    if len(order) != len(found):
        raise StudyError(
            f"{where}: regions_class_order has {len(order)} values and labels {len(found)} regions; name for every "
            "region the value that is written for it, encompassing regions first"
        )
    if unknown := sorted(set(order) - set(used)):
        raise StudyError(f"{where}: regions_class_order names value {unknown[0]}, which no label has")
    return Labelling((BACKGROUND, *found), tuple(found.values()), tuple(order), unlabelled)


def _values(value: object) -> tuple[int, ...]:
    """The values of a label, in their order; none where it is no class and no region."""
    listed = value if isinstance(value, list | tuple) else (value,)
    values = {one for one in listed if isinstance(one, int) and one > 0}
    return tuple(sorted(values)) if len(values) == len(listed) else ()


def described_labelling(folder: Path) -> Labelling | None:
    """What a folder's `dataset.json` says of its labels; None where it does not.

    Raises:
        StudyError: As `labelling_of`.
    """
    path = folder / "dataset.json"
    description = read_json(path)
    labels = description.get("labels") if isinstance(description, dict) else None
    if not isinstance(labels, dict):
        return None
    # Files of the first nnU-Net map "1" to a name, newer ones a name to 1.
    turned = {str(value) if str(name).isdigit() else name: int(name) if str(name).isdigit() else value
              for name, value in labels.items()}  # fmt: skip
    return labelling_of(turned, description.get("regions_class_order") or (), str(path))
