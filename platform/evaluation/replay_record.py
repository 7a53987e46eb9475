"""The comparison of replayed with recomputed features as files, a figure and sentences."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dropgen.errors import ResourceError
from dropgen.platform.evaluation.charts import INK, METHOD_COLOURS, MUTED, style_axis
from dropgen.platform.evaluation.replay import Row, compare_geometry, exact, mean_over
from dropgen.platform.training.bench import Workbench
from dropgen.platform.training.inexact import inexact

FOLDER = "analyses"
Value = Callable[[Row], float]
COLOUR, PALE = METHOD_COLOURS["dropgen"], "#9cc9c6"
# What a panel's axis is called, and which rows it shows.
PANELS = (
    ("rotation", "Rotated about each axis by", "degrees"),
    ("scaling", "Scaled by", "voxels of the volume per voxel of the crop"),
    ("context", "Crop alone against whole volume", "voxels of context around the crop"),
)
FLOOR = 1e-4  # of the error panels; float16 rounds by 3e-4


def record_replay(bench: Workbench, folder: Path) -> dict[str, Any]:
    """Measures, and writes `replay.csv` and `replay.svg` into a folder.

    Returns:
        `skipped`: why nothing was measured, or None; then also `exact`, `volumes`, `said` (sentences), `csv`, `figure`.

    Raises:
        ResourceError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = compare_geometry(bench, folder)
        if not rows:
            return skipped("the validation volumes are smaller than the extractor's smallest input")
        table, figure = folder / "replay.csv", folder / "replay.svg"
        _write(table, rows)
        with matplotlib.rc_context({"svg.hashsalt": "dropgen"}):
            draw(rows).savefig(figure, metadata={"Date": None}, bbox_inches="tight")
    except OSError as error:
        raise ResourceError(
            f"cannot write {folder}: {error.strerror or error}; free disk space there or choose a writable folder with "
            "--root"
        ) from error
    assert bench.extractor is not None
    drawn = bench.study.orientation_augmentation, bench.experiment.training.augmentation.affine
    return {
        "skipped": None,
        "exact": exact(rows),
        "volumes": len({row.case for row in rows}),
        "said": sentences(rows, bench.extractor.name, *drawn),
        "csv": str(table),
        "figure": str(figure),
    }


def skipped(why: str) -> dict[str, Any]:
    """What `record_replay` returns where there was nothing to measure."""
    return {"skipped": why, "exact": None, "volumes": 0, "said": [], "csv": None, "figure": None}


def sentences(rows: Sequence[Row], extractor: str, orientation: bool, affine: bool) -> list[str]:
    """What the rows say: of flips and quarter turns first, then of affine maps, then of crops.

    Args:
        rows: All that were measured.
        extractor: What it is called.
        orientation: Whether training draws flips and quarter turns.
        affine: Whether it draws affine maps.
    """
    said = []
    turned = [row for row in rows if row.kind in ("flip", "quarter turn")]
    if turned and exact(rows):
        worst = max(row.max_error for row in turned)
        said.append(
            f"Flips and quarter turns of stored {extractor} features are exact: the largest error is {worst:.0e}."
        )
    elif turned:
        error, cka = (sum(getattr(row, name) for row in turned) / len(turned) for name in ("mean_error", "cka"))
        far = f"{error:.2f} standard deviations from those of the moved image on average, with CKA {cka:.3f}"
        said.append(inexact(extractor, far))
    for amount, kind, how in ((45.0, "rotation", "Rotated by 45°"), (0.8, "scaling", "Scaled by 0.8")):
        if any(row.kind == kind for row in rows):
            error, cka = (mean_over(rows, value, kind, amount) for value in (_mean_error, _cka))
            said.append(f"{how}, they keep CKA {cka:.3f} with those of the moved image; mean error {error:.2f}.")
    unused = [name for name, drawn in (("flips and turns", orientation), ("affine maps", affine)) if not drawn]
    if unused:
        said.append(f"The training of this experiment draws no {' and no '.join(unused)}.")
    widest = max((row.amount for row in rows if row.kind == "context"), default=None)
    if widest is not None:
        alone, seen = mean_over(rows, _mean_error, "crop"), mean_over(rows, _mean_error, "context", widest)
        said.append(
            f"Computed from a crop alone, as online training does, features are {alone:.2g} from the stored ones on "
            f"average; with {widest:g} voxels around it and the volume's statistics {seen:.1g}."
        )
    return said


def draw(rows: Sequence[Row]) -> Figure:
    """CKA above, errors below; a line for the mean over volumes and axes, a pale dot for each of them."""
    panels = [panel for panel in PANELS if any(row.kind == panel[0] for row in rows)]
    figure = Figure(figsize=(0.6 + 3.5 * len(panels), 5.4), layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row")
    for column, (kind, title, unit) in enumerate(panels):
        found = [row for row in rows if row.kind == kind]
        top, bottom = grid[0, column], grid[1, column]
        _line(top, found, _cka, "-", "mean")
        _line(bottom, found, _mean_error, "-", "mean", FLOOR)
        _line(bottom, found, _max_error, ":", "largest", FLOOR)
        bottom.set_yscale("log")
        for axis in (top, bottom):
            style_axis(axis)
            axis.tick_params(which="minor", length=0)
        top.set_title(title, fontsize=10.5, color=INK, loc="left", pad=8)
        bottom.set_xlabel(unit, fontsize=9, color=MUTED)
        bottom.set_xticks(sorted({row.amount for row in found}))
    grid[0, 0].set_ylabel("CKA", fontsize=9, color=MUTED)
    grid[1, 0].set_ylabel(f"error in SD of a channel, from {FLOOR:g}", fontsize=9, color=MUTED)
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _line(axis: Axes, rows: Sequence[Row], value: Value, style: str, name: str, floor: float = 0.0) -> None:
    amounts = sorted({row.amount for row in rows})
    means = [max(mean_over(rows, value, rows[0].kind, amount), floor) for amount in amounts]
    axis.scatter([row.amount for row in rows], [max(value(row), floor) for row in rows], s=12, color=PALE, zorder=2)
    axis.plot(amounts, means, style, color=COLOUR, lw=1.6, zorder=3, label=name)


def _write(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        for row in rows:
            values = asdict(row).items()
            table.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values})


def _cka(row: Row) -> float:
    return row.cka


def _mean_error(row: Row) -> float:
    return row.mean_error


def _max_error(row: Row) -> float:
    return row.max_error
