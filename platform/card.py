"""A model card: what a model was made of, how it did on which domains, and what it must not be used for.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019, in so far as the run's own records can fill it.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dropgen.manifest import read_json
from dropgen.platform.bundle import read_record

RESEARCH_ONLY = "research use only"
RESAMPLES = 2000
LIMITS = (
    "Research use only: not a medical device, not for diagnosis or treatment.",
    "Scores hold for the domains listed here; another scanner, sequence, site or population can score lower.",
    "Every voxel gets one of the classes, also where the scan shows something that no class stands for.",
)


def model_card(bundle: Path, name: str) -> dict[str, Any]:
    """Describes a bundle from its record and, where they lie beside it, its trial's results.

    Args:
        bundle: Segmenter folder; `result.json` and `evaluation/` of its trial are looked for beside it.
        name: Registered model name.

    Returns:
        Plain values; `scores` has one row per domain and split: mean foreground Dice over subjects, with a 95%
        percentile-bootstrap interval over them, None for fewer than two subjects.

    Raises:
        CheckpointError: The folder is no bundle.
    """
    record = read_record(bundle)
    spec, result = record["spec"], read_json(bundle.parent / "result.json") or {}
    scores = _scores(bundle.parent / "evaluation" / "cases.csv")
    unscored = () if scores else ("It was not evaluated before it was registered: there are no scores.",)
    return {
        "name": name,
        "use": RESEARCH_ONLY,
        "data": {"study": spec["study"], "classes": spec["classes"], "spacing_mm": spec["spacing"],
                 "intensity": spec["intensity"], "channels": spec.get("channels", [])},
        "training": {"method": spec["method"], "network": spec["network"], "extractor": spec["extractor"],
                     "validation_dice": result.get("val_dice"), "commit": result.get("commit")},
        "weights_sha256": record["weights_sha256"],
        "domains": sorted({row["domain"] for row in scores}),
        "scores": scores,
        "limits": [*LIMITS, *unscored],
    }  # fmt: skip


def _scores(table: Path) -> list[dict[str, Any]]:
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return []
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["dice"] not in ("", "nan"):
            groups[row["domain"], row["split"]][row["subject"]].append(float(row["dice"]))
    return [
        {"domain": domain, "split": split, "subjects": len(subjects), **_interval(subjects)}
        for (domain, split), subjects in sorted(groups.items())
    ]


def _interval(subjects: dict[str, list[float]]) -> dict[str, Any]:
    means = np.array([np.mean(values) for values in subjects.values()])
    interval = None
    if len(means) > 1:
        generator = np.random.default_rng(0)  # the same results give the same card
        drawn = generator.choice(means, (RESAMPLES, len(means))).mean(axis=1)
        interval = [round(float(bound), 4) for bound in np.percentile(drawn, [2.5, 97.5])]
    return {"dice": round(float(means.mean()), 4), "interval_95": interval}
