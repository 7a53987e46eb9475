"""The analyses that an experiment asks for: each one's figure, CSV and sentences in `<root>/<name>/analyses/`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

from dropgen.console import progress
from dropgen.errors import NothingToAnalyseError, ResourceError
from dropgen.platform.evaluation.analyses import (
    dependence,
    extractors,
    features,
    flatness,
    gradients,
    robustness,
    runtime,
    slices,
)
from dropgen.platform.evaluation.analyses.analysis import Analysed, Scene
from dropgen.platform.evaluation.replay_record import FOLDER
from dropgen.platform.training.contender import STEPS


@dataclass(frozen=True)
class Entry:
    """One analysis as an experiment names it.

    Attributes:
        title: Above its figure.
        about: What is measured, in a sentence.
        picture: Whether the figure shows voxels, which are kept as PNG; curves are SVG.
    """

    title: str
    about: str
    analyse: Callable[[Scene], Analysed]
    picture: bool = False


ANALYSES: Mapping[str, Entry] = {
    "condition1": Entry(
        "Condition 1 during training",
        "Whether the joint risk pulls the first layer's feature weights where the risk on features alone does, on a "
        "fixed batch of validation crops, nothing dropped.",
        gradients.analyse,
    ),
    "dependence": Entry(
        "What the network depends on",
        "Validation Dice with the image or all features zeroed after the instance norm, the other left as it is.",
        dependence.analyse,
    ),
    "robustness": Entry(
        "Robustness to gamma and bias",
        "Dice on held-out cases whose intensities are changed more and more, of every method's chosen model.",
        robustness.analyse,
    ),
    "flatness": Entry(
        "Flatness",
        "Dice on held-out cases under normal noise on every weight of the network, of every method's chosen model.",
        flatness.analyse,
    ),
    "runtime": Entry(
        "Run time",
        f"Mean ± SD of {runtime.RUNS} runs of {STEPS} training steps, after as many to warm up.",
        runtime.analyse,
    ),
    "extractors": Entry(
        "Extractors and taps",
        "How alike features of an image and of the same image with other intensities are, by linear CKA.",
        extractors.analyse,
    ),
    "features": Entry(
        "What the features look like",
        "One slice per domain: image, three principal components as red, green and blue, and single channels.",
        features.analyse,
        picture=True,
    ),
    "slices": Entry(
        "One slice, every method",
        "Ground truth and the mask of every method's chosen model, best first.",
        slices.analyse,
        picture=True,
    ),
}


def wanted(names: Iterable[str]) -> list[str]:
    """The analyses that an experiment's `analyses` stand for, in the order of the report."""
    asked = set(names)
    return [name for name in ANALYSES if asked & {"all", name}]


def record_analysis(name: str, scene: Scene, folder: Path) -> dict[str, Any]:
    """Makes one analysis, and writes `<name>.csv` and `<name>.svg` or `.png` into a folder.

    Returns:
        `name`, `title`, `about`, `skipped` (why there is nothing, or None), `said` (sentences), `csv` and `figure`.

    Raises:
        ResourceError: The folder cannot be written.
    """
    entry = ANALYSES[name]
    document: dict[str, Any] = {"name": name, "title": entry.title, "about": entry.about}
    try:
        with progress("steps") as bars:
            bar = bars.add_task(name, total=None, note="")

            def track(items: Iterable[Any], total: int) -> Iterable[Any]:
                bars.update(bar, total=total)
                for item in items:
                    yield item
                    bars.advance(bar)

            found = entry.analyse(replace(scene, track=track))
    except NothingToAnalyseError as error:
        return document | {"skipped": str(error), "said": [], "csv": None, "figure": None}
    table, figure = folder / f"{name}.csv", folder / f"{name}.{'png' if entry.picture else 'svg'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(table, found.rows)
        with matplotlib.rc_context({"svg.hashsalt": "dropgen"}):
            metadata = {} if entry.picture else {"Date": None}
            found.figure.savefig(figure, metadata=metadata, bbox_inches="tight", dpi=150)
    except OSError as error:
        raise ResourceError(
            f"cannot write {folder}: {error.strerror or error}; free disk space there or choose a writable folder with "
            "--root"
        ) from error
    return document | {"skipped": None, "said": list(found.said), "csv": str(table), "figure": str(figure)}


def analyses_folder(experiment_folder: Path) -> Path:
    """Where figures and tables of an experiment's analyses lie."""
    return experiment_folder / FOLDER


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        for row in rows:
            table.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
