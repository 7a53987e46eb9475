from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.studies.prepare import Prepared
from dropgen.platform.adaptation import Target, build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.adaptation.alpha import Alpha
from dropgen.platform.adaptation.sfb import Sfb
from dropgen.platform.adaptation.tent import Tent
from dropgen.platform.adaptation.tuning import Labelled, tune
from dropgen.platform.evaluation.metrics import dice
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter


@dataclass(frozen=True)
class Person:
    subject: str
    domain: str = "new"


def passes(target: Target, label: np.ndarray) -> Iterator[Labelled]:
    yield Labelled(Person("anna"), target, label)


@pytest.mark.parametrize("truth", [0.0, 0.4, 1.0])
def test_the_weight_that_made_the_labels_is_found(
    erm: Segmenter, rep_only: Segmenter, prepared: Prepared, truth: float
) -> None:
    target = Target(erm, rep_only, prepared)
    label = Alpha(alpha=truth).scores(target, np.random.default_rng(0)).argmax(dim=0).numpy()
    assert tune(Component.of("alpha"), lambda: passes(target, label)) == (Alpha(alpha=truth), 1.0)


def test_among_equal_weights_the_larger_is_taken(erm: Segmenter, prepared: Prepared) -> None:
    target = Target(erm, erm, prepared)
    label = erm.predict_prepared(prepared)
    assert tune(Component.of("alpha"), lambda: passes(target, label))[0] == Alpha(alpha=1.0)


def test_what_is_given_is_not_searched(erm: Segmenter, prepared: Prepared) -> None:
    target = Target(erm, None, prepared)
    label = Tent(0.01, 5, bn_stats="batch").scores(target, np.random.default_rng(123)).argmax(dim=0).numpy()
    chosen, value = tune(Component.of("tent", steps=5, bn_stats="batch"), lambda: passes(target, label))
    assert (chosen, value) == (Tent(0.01, 5, bn_stats="batch"), 1.0)
    assert tune(Component.of("tent", learning_rate=0.5, steps=5), lambda: passes(target, label))[0] in (
        Tent(0.5, 5, bn_stats="batch"), Tent(0.5, 5, bn_stats="source"),
    )  # fmt: skip


def test_the_dice_told_is_that_of_the_method_chosen(erm: Segmenter, rep_only: Segmenter, prepared: Prepared) -> None:
    label = make_segmenter(Component.of("erm"), seed=9).predict_prepared(prepared)
    component = Component.of("sfb", steps=1, rounds=1)
    chosen, value = tune(component, lambda: passes(Target(erm, rep_only, prepared), label))
    assert isinstance(chosen, Sfb)
    assert chosen.temperature is not None
    mask = AdaptedSegmenter(chosen, erm, rep_only).predict_prepared(prepared)
    assert value == pytest.approx(float(np.nanmean(dice(mask, label, 3))))


def test_models_that_are_not_meant_are_refused_in_a_sentence(erm: Segmenter, rep_only: Segmenter) -> None:
    tent, sfb = build(Component.of("tent")), build(Component.of("sfb"))
    for wrong, sentence in (
        ((tent, rep_only), "tent is not meant for a model of method 'rep_only'"),
        ((tent, erm, rep_only), "tent takes one model alone; leave out the stable one"),
        ((sfb, erm), "sfb needs a second, stable model of method rep_only"),
        ((sfb, erm, erm), "sfb needs a stable model of method rep_only, not of 'erm'"),
        ((sfb, erm, make_segmenter(Component.of("rep_only"), spacing=(2.0, 1.0, 1.0))), "differ in spacing"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            AdaptedSegmenter(*wrong)  # type: ignore[arg-type]


def test_unknown_names_and_options_suggest_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tent'"):
        build(Component.of("tnet"))
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        build(Component.of("sfb", step=1))


def test_an_adapted_model_reads_as_many_features_as_its_wider_half(erm: Segmenter, rep_only: Segmenter) -> None:
    assert AdaptedSegmenter(build(Component.of("alpha")), erm, rep_only).feature_channels == 12
