"""What every analysis is given and what it gives back: rows for a CSV, a figure and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from dropgen.config import Component, Trial
from dropgen.errors import NothingToAnalyseError
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.study import Case
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.evaluate import held_out_cases
from dropgen.platform.evaluation.inference import Features, native_mask
from dropgen.platform.evaluation.metrics import domain_dice, labelled_dice, pooled_mean
from dropgen.platform.evaluation.results import Group, Row, chosen_of_each, finite_mean
from dropgen.platform.evaluation.touches import Touch
from dropgen.platform.methods import Method
from dropgen.platform.methods import build as build_method
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.bench import BUNDLE, Workbench
from dropgen.platform.training.trial import choose_device

T = TypeVar("T")
Scores = Sequence[tuple[Case, np.ndarray]]  # cases with the Dice of every foreground class
Track = Callable[[Iterable[T], int], Iterable[T]]  # passes items on, knowing how many there are


@dataclass(frozen=True)
class Analysed:
    """What an analysis found.

    Attributes:
        rows: One mapping per line of the CSV, all with the same keys.
        figure: What a reader looks at.
        said: What the rows say, in sentences.
    """

    rows: Sequence[Mapping[str, Any]]
    figure: Figure
    said: Sequence[str]


@dataclass(frozen=True)
class Model:
    """A trained network: of one line of the table the seed with the best validation Dice."""

    name: str
    row: Row

    @property
    def trial(self) -> Trial:
        """The trial that trained it."""
        return Trial(method=Component.of(self.row["method"], **self.row["options"]), seed=self.row["seed"])

    @property
    def method(self) -> Method:
        """Its method, with its hyperparameters."""
        return build_method(self.trial.method)


def _untracked(items: Iterable[Any], total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True)
class Scene:
    """An experiment that was trained and tested, as analyses see it.

    Attributes:
        bench: The opened experiment.
        groups: The lines of its table.
        track: Shows how far an analysis is.
    """

    bench: Workbench
    groups: Sequence[Group]
    track: Track[Any] = field(default=_untracked)

    @property
    def models(self) -> list[Model]:
        """One of every line that has a bundle: what another program or a test-time method predicts has none."""
        plain = [group for group in self.groups if group.rows[0]["adaptation"] is None]
        return [
            Model(group.name, group.lead) for group in plain if (Path(group.lead["folder"]) / BUNDLE).is_dir()
        ]  # fmt: skip

    @property
    def chosen_models(self) -> list[Model]:
        """Of every method the one that validation chose."""
        names = {group.name for group in chosen_of_each(self.groups)}
        return [model for model in self.models if model.name in names]

    @property
    def device(self) -> str:
        """Where the experiment computes."""
        return choose_device(self.bench.experiment.training.device)

    def load(self, model: Model) -> Segmenter:
        """The network as its rule chose it."""
        return Segmenter.load(Path(model.row["folder"]) / BUNDLE, self.device)

    @property
    def test_cases(self) -> list[Case]:
        """The held-out cases that have labels.

        Raises:
            NothingToAnalyseError: There is none.
        """
        cases = held_out_cases(self.bench.study, self.bench.experiment.selection.rule)
        labelled = [case for case in cases if case.label is not None]
        if not labelled:
            raise NothingToAnalyseError("no held-out case has a label")
        return labelled

    def touch(self, model: Model, cases: Sequence[Case]) -> None:
        """Logs that a model is about to predict held-out cases, changed or not.

        Raises:
            ResourceError: The log cannot be written.
        """
        index = self.bench.under(model.trial).index
        touch = Touch.of("analyse", model.row["trial"], model.trial, None, "chosen", cases, index)
        touch.log(self.bench.root / self.bench.experiment.name)

    def read(self, cases: Sequence[Case], segmenter: Segmenter) -> Iterator[tuple[Case, Prepared, np.ndarray]]:
        """Every case from its files: prepared as the segmenter prepares it, and the truth on its own grid."""
        for case in cases:
            assert case.label is not None
            prepared = prepare(tuple(map(read_volume, case.images)), segmenter.spec.preparation, case.modality)
            yield case, prepared, read_mask(case.label).array

    def score(
        self, segmenter: Segmenter, prepared: Prepared, truth: np.ndarray, features: Features | None = None
    ) -> np.ndarray:
        """Dice of every foreground class on the image's own grid, as an evaluation has it."""
        labelling = self.bench.study.labelling
        mask = segmenter.over_slabs(
            prepared, features, lambda slabs: native_mask(slabs, prepared.grid, labelling.order)
        )
        return labelled_dice(mask, truth, labelling)

    def unseen(self, scores: Scores) -> float:
        """Mean over the unseen domains, each the mean over its subjects, 0..1; NaN where none is scored."""
        spreads = domain_dice(scores)
        seen = self.bench.study.train_domains
        return finite_mean(
            spread.mean for name, spread in spreads.items() if name not in seen and spread.mean is not None
        )

    def source(self, scores: Scores) -> float | None:
        """Mean over the subjects of the training domains, 0..1."""
        seen = self.bench.study.train_domains
        return pooled_mean({name: spread for name, spread in domain_dice(scores).items() if name in seen})
