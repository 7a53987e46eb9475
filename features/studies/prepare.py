"""The one way from the volumes of an image to the array that extractors and networks see, and back for masks.

Order: orient to RAS, resample to the study's spacing (linear / nearest), scale intensities per volume, pad
symmetrically with unit value 0 up to the crop size. Every channel of an image goes this way by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dropgen.errors import VolumeError, closest
from dropgen.features.studies import geometry
from dropgen.features.studies.intensity import scale_intensity
from dropgen.features.studies.volume import MAX_VOXELS, Volume
from dropgen.manifest import digest

PREPARE_VERSION = 1  # raise it when the same file and fields give other voxels, so that stores recompute
MAX_CLASSES = 256  # masks are uint8


@dataclass(frozen=True)
class Preparation:
    """How a study wants its volumes.

    Attributes:
        spacing: Target voxel size in mm, RAS axes.
        crop: Least size in voxels; smaller volumes are padded up to it.
        intensity: A rule of `intensity.RULES`, or one rule per modality, or per channel where there are several.
        channels: Names of an image's channels; none where there is one, which needs no name.
    """

    spacing: tuple[float, float, float]
    crop: tuple[int, int, int]
    intensity: str | Mapping[str, str]
    channels: tuple[str, ...] = ()

    def rules(self, modality: str | None) -> tuple[str, ...]:
        """The intensity rule of every channel of an image.

        Args:
            modality: Chooses the rule of the only channel; with several the channel's own name does.

        Raises:
            VolumeError: The rule depends on the modality, and that is missing or unknown.
        """
        return tuple(resolve_rule(self.intensity, name) for name in self.channels or (modality,))

    def key(self, modality: str | None) -> str:
        """A digest of everything that decides a prepared voxel besides the files; raises as `rules`."""
        return digest([PREPARE_VERSION, self.spacing, self.crop, *self.rules(modality)])


@dataclass(frozen=True)
class Grid:
    """A prepared grid, with everything that puts a mask back where its image came from.

    Attributes:
        native_shape: Voxels of the file, file order.
        native_affine: [4][4], file voxel index to world mm.
        spacing: Target voxel size in mm, RAS axes.
        resampled_shape: Voxels after resampling, RAS order, before padding.
        padding: Voxels added before and after, per RAS axis.
    """

    native_shape: tuple[int, int, int]
    native_affine: tuple[tuple[float, ...], ...]
    spacing: tuple[float, float, float]
    resampled_shape: tuple[int, int, int]
    padding: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, volume: Volume, preparation: Preparation) -> Self:
        """Plans the grid that a volume is prepared on.

        Raises:
            VolumeError: The spacing is so fine that the volume would not fit in memory.
        """
        oriented_shape, oriented_affine = geometry.ras_grid(volume.array.shape, volume.affine)
        step = geometry.step_between(oriented_affine, preparation.spacing)
        resampled = geometry.resampled_shape(oriented_shape, step)
        pad = [max(0, least - size) for least, size in zip(preparation.crop, resampled, strict=True)]
        if (voxels := math.prod(np.add(resampled, pad).tolist())) > MAX_VOXELS:
            raise VolumeError(
                f"spacing {list(preparation.spacing)} mm makes shape {list(resampled)} of a volume of "
                f"{list(oriented_shape)} voxels, {voxels} with padding and more than {MAX_VOXELS}; raise the spacing"
            )
        x, y, z = volume.array.shape
        return cls(
            native_shape=(x, y, z),
            native_affine=tuple(tuple(float(value) for value in row) for row in volume.affine),
            spacing=preparation.spacing,
            resampled_shape=resampled,
            padding=tuple((total // 2, total - total // 2) for total in pad),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the prepared volume, RAS order."""
        x, y, z = (
            before + size + after for size, (before, after) in zip(self.resampled_shape, self.padding, strict=True)
        )
        return x, y, z

    @property
    def affine(self) -> np.ndarray:
        """Prepared voxel index to world mm, [4, 4] float64."""
        shape, affine, step = self._oriented()
        first = np.eye(4)
        first[:3, 3] = [-before for before, _ in self.padding]
        return geometry.resampled_affine(affine, shape, self.resampled_shape, step) @ first

    def place(self, array: np.ndarray, order: int) -> np.ndarray:
        """Orients and resamples an array of the native grid, without padding; order 1 linear, 0 nearest."""
        _, _, step = self._oriented()
        oriented = geometry.to_ras(array, np.array(self.native_affine))
        return geometry.resample(oriented, self.resampled_shape, step, order)

    @property
    def inner(self) -> tuple[slice, ...]:
        """Where the resampled voxels lie in the prepared array; all around is 0."""
        return tuple(
            slice(before, before + size) for (before, _), size in zip(self.padding, self.resampled_shape, strict=True)
        )

    def restore(self, mask: np.ndarray) -> np.ndarray:
        """Puts a mask of the prepared grid back on the native one.

        Args:
            mask: Labels [X, Y, Z] of shape `self.shape`.

        Returns:
            uint8 [X, Y, Z] of shape `native_shape`, in file order, nearest neighbour.

        Raises:
            VolumeError: The mask has another shape.
        """
        if mask.shape != self.shape:
            raise VolumeError(f"mask has shape {list(mask.shape)}, its prepared grid has {list(self.shape)}")
        native = Native(self)
        native.put(0, 0, mask)
        return native.array

    def to_json(self) -> dict[str, Any]:
        """The grid as plain JSON values; `from_json` restores it exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Reads what `to_json` wrote."""
        return cls(**{key: _tuples(value) for key, value in values.items()})

    def _oriented(self) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
        """Shape and affine of the RAS-oriented native grid, and its voxels per target voxel."""
        shape, affine = geometry.ras_grid(self.native_shape, np.array(self.native_affine))
        return shape, affine, geometry.step_between(affine, self.spacing)


class Native:
    """A uint8 array on the native grid, filled from slabs of the prepared one as they come, nearest neighbour.

    The nearest neighbour of a voxel is found axis by axis, so that a slab knows the planes that it decides and nothing
    else of the prepared grid has to be held.

    Args:
        grid: Of the volume.

    Attributes:
        array: [X, Y, Z] of shape `native_shape`, in file order; 0 where no slab has come yet.
    """

    def __init__(self, grid: Grid) -> None:
        shape, _, step = grid._oriented()
        self.array = np.zeros(grid.native_shape, np.uint8)
        self._ras = geometry.ras_view(self.array, np.array(grid.native_affine))
        self._sources = [
            geometry.nearest_index(old, new, 1 / width) + before
            for old, new, width, (before, _) in zip(grid.resampled_shape, shape, step, grid.padding, strict=True)
        ]

    def put(self, axis: int, start: int, slab_xyz: np.ndarray) -> None:
        """Fills in what a slab decides.

        Args:
            axis: Along which the prepared grid is cut, RAS.
            start: The slab's first plane along it.
            slab_xyz: Labels, all of the prepared grid along the other axes.
        """
        sources, target = list(self._sources), [slice(None)] * 3
        first, last = np.searchsorted(sources[axis], (start, start + slab_xyz.shape[axis]))
        sources[axis], target[axis] = sources[axis][first:last] - start, slice(first, last)
        self._ras[tuple(target)] = slab_xyz[np.ix_(*sources)]


@dataclass(frozen=True)
class Prepared:
    """A prepared image.

    Attributes:
        unit: [M, X, Y, Z] float32 in [0, 1], RAS order, at least the crop size; one volume per channel.
        shift: Per channel; with `scale` gives the network's image channels, `(unit - shift) / scale`.
        scale: See `shift`.
        grid: The way back.
    """

    unit: np.ndarray
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    grid: Grid

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels, [X, Y, Z]."""
        x, y, z = self.unit.shape[1:]
        return x, y, z


def prepare(channels: Sequence[Volume], preparation: Preparation, modality: str | None = None) -> Prepared:
    """Prepares one image.

    Args:
        channels: Its channels as read from their files, in the order of `preparation.channels`.
        preparation: The study's wishes.
        modality: Needed where the intensity rule of the only channel depends on it; never guessed.

    Raises:
        VolumeError: There are more or fewer channels, or they do not share a grid; the modality is missing or unknown;
            or the result would not fit in memory.
    """
    rules, names = preparation.rules(modality), preparation.channels
    if len(channels) != len(rules):
        wanted = f"{len(rules)} are wanted: {', '.join(names)}" if names else "one is wanted"
        raise VolumeError(f"the image has {len(channels)} channel{'s' * (len(channels) > 1)} where {wanted}")
    require_one_grid(channels, names)
    grid = Grid.of(channels[0], preparation)
    unit = np.zeros((len(channels), *grid.shape), np.float32)
    shift, scale = [], []
    for prepared, volume, rule in zip(unit, channels, rules, strict=True):
        scaling = scale_intensity(grid.place(volume.array, order=1), rule)
        prepared[grid.inner] = scaling.unit
        shift.append(scaling.shift)
        scale.append(scaling.scale)
    return Prepared(unit, tuple(shift), tuple(scale), grid)


def require_one_grid(channels: Sequence[Volume], names: Sequence[str]) -> None:
    """Refuses channels of an image that do not lie voxel on voxel.

    Args:
        channels: As read from their files.
        names: What they are called.

    Raises:
        VolumeError: One lies on another grid than the first.
    """
    for volume, name in zip(channels[1:], names[1:], strict=True):
        first = channels[0]
        if difference := geometry.grid_difference(volume, first.array.shape, first.affine, "channel", "first"):
            raise VolumeError(f"channel {name} is not on the grid of channel {names[0]}: {difference}")


def network_scale(units_bcxyz: Tensor, volumes: Sequence[Prepared]) -> Tensor:
    """Unit scale to the channels that the network sees, `(unit - shift) / scale`.

    Args:
        units_bcxyz: `[B, k M, X, Y, Z]`, the M channels of the image, k times over where a method repeats it.
        volumes: What each sample was cut out of; one for all of them, or one each.
    """
    repeats = units_bcxyz.shape[1] // len(volumes[0].shift)
    shift, scale = (
        torch.tensor(values, device=units_bcxyz.device).repeat(1, repeats)[..., None, None, None]
        for values in ([volume.shift for volume in volumes], [volume.scale for volume in volumes])
    )
    return (units_bcxyz - shift) / scale


def prepare_label(mask: Volume, grid: Grid) -> np.ndarray:
    """Puts a mask on the prepared grid of its image: uint8 [X, Y, Z], nearest neighbour, padded with 0.

    Raises:
        VolumeError: The mask lies on another grid than the image, or holds a value outside 0..255.
    """
    if difference := geometry.grid_difference(mask, grid.native_shape, np.array(grid.native_affine)):
        raise VolumeError(f"label is not on its image's grid: {difference}")
    low, high = int(mask.array.min()), int(mask.array.max())
    if low < 0 or high >= MAX_CLASSES:
        raise VolumeError(f"label value {low if low < 0 else high} is not a class, which are 0..{MAX_CLASSES - 1}")
    label = np.zeros(grid.shape, np.uint8)
    label[grid.inner] = grid.place(mask.array.astype(np.uint8), order=0)
    return label


def resolve_rule(intensity: str | Mapping[str, str], modality: str | None) -> str:
    """The intensity rule for a volume of this modality.

    Raises:
        VolumeError: The rule depends on the modality, and that is missing or unknown.
    """
    if isinstance(intensity, str):
        return intensity
    if modality is None:
        raise VolumeError(f"intensities are scaled by modality, so it must be given: {', '.join(sorted(intensity))}")
    if modality not in intensity:
        raise VolumeError(f"no intensity rule for modality '{modality}'{closest(modality, intensity)}")
    return intensity[modality]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
