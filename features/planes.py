"""Planes of a volume along one axis that come and go: plane p is held at place p modulo the depth, so none is moved."""

from __future__ import annotations

from collections.abc import Iterator

Box = tuple[slice, slice, slice]
EVERYTHING: Box = (slice(None), slice(None), slice(None))


def runs(start: int, stop: int, depth: int) -> Iterator[tuple[int, slice]]:
    """Planes `start` to `stop` as runs of places that lie together: each run's first plane, and its places."""
    while start < stop:
        place = start % depth
        length = min(stop - start, depth - place)
        yield start, slice(place, place + length)
        start += length


def along(axis: int, planes: slice, box: Box = EVERYTHING) -> Box:
    """A box with other planes along one axis."""
    x, y, z = (planes if index == axis else edge for index, edge in enumerate(box))
    return x, y, z
