"""Sliding windows over one prepared volume, blended slab by slab.

Windows are visited in the order of one axis. A slab of planes is done as soon as every window that covers it has
passed, so that float logits of all classes exist for one window's depth and never for the volume; `Collect` says what
is kept of them.

Features reach a window by one of two ways, stated by the bundle's `feature_scope`. "volume": the
extractor saw the whole volume and the window cuts its raw features out, as the feature store does for
training crops. "window": the extractor sees only the window, as it saw only the crop in online training.
Either way the instance norm is the network input's own first step, so its statistics are the window's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from monai.data.utils import dense_patch_slices
from torch import Tensor, nn

from dropgen.features.extractors import Extractor, instance_norm
from dropgen.features.extractors.rolling import RollingFeatures
from dropgen.features.planes import Box, along, runs
from dropgen.features.studies.prepare import Grid, Native, Prepared, network_scale
from dropgen.platform.methods import Method

WINDOWS_AT_ONCE = 4

T = TypeVar("T")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Slab:
    """Logits of some neighbouring planes; they are overwritten once the next slab is asked for.

    Attributes:
        axis: Along which the volume is cut, 0 to 2.
        start: The first plane.
        logits_kxyz: `[K, x, y, z]` float32 on the CPU, averaged over windows; all of the volume along the other axes.
    """

    axis: int
    start: int
    logits_kxyz: Tensor

    @property
    def box(self) -> Box:
        """Where it lies in the prepared volume."""
        planes = slice(self.start, self.start + self.logits_kxyz.shape[1 + self.axis])
        x, y, z = (planes if axis == self.axis else slice(None) for axis in range(3))
        return x, y, z


Collect = Callable[[Iterable[Slab]], T]
Features = np.ndarray | RollingFeatures


def predict_slabs(
    network: nn.Module,
    method: Method,
    prepared: Prepared,
    features: Features | None,
    window_extractor: Extractor | None,
    collect: Collect[T],
    *,
    crop: Shape,
    overlap: float,
    device: str,
) -> T:
    """Runs a network over the windows of a volume.

    Args:
        network: In eval mode.
        method: Builds the network's input from image and features, and has the last word on the whole.
        prepared: At least `crop` voxels along every axis.
        features: Raw features of the whole volume, `[C, X, Y, Z]` or as windows come to them, or None.
        window_extractor: Extracts features in each window instead; None when they are given or not needed.
        collect: Takes all slabs of one pass, in order.
        crop: Window size in voxels.
        overlap: Fraction of a window that the next one repeats.
        device: Where the network is.

    Returns:
        What `collect` made; where the method runs several passes, of the one that it chose.
    """
    shape = prepared.shape
    axis = slab_axis(shape, crop)

    def over_windows(predict: Callable[[Tensor], Tensor]) -> T:
        def windows() -> Iterator[tuple[Box, Tensor]]:
            boxes = window_boxes(shape, crop, overlap, axis)
            for first in range(0, len(boxes), WINDOWS_AT_ONCE):
                some = boxes[first : first + WINDOWS_AT_ONCE]
                with torch.no_grad():
                    unit_bmxyz, raw_bcxyz = cut_windows(prepared, features, some, device)
                    inputs = window_input(method, prepared, unit_bmxyz, raw_bcxyz, window_extractor)
                    del unit_bmxyz, raw_bcxyz
                    logits_bkxyz = predict(inputs).float().cpu()
                del inputs  # while its logits are blended, a batch needs its input no longer
                yield from zip(some, logits_bkxyz, strict=True)
                del logits_bkxyz

        return collect(blend(windows(), shape, axis))

    return method.predict(network, over_windows)


def slab_axis(shape: Sequence[int], crop: Shape) -> int:
    """The axis of which a window covers the smallest part: cut along it, a window's depth of planes is smallest."""
    return min(range(3), key=lambda axis: crop[axis] / shape[axis])


def window_boxes(shape: Sequence[int], crop: Shape, overlap: float, axis: int) -> list[Box]:
    """MONAI's windows, ordered by where they begin along an axis."""
    steps = [
        size if edge == size else max(1, int(edge * (1 - overlap))) for edge, size in zip(crop, shape, strict=True)
    ]
    boxes = [(x, y, z) for x, y, z in dense_patch_slices(shape, crop, steps)]
    return sorted(boxes, key=lambda box: box[axis].start)


def blend(windows: Iterable[tuple[Box, Tensor]], shape: Sequence[int], axis: int) -> Iterator[Slab]:
    """Averages windows without weights, and lets go of every plane that no later window covers.

    Plane p is held at place p modulo the window's depth, so that nothing moves when planes are done.

    Args:
        windows: Where each lies and its logits `[K, x, y, z]`, ordered along `axis`; together they cover the volume.
        shape: Of the volume.
        axis: Along which it is cut.
    """
    waiting = iter(windows)
    box, logits_kxyz = next(waiting)
    depth, done = logits_kxyz.shape[1 + axis], 0
    held = [depth if index == axis else size for index, size in enumerate(shape)]
    held_kxyz, count_xyz = logits_kxyz.new_zeros((len(logits_kxyz), *held)), logits_kxyz.new_zeros(held)

    def release(stop: int) -> Iterator[Slab]:
        for start, places in runs(done, stop, depth):
            at = along(axis, places)
            slab_kxyz = held_kxyz[:, *at]
            slab_kxyz /= count_xyz[at]
            yield Slab(axis, start, slab_kxyz)
            slab_kxyz.zero_()
            count_xyz[at] = 0

    while True:
        if (start := box[axis].start) > done:
            yield from release(start)
            done = start
        for first, places in runs(start, start + depth, depth):
            target = along(axis, places, box)
            part = along(axis, slice(first - start, first - start + places.stop - places.start))
            held_kxyz[:, *target] += logits_kxyz[:, *part]
            count_xyz[target] += 1
        del logits_kxyz  # they are gone while the next ones are made
        try:
            box, logits_kxyz = next(waiting)
        except StopIteration:
            break
    yield from release(shape[axis])


def whole_logits(slabs: Iterable[Slab], shape: Sequence[int]) -> Tensor:
    """Collects the logits of all classes, `[K, X, Y, Z]`: for what needs them all at once, not for a mask."""
    logits_kxyz: Tensor | None = None
    for slab in slabs:
        if logits_kxyz is None:
            logits_kxyz = slab.logits_kxyz.new_empty((len(slab.logits_kxyz), *shape))
        logits_kxyz[:, *slab.box] = slab.logits_kxyz
    assert logits_kxyz is not None
    return logits_kxyz


def prepared_mask(slabs: Iterable[Slab], shape: Sequence[int], order: Sequence[int] = ()) -> np.ndarray:
    """Collects the mask on the prepared grid: uint8 `[X, Y, Z]`; `order` as `labels` takes it."""
    mask_xyz = np.empty(shape, np.uint8)
    for slab in slabs:
        mask_xyz[slab.box] = labels(slab, order)
    return mask_xyz


def native_mask(slabs: Iterable[Slab], grid: Grid, order: Sequence[int] = ()) -> np.ndarray:
    """Collects the mask on the native grid, uint8: what `grid.restore` makes of `prepared_mask`, without that."""
    native = Native(grid)
    for slab in slabs:
        native.put(slab.axis, slab.start, labels(slab, order))
    return native.array


def labels(slab: Slab, order: Sequence[int] = ()) -> np.ndarray:
    """The class with the largest logit, uint8 `[x, y, z]`; the first among equals.

    Args:
        slab: Of one volume.
        order: With regions the value of each, `Labelling.order`: it is written where the region's logit is above 0,
            which is a probability above 1/2, later ones over earlier ones.
    """
    if order:
        mask_xyz = np.zeros(slab.logits_kxyz.shape[1:], np.uint8)
        for value, logits_xyz in zip(order, slab.logits_kxyz, strict=True):
            mask_xyz[(logits_xyz > 0).numpy()] = value
        return mask_xyz
    return slab.logits_kxyz.argmax(dim=0).to(torch.uint8).numpy()


def cut_windows(
    prepared: Prepared, features: Features | None, boxes: Sequence[Box], device: str
) -> tuple[Tensor, Tensor | None]:
    """Unit-scale image `[B, M, x, y, z]` and raw features `[B, C, x, y, z]` of boxes of one size, float32."""
    unit_bmxyz = _stack((prepared.unit[:, *box] for box in boxes), len(boxes))
    if features is None:
        return unit_bmxyz.to(device), None
    cut = features.cut if isinstance(features, RollingFeatures) else lambda box: features[:, *box]
    return unit_bmxyz.to(device), _stack((cut(box) for box in boxes), len(boxes)).to(device)


def _stack(parts: Iterable[np.ndarray], count: int) -> Tensor:
    """So many arrays of one shape along a new axis, each copied before the next is made, which may overwrite it."""
    waiting = iter(parts)
    first = next(waiting)
    stacked = np.empty((count, *first.shape), np.float32)
    stacked[0] = first
    for place, part in enumerate(waiting, 1):
        stacked[place] = part
    return torch.from_numpy(stacked)


def window_input(
    method: Method,
    prepared: Prepared,
    unit_bmxyz: Tensor,
    raw_bcxyz: Tensor | None,
    window_extractor: Extractor | None,
) -> Tensor:
    """The network's input for windows, `[B, in_channels, X, Y, Z]`.

    Args:
        method: Builds the input from image and features.
        prepared: Where the windows come from; gives the image's shift and scale.
        unit_bmxyz: Of `cut_windows`.
        raw_bcxyz: Likewise; None where they are extracted here or not needed.
        window_extractor: Extracts features in each window; None when they are there or not needed.
    """
    if window_extractor is not None:
        raw_bcxyz = window_extractor(unit_bmxyz)
    features_bcxyz = instance_norm(raw_bcxyz) if method.needs_features and raw_bcxyz is not None else None
    return method.inputs(network_scale(unit_bmxyz, [prepared]), features_bcxyz)
