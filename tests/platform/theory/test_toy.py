"""The toy is what its formulas say: risks against sampling and integration, Bayes predictors against all others."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from dropgen.errors import ConfigError
from dropgen.platform.theory.toy import FLIPPED, NOISE, TRAINING, Toy, Weights

environments = st.floats(-1, 1)
weights = st.builds(Weights, st.floats(-4, 4), st.floats(-4, 4))
toys = st.builds(lambda s, ratio: Toy(s, s * ratio), st.floats(0.3, 1.5), st.floats(1.1, 2.5))


def losses(toy: Toy, predictor: Weights, environment: float, count: int = 200_000) -> np.ndarray:
    drawn = toy.sample(np.random.default_rng(0), (count,), environment)
    logit = predictor.image * drawn.image + predictor.stable * drawn.stable
    loss: np.ndarray = np.logaddexp(0, -(2 * drawn.label - 1) * logit)
    return loss


@pytest.mark.parametrize("environment", [TRAINING, 0.4, NOISE, FLIPPED])
@pytest.mark.parametrize("predictor", [Weights(3, 0), Weights(1, 1.5), Weights(-0.5, 2), Weights(0, 0)])
def test_the_exact_risk_and_error_are_those_of_many_draws(environment: float, predictor: Weights) -> None:
    toy = Toy()
    loss = losses(toy, predictor, environment)
    standard_error = loss.std() / math.sqrt(len(loss))
    assert abs(loss.mean() - toy.risk(predictor, environment)) <= 4 * standard_error + 1e-12
    if predictor != Weights(0, 0):
        share = (loss > math.log(2)).mean()
        assert abs(share - toy.error(predictor, environment)) < 4 * math.sqrt(0.25 / len(loss))


@given(toys, environments, weights)
def test_the_quadrature_agrees_with_adaptive_integration(toy: Toy, environment: float, predictor: Weights) -> None:
    mean = predictor.image * environment * toy.image_mean + predictor.stable * toy.stable_mean
    covariance = np.array([[1, environment * toy.stable_mean / toy.image_mean]] * 2)
    covariance[1] = covariance[1, ::-1]
    spread = math.sqrt(max(0.0, predictor @ covariance @ np.array(predictor)))
    integral, _ = quad(lambda z: norm.pdf(z) * np.logaddexp(0, -(mean + spread * z)), -10, 10, limit=200)
    assert toy.risk(predictor, environment) == pytest.approx(integral, abs=1e-4)


@given(toys, environments, weights)
def test_no_linear_predictor_beats_the_best_joint_one_of_its_environment(
    toy: Toy, environment: float, predictor: Weights
) -> None:
    assert toy.risk(toy.best_joint(environment), environment) <= toy.risk(predictor, environment) + 1e-9


@given(toys)
def test_in_training_the_image_makes_the_stable_feature_redundant(toy: Toy) -> None:
    assert toy.best_joint(TRAINING) == pytest.approx(toy.best_image)


@given(toys, environments, st.floats(-4, 4))
def test_the_stable_feature_means_the_same_in_every_environment(toy: Toy, environment: float, stable: float) -> None:
    assert toy.risk(Weights(0, stable), environment) == toy.risk(Weights(0, stable), TRAINING)


def test_a_flip_negates_the_image_and_nothing_else() -> None:
    toy = Toy()
    there, back = (toy.sample(np.random.default_rng(3), (50,), environment) for environment in (TRAINING, FLIPPED))
    assert np.array_equal(there.image, -back.image)
    assert np.array_equal(there.stable, back.stable)
    assert np.array_equal(there.label, back.label)


@pytest.mark.parametrize("means", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (math.nan, 1.0)])
def test_means_that_break_the_assumptions_are_refused_with_their_values(means: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=f"stable_mean = {means[0]} and image_mean = {means[1]}"):
        Toy(*means)
