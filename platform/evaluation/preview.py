"""One picture to see whether a mask is where it should be: its contours over three slices of the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.overlays import INK, MUTED, PAPER, RULE, View, colour, contrast, draw_mask

PANEL_INCHES = 3.2
TINT = 0.12  # faint, because what is under the mask decides whether it is right
SHARES = (0.25, 0.5, 0.75)  # of the labelled voxels that lie before the slice


def preview(image: Volume, mask_xyz: np.ndarray, classes: Sequence[str], title: str, notes: Sequence[str]) -> Figure:
    """Draws a mask's contours over the slices with a quarter, half and three quarters of it behind them.

    Args:
        image: The case.
        mask_xyz: Labels on its grid; where it is empty the slices are those of the volume.
        classes: Class names with background; the legend names those that the mask holds.
        title: The case's name.
        notes: Written below the title, for example the flags of `quality`.
    """
    view = View.on(image)
    turned, gray = view.turned(mask_xyz), view.turned(image.array)
    weights = np.count_nonzero(turned, axis=view.others) if mask_xyz.any() else np.ones(turned.shape[view.through])
    slices = np.searchsorted(np.cumsum(weights), np.multiply(SHARES, weights.sum()))
    right, up = view.others
    height = PANEL_INCHES * view.aspect * turned.shape[up] / turned.shape[right]
    top, bottom = 0.45 + 0.2 * len(notes), 0.55
    figure = Figure(figsize=(3 * PANEL_INCHES + 0.4, height + top + bottom), facecolor=PAPER)
    total = figure.get_figheight()
    axes = figure.subplots(1, 3, gridspec_kw={"wspace": 0.03})
    shown = [view.cut(gray, int(index)) for index in slices]
    low, high = contrast(np.stack(shown))
    for axis, index, plane in zip(axes, slices, shown, strict=True):
        axis.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=view.aspect, interpolation="nearest")
        draw_mask(axis, view.cut(turned, int(index)), view.aspect, TINT)
        axis.set_xlabel(f"{view.name} slice {index + 1} of {turned.shape[view.through]}", fontsize=8.5, color=MUTED)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(color=RULE, linewidth=0.8)
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - top / total, bottom=bottom / total)
    figure.text(0.02, 1 - 0.27 / total, title, fontsize=11, color=INK, va="center")
    for line, note in enumerate(notes):
        figure.text(0.02, 1 - (0.5 + 0.2 * line) / total, note, fontsize=8.5, color="#b3261e", va="center")
    held = [value for value in np.unique(mask_xyz[mask_xyz > 0]) if value < len(classes)]
    patches = [Patch(color=colour(int(value)), label=classes[value]) for value in held]
    if patches:
        figure.legend(
            handles=patches, loc="lower center", ncols=min(len(patches), 6), frameon=False, fontsize=8.5, labelcolor=INK
        )
    return figure
