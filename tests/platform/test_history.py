"""When a trial counts as converged."""

from __future__ import annotations

import pytest

from dropgen.platform.training.loop import History


@pytest.mark.parametrize(
    ("dice", "converged"),
    [
        ([0.3, 0.6, 0.8, 0.8, 0.805], True),
        ([0.3, 0.6, 0.8, 0.8, 0.7], True),
        ([0.3, 0.6, 0.7, 0.75, 0.8], False),
        ([0.0, 0.0, 0.0, 0.0, 0.0], False),
        ([0.0, 0.0, 0.0, 0.005, 0.009], False),
    ],
)
def test_converged_is_a_curve_that_has_risen_and_rises_no_more(dice: list[float], converged: bool) -> None:
    history = History(validation=[(20 * (index + 1), value) for index, value in enumerate(dice)])
    assert history.converged(100) is converged


def test_a_trial_that_was_validated_at_its_end_alone_is_not_called_converged() -> None:
    assert not History(validation=[(100, 0.9)]).converged(100)
