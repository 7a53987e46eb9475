"""Everything that is measured of one case beside the Dice that selects: surfaces, volumes, vessels, empty classes.

What does not apply is NaN and left out of every mean: a class that the truth lacks has no Dice, a mask without a voxel
no surface, a grid whose spacing nobody measured no mm. So that NaN hides nothing, three measures count instead: how
often a class is missed, and how often and with how many voxels one is found that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dropgen.config import Evaluation
from dropgen.features.studies.geometry import spacing_of
from dropgen.features.studies.study import Case, Study
from dropgen.platform.evaluation.centreline import centreline_dice
from dropgen.platform.evaluation.metrics import class_dice, domain_dice, labelled_dice
from dropgen.platform.evaluation.surface import SurfaceDistances

VERSION = 1  # of what the names below mean; evaluations of another one are made anew
MEASURES = (
    "dice", "cldice", "nsd", "hd95_mm", "volume_error_ml", "volume_error_relative", "missed", "false_positive",
    "false_positive_voxels",
)  # fmt: skip
IN_MM = ("nsd", "hd95_mm", "volume_error_ml")
SIGNED = ("volume_error_ml", "volume_error_relative")

# Measure to its value of every foreground class, `[classes - 1]` float64.
Measured = Mapping[str, np.ndarray]


def measure(
    prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray, case: Case, study: Study, tolerance: float
) -> dict[str, np.ndarray]:
    """Scores one case.

    Args:
        prediction: Label map `[X, Y, Z]`.
        truth: Label map on the same grid.
        affine: Of that grid, `[4, 4]`, mm.
        case: Says which domain, and with it whether the affine's mm are real.
        study: Names the classes and those of them that are tubes.
        tolerance: Of NSD, mm.

    Returns:
        By name of `MEASURES`, `[classes - 1]` float64. Shares are in 0..1, HD95 in mm, volume errors (prediction minus
        truth) in ml and as a share of the truth; `missed` and `false_positive` are 0 or 1.
    """
    found: dict[str, np.ndarray] = {name: np.full(len(study.classes) - 1, np.nan) for name in MEASURES}
    labelling = study.labelling
    found["dice"] = labelled_dice(prediction, truth, labelling)
    prediction, truth = labelling.counted(prediction, truth)
    spacing = tuple(float(edge) for edge in spacing_of(affine))
    in_mm = case.domain not in study.placeholder_spacing
    for place, name in enumerate(study.classes[1:]):
        ours, theirs = labelling.inside(prediction, place + 1), labelling.inside(truth, place + 1)
        predicted, true = np.count_nonzero(ours), np.count_nonzero(theirs)
        if not true:
            found["false_positive"][place] = predicted > 0
            found["false_positive_voxels"][place] = predicted
            continue
        found["missed"][place] = predicted == 0
        found["volume_error_relative"][place] = (predicted - true) / true
        if name in study.tubular:
            found["cldice"][place] = centreline_dice(ours, theirs)
        if in_mm:
            found["volume_error_ml"][place] = (predicted - true) * np.prod(spacing) / 1000
            distances = SurfaceDistances.between(ours, theirs, spacing)
            found["nsd"][place] = 0.0 if distances is None else distances.nsd(tolerance)
            found["hd95_mm"][place] = np.nan if distances is None else distances.hd95
    return found


def how(study: Study, evaluation: Evaluation) -> dict[str, Any]:
    """What the measures depend on beside masks and grids; a part of every evaluation's key."""
    return {
        "version": VERSION,
        "nsd_tolerance_mm": evaluation.nsd_tolerance,
        "placeholder_spacing": list(study.placeholder_spacing),
        "tubular": list(study.tubular),
        **({} if study.labelling.plain else {"labels": study.labelling.to_yaml()}),
    }


def summarise_measures(scores: Sequence[tuple[Case, Measured]], study: Study) -> dict[str, Any]:
    """Spreads over subjects of every measure, a subject's cases averaged first; of volume errors the amount counts.

    Returns:
        `domains` (domain to measure to `metrics.Spread`) and `classes` (domain to class to measure to spread).
    """
    domains: dict[str, dict[str, Any]] = {}
    classes: dict[str, dict[str, dict[str, Any]]] = {}
    for name in MEASURES:
        values = [(case, np.abs(found[name]) if name in SIGNED else found[name]) for case, found in scores]
        for domain, spread in domain_dice(values).items():
            domains.setdefault(domain, {})[name] = asdict(spread)
        for domain, spreads in class_dice(values, study.classes).items():
            for label, spread in spreads.items():
                classes.setdefault(domain, {}).setdefault(label, {})[name] = asdict(spread)
    return {"domains": domains, "classes": classes}
