"""The peers of the crop benchmark: who opens which layout, and what one read gives.

Every library runs with its own default number of threads, but blosc2, which nnU-Net gives one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import zarr
import zarr.registry
from torch import Tensor

from dropgen.config import Features
from dropgen.features.bench import layouts
from dropgen.features.bench.layouts import KEY, Write
from dropgen.features.store import FeatureStore

Box = tuple[slice, slice, slice]
Read = Callable[[Box], Tensor]  # a crop [C, x, y, z] of the stored type, in memory of its own

BATCHED = "zarr.core.codec_pipeline.BatchedCodecPipeline"  # Zarr's default
FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"  # opt-in since Zarr 3.3
DROPPED = 4  # one channel in four is read at p = 0.75


@dataclass(frozen=True)
class Peer:
    """One way to keep and read features.

    Attributes:
        name: As the rows call it.
        write: Makes its layout; peers with the same function share files.
        open: Opens a layout's folder for reading.
        needs: `module` or `module:attribute` that must be there.
        step: Reads every step-th channel.
        dtype: Type that it keeps and gives.
    """

    name: str
    write: Write
    open: Callable[[Path], Read]
    needs: str = "numpy"
    step: int = 1
    dtype: str = "float16"

    def unavailable(self) -> str | None:
        """Why this peer cannot run here, or None."""
        if self.dtype not in get_args(Features.model_fields["dtype"].annotation):
            return f"features.dtype has no {self.dtype} in this version"
        module, _, attribute = self.needs.partition(":")
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            missing = error.name == module.partition(".")[0]
            return "not installed" if missing else f"cannot be imported: {error}"
        return None if not attribute or hasattr(found, attribute) else f"{module} has no {attribute} in this version"


def all_peers(channels: int) -> tuple[Peer, ...]:
    """Every peer, for volumes of so many channels."""
    some = f"{len(range(0, channels, DROPPED))} of {channels} channels"
    all_of, some_of = partial(_open_store, step=1), partial(_open_store, step=DROPPED)
    return (
        Peer("numpy memmap", layouts.write_memmap, _open_memmap),
        Peer("dropgen", layouts.write_store, all_of),
        Peer(f"dropgen, {some}", layouts.write_store, some_of, step=DROPPED),
        Peer("dropgen int8", layouts.write_store_int8, all_of, dtype="int8"),
        Peer(f"dropgen int8, {some}", layouts.write_store_int8, some_of, step=DROPPED, dtype="int8"),
        Peer("zarr, chunks", layouts.write_chunks, partial(_open_zarr, pipeline=BATCHED)),
        Peer("zarr, default layout", layouts.write_default, partial(_open_zarr, pipeline=BATCHED)),
        Peer("zarr, shard zstd", layouts.write_shards, partial(_open_zarr, pipeline=BATCHED)),
        Peer("zarr fused, chunks", layouts.write_chunks, partial(_open_zarr, pipeline=FUSED), _needs(FUSED)),
        Peer("zarr fused, shard zstd", layouts.write_shards, partial(_open_zarr, pipeline=FUSED), _needs(FUSED)),
        Peer("zarrs, chunks", layouts.write_chunks, _open_zarrs, "zarrs"),
        Peer("zarrs, shard zstd", layouts.write_shards, _open_zarrs, "zarrs"),
        Peer("tensorstore, chunks", layouts.write_chunks, _open_tensorstore, "tensorstore"),
        Peer("tensorstore, shard zstd", layouts.write_shards, _open_tensorstore, "tensorstore"),
        Peer("blosc2 as nnU-Net", layouts.write_blosc2, _open_blosc2, "blosc2"),
        Peer("MONAI PersistentDataset", layouts.write_monai, _open_monai),
    )  # fmt: skip


def _needs(pipeline: str) -> str:
    return ":".join(pipeline.rsplit(".", 1))


def _open_memmap(folder: Path) -> Read:
    mapped = np.load(folder / "features.npy", mmap_mode="r")
    return lambda box: torch.from_numpy(np.array(mapped[:, *box]))


def _open_store(folder: Path, step: int) -> Read:
    stored = FeatureStore(folder).features(KEY)
    return lambda box: torch.from_numpy(stored.read(range(0, stored.channels, step), box))


def _open_zarr(folder: Path, pipeline: str) -> Read:
    with zarr.config.set({"codec_pipeline.path": pipeline}):  # an array keeps the pipeline that it is opened with
        array = zarr.open_array(str(folder), mode="r")
    return lambda box: torch.from_numpy(np.asarray(array[:, *box]))


def _open_zarrs(folder: Path) -> Read:
    import zarrs

    zarr.registry.register_pipeline(zarrs.ZarrsCodecPipeline)
    return _open_zarr(folder, "zarrs.ZarrsCodecPipeline")


def _open_tensorstore(folder: Path) -> Read:
    import tensorstore

    place = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}
    array = tensorstore.open(place, open=True, read=True).result()
    return lambda box: torch.from_numpy(array[:, *box].read().result())


def _open_blosc2(folder: Path) -> Read:
    import blosc2

    array = blosc2.open(str(folder / "features.b2nd"), mode="r", dparams={"nthreads": 1}, mmap_mode="r")
    return lambda box: torch.from_numpy(array[:, *box])


def _open_monai(folder: Path) -> Read:
    boxes: list[Box] = []
    dataset = layouts.persistent(folder, None, lambda whole_cxyz: whole_cxyz[:, *boxes[-1]].clone())

    def read(box: Box) -> Tensor:
        boxes[:] = [box]
        crop: Tensor = dataset[0]
        return crop

    return read
