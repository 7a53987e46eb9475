"""Pictures of masks on images: one row per case, one column per mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dropgen.features.studies.geometry import ras_grid, ras_view, spacing_of
from dropgen.features.studies.volume import Volume

COLOURS = ("#e4572e", "#2a9d8f", "#f2b134", "#5b8fd6", "#b35fc4", "#8ac926", "#ff8fa3", "#7f5539")
INK, MUTED, RULE, PAPER = "#1d2733", "#66727f", "#d5dade", "#ffffff"
WINDOW = (1.0, 99.5)  # percentiles of the slice shown as black and white
MARGIN = 0.22  # of a slice's side, kept around everything that is labelled
PANEL_INCHES = 2.05


@dataclass(frozen=True)
class Picture:
    """One row.

    Attributes:
        title: Written at the left, for example the domain.
        image: The case's image.
        masks: Column name to a label map on the image's grid, None where there is none. The first column
            with a mask, usually the ground truth, chooses the slice.
        notes: Column name to a line under the panel, for example a Dice.
    """

    title: str
    image: Volume
    masks: Mapping[str, np.ndarray | None]
    notes: Mapping[str, str] = field(default_factory=dict)


def overlay(pictures: Sequence[Picture], classes: Sequence[str]) -> Figure:
    """Draws every case as image, then one panel per mask, at the slice that shows most of the labels.

    Args:
        pictures: Rows; all with the same columns.
        classes: Class names with background; the legend names the others.
    """
    columns = ["image", *pictures[0].masks]
    figure = Figure(
        figsize=(PANEL_INCHES * len(columns) + 0.9, (PANEL_INCHES + 0.2) * len(pictures) + 0.75), facecolor=PAPER
    )
    axes = figure.subplots(len(pictures), len(columns), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.14})
    for row, picture in zip(axes, pictures, strict=True):
        image, masks, aspect = slices_of(picture)
        low, high = contrast(image)
        for axis, column in zip(row, columns, strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
            mask = masks.get(column)
            if mask is not None:
                draw_mask(axis, mask, aspect)
            axis.set_xlabel(picture.notes.get(column, ""), fontsize=8.5, color=MUTED, labelpad=3)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color=RULE, linewidth=0.8)
        row[0].set_ylabel(picture.title, fontsize=9.5, color=INK, labelpad=8)
    for axis, column in zip(axes[0], columns, strict=True):
        axis.set_title(column, fontsize=10, color=INK, pad=6)
    patches = [Patch(color=colour(label), label=name) for label, name in enumerate(classes) if label > 0]
    figure.legend(
        handles=patches, loc="lower center", ncols=min(len(patches), 6), frameon=False, fontsize=8.5, labelcolor=INK
    )
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.62 / figure.get_figwidth(), right=0.99, top=1 - 0.32 / height, bottom=0.52 / height)
    return figure


@dataclass(frozen=True)
class View:
    """A volume as slices that a person looks at, as radiologists do: patient's right on the left.

    Attributes:
        affine: Of the volume's file.
        spacing: mm, RAS axes.
        through: The RAS axis that slices are counted along: the one with the thickest, axial where all are alike.
    """

    affine: np.ndarray
    spacing: tuple[float, float, float]
    through: int

    @classmethod
    def on(cls, image: Volume) -> View:
        """The view of an image and of every mask on its grid."""
        x, y, z = spacing_of(ras_grid(image.array.shape, image.affine)[1])
        through = 2 if np.ptp((x, y, z)) < 0.1 * max(x, y, z) else int(np.argmax((x, y, z)))
        return cls(image.affine, (float(x), float(y), float(z)), through)

    @property
    def others(self) -> tuple[int, int]:
        """The axes in a slice: to the right and up."""
        right, up = (axis for axis in range(3) if axis != self.through)
        return right, up

    @property
    def name(self) -> str:
        """What slices along this axis are called."""
        return ("sagittal", "coronal", "axial")[self.through]

    @property
    def aspect(self) -> float:
        """Height of a voxel by its width."""
        right, up = self.others
        return self.spacing[up] / self.spacing[right]

    def turned(self, array_xyz: np.ndarray) -> np.ndarray:
        """An array in RAS order, which `cut` takes."""
        return ras_view(array_xyz, self.affine)

    def cut(self, turned_xyz: np.ndarray, index: int) -> np.ndarray:
        """One slice, rows from the top."""
        plane: np.ndarray = np.take(turned_xyz, index, axis=self.through).T[::-1]
        return plane[:, ::-1] if self.others[0] == 0 else plane


def slices_of(picture: Picture) -> tuple[np.ndarray, dict[str, np.ndarray], float]:
    """The chosen slice of image and masks in the square around what is labelled, and its aspect, as a `View` has it."""
    view = View.on(picture.image)
    image = view.turned(picture.image.array)
    masks = {name: view.turned(mask) for name, mask in picture.masks.items() if mask is not None}
    guides = [mask for mask in masks.values() if mask.any()] or [np.ones_like(image, dtype=np.uint8)]
    index = int(np.argmax(np.count_nonzero(guides[0], axis=view.others)))
    whole = view.cut(image, index)
    cuts = {name: view.cut(mask, index) for name, mask in masks.items()}
    labelled = np.any(np.stack([np.zeros(whole.shape, bool), *[cut > 0 for cut in cuts.values()]]), axis=0)
    right, up = view.others
    box = _square(labelled, (view.spacing[up], view.spacing[right]))
    return whole[box], {name: cut[box] for name, cut in cuts.items()}, view.aspect


def _square(labelled: np.ndarray, spacing: tuple[float, float]) -> tuple[slice, slice]:
    """The square, in mm, around everything labelled, with a margin; the whole slice where nothing is."""
    if not labelled.any():
        return slice(None), slice(None)
    ends = [np.flatnonzero(labelled.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    sides = [size * step for size, step in zip(labelled.shape, spacing, strict=True)]
    extent = max((last - first + 1) * step for (first, last), step in zip(ends, spacing, strict=True))
    side = max(extent, min(extent + 2 * MARGIN * min(sides), *sides))
    box = []
    for (first, last), step, size in zip(ends, spacing, labelled.shape, strict=True):
        length = min(round(side / step), size)
        start = min(max(round((first + last + 1 - length) / 2), 0), size - length)
        box.append(slice(start, start + length))
    return box[0], box[1]


def contrast(plane: np.ndarray) -> tuple[float, float]:
    """What slices show as black and as white."""
    low, high = np.percentile(plane, WINDOW)
    return float(low), max(float(high), float(low) + 1e-6)


def draw_mask(axis: Axes, mask: np.ndarray, aspect: float, opacity: float = 0.35) -> None:
    """Tints the classes of a slice and draws their contours."""
    tint = np.zeros((*mask.shape, 4))
    for label in np.unique(mask[mask > 0]):
        tint[mask == label] = (*to_rgb(colour(int(label))), opacity)
    axis.imshow(tint, aspect=aspect, interpolation="nearest")
    for label in np.unique(mask[mask > 0]):
        if min(mask.shape) > 1:
            axis.contour(mask == label, levels=[0.5], colors=[colour(int(label))], linewidths=1.3)


def colour(label: int) -> str:
    """The colour of a class in every picture."""
    return COLOURS[(label - 1) % len(COLOURS)]
