"""Times random crops of one feature volume, read by this store and by its peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from dropgen.errors import ConfigError, ResourceError, StoreError
from dropgen.features.bench import cache
from dropgen.features.bench.layouts import codes_of
from dropgen.features.bench.peers import Box, Peer, Read
from dropgen.features.bench.timing import Spread, require_repeats, rounds, timed
from dropgen.features.store import close_maps, forget_comparisons

SMOOTH = 16  # voxels between the knots of the random field
NOISE = 0.05  # of the field's own spread
Truths = dict[str, np.ndarray]  # stored type to the volume as a peer must give it
KEPT = 0.01  # share of a cold peer's bytes that may be in memory


@dataclass(frozen=True)
class StoreBench:
    """What is read, and how often.

    Attributes:
        shape: Voxels of the volume, [X, Y, Z].
        channels: Feature channels C.
        crops: Edges of cubic crops, in voxels; each has files of its own, because nnU-Net's layout follows the crop.
        repeats: Crops per peer, at least 5; crop i lies at the same place for all peers.
    """

    shape: tuple[int, int, int] = (240, 240, 155)  # BraTS
    channels: int = 16
    crops: tuple[int, ...] = (64, 128)
    repeats: int = 5

    def __post_init__(self) -> None:
        require_repeats(self.repeats)
        if len(self.shape) != 3:
            raise ConfigError(f"--shape = {self.shape}: a volume has three axes, for example 240,240,155")
        if self.channels < 1:
            raise ConfigError(f"--channels = {self.channels}: features have at least 1")
        for crop in self.crops:
            if not 1 <= crop <= min(self.shape):
                raise ConfigError(f"--crops = {crop}: a crop must have 1 to {min(self.shape)} voxels in {self.shape}")


def bench_store(
    spec: StoreBench, peers: Sequence[Peer], folder: Path, on_row: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Writes the volume for every peer under `folder`, times reading, and removes what it wrote.

    Warm: the file is open, what this store compares at first sight is compared, and the crop's bytes are in the page
    cache. Cold: the peer's files are not, and opening is part of the time, that comparison with it. Every crop
    that is timed is compared with the voxels that were written.

    Returns:
        Rows `bench, peer, dtype, crop, cache, median_ms, min_ms, max_ms, bytes, repeats, raw_ms, unavailable`;
        `bytes` is what the layout takes on disk, and where `unavailable` is a sentence there are no times.

    Raises:
        StoreError: A peer gives other voxels than were written.
        ResourceError: The disk is full or the folder cannot be written.
    """
    features_cxyz = make_features(spec.channels, spec.shape)
    truths = {"float16": features_cxyz, "int8": codes_of(features_cxyz)}
    rows: list[dict[str, Any]] = []

    def add(peer: Peer, crop: int, cached: str, size: int | None, raw_ms: Sequence[float], why: str | None) -> None:
        spread = Spread.of(raw_ms) if raw_ms else None
        rows.append({
            "bench": "store", "peer": peer.name, "dtype": peer.dtype, "crop": crop, "cache": cached,
            "median_ms": spread and spread.median, "min_ms": spread and spread.low, "max_ms": spread and spread.high,
            "bytes": size, "repeats": len(raw_ms), "raw_ms": list(raw_ms), "unavailable": why,
        })  # fmt: skip
        on_row(rows[-1])

    reasons = {peer: peer.unavailable() for peer in peers}
    ready = [peer for peer in peers if reasons[peer] is None]
    for crop in spec.crops:
        generator = np.random.default_rng(crop)
        boxes = [_random_box(spec.shape, crop, generator) for _ in range(spec.repeats)]
        with _layouts(ready, features_cxyz, crop, folder) as places:
            sizes = {peer: _size(place) for peer, place in places.items()}
            warm = _time_warm(places, truths, boxes, generator)
            close_maps()
            cold, kept = _time_cold(places, truths, boxes, generator)
            close_maps()
        for peer in peers:
            size, reason = sizes.get(peer), reasons[peer]
            add(peer, crop, "warm", size, warm.get(peer, ()), reason)
            if peer in kept:
                reason = f"{100 * kept[peer]:.0f}% of its bytes stayed in memory, so nothing here is cold"
            add(peer, crop, "cold", size, cold.get(peer, ()), reason)
    return rows


def make_features(channels: int, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A smooth random field with 5% noise, `[C, X, Y, Z]` float16: what features look like to a compressor."""
    generator = torch.Generator().manual_seed(seed)
    features_cxyz = np.empty((channels, *shape), np.float16)
    for channel in features_cxyz:
        knots = torch.randn(1, 1, *(edge // SMOOTH + 2 for edge in shape), generator=generator)
        smooth = nnf.interpolate(knots, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
        channel[:] = (smooth + NOISE * smooth.std() * torch.randn(*shape, generator=generator)).numpy()
    return features_cxyz


@contextmanager
def _layouts(peers: Sequence[Peer], features_cxyz: np.ndarray, crop: int, folder: Path) -> Iterator[dict[Peer, Path]]:
    """The folder of every peer, written once per layout and gone afterwards."""
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(TemporaryDirectory(dir=folder))
            places = {write: Path(scratch, str(index)) for index, write in enumerate({peer.write for peer in peers})}
            for write, place in places.items():
                place.mkdir()
                write(place, features_cxyz, crop)
        except OSError as error:
            raise ResourceError(
                f"the benchmark cannot write its volumes under {folder}: {error.strerror or error}; free disk space "
                "there or choose a writable folder with --root"
            ) from error
        yield {peer: places[peer.write] for peer in peers}


def _time_warm(
    places: dict[Peer, Path], truths: Truths, boxes: Sequence[Box], generator: np.random.Generator
) -> dict[Peer, list[float]]:
    reads = {peer: peer.open(place) for peer, place in places.items()}
    for peer, read in reads.items():
        for box in boxes:
            _require_equal(peer, read(box), truths, box)
    times: dict[Peer, list[float]] = {peer: [] for peer in places}
    for box, order in zip(boxes, rounds(list(places), len(boxes), generator), strict=True):
        for peer in order:
            times[peer].append(_checked(peer, reads[peer], truths, box))
    return times


def _time_cold(
    places: dict[Peer, Path], truths: Truths, boxes: Sequence[Box], generator: np.random.Generator
) -> tuple[dict[Peer, list[float]], dict[Peer, float]]:
    """Milliseconds of the peers whose files left the page cache every time, and what share of the others' stayed."""
    times: dict[Peer, list[float]] = {peer: [] for peer in places}
    kept: dict[Peer, float] = {}
    for box, order in zip(boxes, rounds(list(places), len(boxes), generator), strict=True):
        for peer in order:
            close_maps()  # a page that is mapped cannot be forgotten
            forget_comparisons()  # a new process opens the files
            share = cache.drop(places[peer])
            if share > KEPT:
                kept[peer] = max(share, kept.get(peer, 0.0))
            if peer not in kept:
                times[peer].append(_checked(peer, partial(_open_and_read, peer, places[peer]), truths, box))
    return {peer: seconds for peer, seconds in times.items() if peer not in kept}, kept


def _open_and_read(peer: Peer, place: Path, box: Box) -> Tensor:
    return peer.open(place)(box)


def _checked(peer: Peer, read: Read, truths: Truths, box: Box) -> float:
    """Milliseconds of one read, once its voxels are found right."""
    seconds, crop_cxyz = timed(lambda: read(box), time.perf_counter)
    _require_equal(peer, crop_cxyz, truths, box)
    return 1000 * seconds


def _require_equal(peer: Peer, crop_cxyz: Tensor, truths: Truths, box: Box) -> None:
    truth_cxyz = torch.from_numpy(truths[peer.dtype][:: peer.step, *box])
    same = crop_cxyz.dtype == truth_cxyz.dtype and crop_cxyz.is_contiguous() and torch.equal(crop_cxyz, truth_cxyz)
    if not same:
        edges = ", ".join(f"{edge.start}:{edge.stop}" for edge in box)
        raise StoreError(f"{peer.name} gave other voxels at [{edges}] than were written; no time of this run counts")


def _random_box(shape: Sequence[int], crop: int, generator: np.random.Generator) -> Box:
    x, y, z = (int(generator.integers(edge - crop + 1)) for edge in shape)
    return slice(x, x + crop), slice(y, y + crop), slice(z, z + crop)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
