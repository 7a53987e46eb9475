"""What is said of stored features whose extractor has no exact symmetry."""

from __future__ import annotations

from collections.abc import Iterable

from dropgen.config import Trial
from dropgen.console import warn
from dropgen.features.symmetry import SYMMETRIES
from dropgen.platform.methods import build as build_method
from dropgen.platform.training.bench import Workbench


def inexact(extractor: str, how: str) -> str:
    """The sentence, with `how` its stored features stand to those of the moved image."""
    return (
        f"{extractor} has no exact symmetry: after a flip or a quarter turn stored features are {how}; features.source "
        "= online computes them from the moved image instead."
    )


def warn_of_inexact(bench: Workbench, trials: Iterable[Trial]) -> None:
    """Says it before training, where a trial will flip or turn such features; `dropgen run` also measures them."""
    extractor = bench.extractor
    if extractor is None or not bench.study.orientation_augmentation:
        return
    stored = any(bench.source(build_method(trial.method)) == "stored" for trial in trials)
    if stored and extractor.channel_permutation(SYMMETRIES[1]) is None:
        warn(inexact(extractor.name, "not quite those of the moved image"))
