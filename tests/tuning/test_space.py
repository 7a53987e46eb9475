from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from dropgen.config import Component, Experiment
from dropgen.errors import ConfigError
from dropgen.tuning.space import Space, plan


def experiment(methods: list[dict[str, Any]], sampler: str = "grid", seeds: tuple[int, ...] = (42,)) -> Experiment:
    return Experiment.model_validate(
        {
            "name": "x",
            "study": Path("study.yaml"),
            "methods": methods,
            "seeds": seeds,
            "selection": {"rule": "target_validation"},
            "search": {"sampler": sampler},
        }
    )


def test_a_grid_is_every_listed_value_with_every_seed() -> None:
    planned = plan(experiment([{"name": "erm"}, {"name": "dropgen", "p": [0, 0.5]}], seeds=(1, 2)))
    assert [trial.label for trial in planned.fixed] == [
        "erm seed=1", "erm seed=2", "dropgen p=0 seed=1", "dropgen p=0 seed=2", "dropgen p=0.5 seed=1",
        "dropgen p=0.5 seed=2",
    ]  # fmt: skip
    assert planned.spaces == ()


def test_tpe_samples_ranges_and_lists_and_trains_the_rest_as_it_stands() -> None:
    methods = [{"name": "erm"}, {"name": "dropgen", "p": {"low": 0.1, "high": 0.9, "log": True}, "min_keep": [0, 1]}]
    planned = plan(experiment(methods, "tpe", seeds=(1, 2)))
    assert [trial.label for trial in planned.fixed] == ["erm seed=1", "erm seed=2"]
    (space,) = planned.spaces
    assert space.distributions == {
        "p": FloatDistribution(0.1, 0.9, log=True),
        "min_keep": CategoricalDistribution((0, 1)),
    }


def test_options_of_both_methods_of_a_composition_are_varied() -> None:
    grid = plan(experiment([{"name": "dropgen+mixup", "p": [0, 0.5], "mixup.p": [0.25, 0.75]}])).fixed
    assert [trial.method.label for trial in grid] == [
        f"dropgen+mixup p={p} mixup.p={inner}" for p in (0, 0.5) for inner in (0.25, 0.75)
    ]
    ranged = experiment([{"name": "dropgen+mixup", "p": 0.5, "mixup.p": {"low": 0.1, "high": 0.9}}], "tpe")
    (space,) = plan(ranged).spaces
    assert space.point(space.trial({"mixup.p": 0.3}, seed=1).method) == {"mixup.p": 0.3}


@pytest.mark.parametrize(
    ("methods", "sampler", "words"),
    [
        ([{"name": "dropgen", "p": [0, 1.5]}], "grid", "p = 1.5"),
        ([{"name": "dropgen", "p": {"low": 0, "high": 1}}], "tpe", "p = 1.0"),
        ([{"name": "dropgen", "p": {"low": -0.5, "high": 0.5}}], "tpe", "p = -0.5"),
        ([{"name": "dropgen", "p": {"low": 0, "high": 0.9}}], "grid", "--search.sampler=tpe"),
        ([{"name": "dropgen", "p": {"low": 0.9, "high": 0.1}}], "tpe", "low must be below high"),
        ([{"name": "dropgen", "p": {"low": 0, "high": 0.9, "log": True}}], "tpe", "low above 0"),
        ([{"name": "dropgen", "p": {"low": 0, "hihg": 0.9}}], "tpe", "did you mean 'high'"),
        ([{"name": "dropgen", "p": {"low": 0}}], "tpe", "{low: 0.1, high: 0.9}"),
        ([{"name": "dropgen", "p": {"low": "a", "high": "b"}}], "tpe", "{low: 0.1, high: 0.9}"),
        ([{"name": "dropgen", "p": []}], "tpe", "name at least one"),
        ([{"name": "dropgen", "q": [1]}], "grid", "'q'"),
        ([{"name": "dropgen+mixup", "mixup.p": [0.5, 1.5]}], "grid", "mixup: p = 1.5"),
        ([{"name": "dropgen+mixup", "mixup.p": {"low": 0, "high": 2}}], "tpe", "mixup: p = 2.0"),
        ([{"name": "dropgne"}], "tpe", "did you mean 'dropgen'"),
    ],
)
def test_a_value_that_no_trial_could_use_is_refused_before_anything_starts(
    methods: list[dict[str, Any]], sampler: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(experiment(methods, sampler))
    assert words in str(caught.value)


@given(st.floats(0.0, 0.94), st.floats(0.01, 0.05), st.floats(0.0, 1.0), st.integers(0, 9))
def test_a_sampled_point_is_found_again_from_its_trial(low: float, width: float, at: float, seed: int) -> None:
    space = Space(Component.of("dropgen", min_keep=1), {"p": FloatDistribution(low, low + width)})
    trial = space.trial({"p": low + at * width}, seed)
    point = space.point(trial.method)
    assert point is not None
    assert low <= point["p"] <= low + width
    assert abs(point["p"] - (low + at * width)) <= 1e-4
    assert space.trial(point, seed) == trial


def test_a_trial_outside_the_space_is_no_point_of_it() -> None:
    space = Space(Component.of("dropgen", min_keep=1), {"p": FloatDistribution(0.1, 0.5)})
    assert space.point(Component.of("dropgen", min_keep=1, p=0.3)) == {"p": 0.3}
    assert space.point(Component.of("dropgen", min_keep=1, p=0.6)) is None
    assert space.point(Component.of("dropgen", min_keep=0, p=0.3)) is None
    assert space.point(Component.of("dropgen", p=0.3)) is None
    assert space.point(Component.of("erm")) is None


def test_a_space_of_lists_knows_how_many_points_it_has() -> None:
    lists = Space(
        Component.of("dropgen"), {"p": CategoricalDistribution((0, 0.5)), "q": CategoricalDistribution((1, 2, 3))}
    )
    assert lists.size == 6
    assert Space(Component.of("dropgen"), {"p": FloatDistribution(0, 0.5)}).size == float("inf")


def test_a_space_of_lists_has_as_many_points_as_its_size_and_holds_each() -> None:
    methods = [{"name": "dropgen", "p": [0.1, 0.5, 0.9], "min_keep": [0, 1]}]
    (space,) = plan(experiment(methods, "tpe")).spaces
    points = list(space.points())
    assert len(points) == len({tuple(point.items()) for point in points}) == space.size == 6
    assert all(space.point(space.trial(point, seed=1).method) == point for point in points)
