"""How each peer lays one feature volume out on disk: `[C, X, Y, Z]`, the same voxels for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import zarr
from monai.data import PersistentDataset
from monai.transforms import Transform
from torch import Tensor
from zarr.codecs import ZstdCodec

from dropgen.features.bench.nnunet import blosc2_layout
from dropgen.features.store import FeatureStore

# Writes a volume into an empty folder, for crops of so many voxels per edge.
Write = Callable[[Path, np.ndarray, int], None]

KEY = "volume"  # of the one entry in this store
CHUNK = 64  # voxels per edge, all channels in one chunk
INNER = 32  # the same inside a shard, which is the whole volume


def write_memmap(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """One .npy file."""
    np.save(folder / "features.npy", features_cxyz)


def write_store(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """This project's store: one uncompressed Zarr chunk per channel."""
    FeatureStore(folder).put_features(KEY, features_cxyz, None, {"case": "bench"}, "float16")


def write_store_int8(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """The same in one byte each."""
    FeatureStore(folder).put_features(KEY, features_cxyz, None, {"case": "bench"}, "int8")


def codes_of(features_cxyz: np.ndarray) -> np.ndarray:
    """What the store keeps as int8: 256 levels from the least to the greatest value of every channel."""
    codes_cxyz = np.empty(features_cxyz.shape, np.int8)
    for codes, values in zip(codes_cxyz, features_cxyz.astype(np.float64), strict=True):
        codes[:] = np.rint((values - values.min()) / (np.ptp(values) / 255 or 1)) - 128
    return codes_cxyz


def write_chunks(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """Zarr v3, one file per chunk, not compressed."""
    channels, *volume = features_cxyz.shape
    chunks = (channels, *(min(CHUNK, edge) for edge in volume))
    zarr.create_array(store=str(folder), data=features_cxyz, chunks=chunks, compressors=None)


def write_default(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """Zarr v3 as it is when nothing is named: its automatic chunks, its default compressor."""
    zarr.create_array(store=str(folder), data=features_cxyz)


def write_shards(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """Zarr v3, one shard, its inner chunks compressed with zstd at Zarr's own level."""
    channels, *volume = features_cxyz.shape
    inner = [min(INNER, edge) for edge in volume]
    shard = [-(-edge // step) * step for edge, step in zip(volume, inner, strict=True)]
    chunks, shards = (channels, *inner), (channels, *shard)
    zarr.create_array(store=str(folder), data=features_cxyz, chunks=chunks, shards=shards, compressors=ZstdCodec())


def write_blosc2(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """A blosc2 array with nnU-Net's chunks, blocks, codec, level and single thread."""
    import blosc2

    blosc2.set_nthreads(1)
    chunks, blocks = blosc2_layout(features_cxyz.shape, [crop] * 3, features_cxyz.itemsize)
    blosc2.asarray(
        np.ascontiguousarray(features_cxyz),
        urlpath=str(folder / "features.b2nd"),
        chunks=chunks,
        blocks=blocks,
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 8},
        mmap_mode="w+",
    )


def write_monai(folder: Path, features_cxyz: np.ndarray, crop: int) -> None:
    """MONAI's PersistentDataset: the whole volume as one .pt file."""
    persistent(folder, torch.from_numpy(features_cxyz), lambda whole_cxyz: whole_cxyz)[0]


def persistent(folder: Path, source_cxyz: Tensor | None, crop: Callable[[Tensor], Tensor]) -> PersistentDataset:
    """The dataset that caches the source's one volume, or finds it cached; `crop` runs on every read."""

    class Load(Transform):
        def __call__(self, item: str) -> Tensor:
            assert source_cxyz is not None, f"{item} is not in MONAI's cache"
            return source_cxyz

    return PersistentDataset([KEY], [Load(), crop], cache_dir=folder)
