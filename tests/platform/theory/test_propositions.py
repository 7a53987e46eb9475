"""Propositions 1 and 2 on the toy, and what they do not say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from dropgen.platform.evaluation.analyses.condition1 import gradient_agreement
from dropgen.platform.methods import Method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.structured_dropout import StructuredDropout
from dropgen.platform.theory.fit import Fit, cross_entropy, fit, linear, training_batch
from dropgen.platform.theory.toy import FLIPPED, TRAINING, Toy, Weights, group_masks
from dropgen.platform.training.losses import dice_ce

TOY = Toy()
H_Y, H_Y_GIVEN_S = math.log(2), TOY.risk(TOY.best_stable, TRAINING)
CHANNELS, CROPS = 12, 300
MASKED = (StructuredDropout(p=0.25, rescale=False), StructuredDropout(p=0.75), DropGen(p=0.25), DropGen(p=0.75))

environments = st.floats(-1, 1)


def fitted(method: Method, channels: int = CHANNELS, seed: int = 0) -> Fit:
    return fit(method, training_batch(TOY, method, channels, CROPS, np.random.default_rng(seed)))


def layer_with(image: float, stable: float) -> torch.nn.Conv3d:
    layer = linear(1)
    with torch.no_grad():
        layer.weight[1] = torch.tensor([image, stable]).reshape(2, 1, 1, 1)
    return layer


def slope_of_stable(predictor: Weights, risk: str = "masked", p: float = 0.5, step: float = 1e-5) -> float:
    """Central difference of a risk of training along the weight on S."""
    measure = {"masked": lambda w: TOY.masked_risk(w, p), "joint": lambda w: TOY.risk(w, TRAINING)}[risk]
    up, down = (predictor._replace(stable=predictor.stable + sign * step) for sign in (1, -1))
    return (measure(up) - measure(down)) / (2 * step)


# The shortcut


def test_plain_training_puts_its_weight_on_the_image_and_fails_when_it_flips() -> None:
    plain = fitted(DropGen(p=0.0)).weights
    assert abs(plain.stable) < 0.1 * plain.image
    assert TOY.error(plain, TRAINING) < 0.1
    assert TOY.error(plain, FLIPPED) > 0.9
    assert TOY.risk(plain, FLIPPED) > H_Y


# Proposition 1


@pytest.mark.parametrize("method", MASKED, ids=repr)
def test_prop_1_masked_training_ends_with_weight_on_the_stable_feature(method: Method) -> None:
    end = fitted(method)
    assert end.gradient < 1e-6
    assert end.weights.stable > 0.5
    assert TOY.risk(group_masks(end.weights)[2], TRAINING) < H_Y


@given(st.floats(0.01, 0.99))
def test_prop_1_only_the_stable_only_term_moves_a_solution_that_ignores_the_stable_feature(p: float) -> None:
    ignoring = TOY.best_joint(TRAINING)
    assert ignoring.stable == pytest.approx(0, abs=1e-12)
    assert slope_of_stable(ignoring, "joint") == pytest.approx(0, abs=1e-6)
    assert slope_of_stable(ignoring, "masked", p) == pytest.approx(-p / 2 * TOY.stable_mean / 2, rel=1e-3)


@given(st.floats(0, 2 * TOY.image_mean - 0.01))
def test_condition_1_holds_where_the_stable_feature_is_ignored_and_the_image_is_not_trusted_too_much(
    image: float,
) -> None:
    assert slope_of_stable(Weights(image, 0.0), "joint") < 0


def test_condition_1_is_an_assumption_an_overconfident_image_breaks_it() -> None:
    assert slope_of_stable(Weights(2 * TOY.image_mean + 1, 0.0), "joint") > 0


def test_prop_1_excludes_spurious_stationary_points_and_they_exist() -> None:
    method = StructuredDropout(p=0.5)
    network = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 1), torch.nn.Tanh(), torch.nn.Conv3d(4, 2, 1)).double()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    batch = training_batch(TOY, method, 1, 20, np.random.default_rng(0))
    labels = batch.label_bcxyz.clone()
    labels.flatten()[::2] = 0
    labels.flatten()[1::2] = 1  # balanced, so that the last bias rests too
    batch = Batch(batch.image_bcxyz, labels, batch.features_bcxyz, batch.kept_bc)
    method.loss(network, batch, cross_entropy).backward()
    assert all(
        float(parameter.grad.abs().max()) < 1e-12 for parameter in network.parameters() if parameter.grad is not None
    )


def test_the_masked_risk_is_the_convex_combination_of_three_risks() -> None:
    p, layer = 0.5, layer_with(2.0, 0.7)
    method, plain = StructuredDropout(p=p, rescale=False), DropGen(p=0.0)
    crops = training_batch(TOY, plain, 1, 8, np.random.default_rng(0))
    image, features = crops.image_bcxyz, crops.features_bcxyz
    assert features is not None
    groups = {(True, True): 1 - p, (True, False): p / 2, (False, True): p / 2}

    def with_masks(kept: list[tuple[bool, bool]]) -> Batch:
        """Every crop once under every mask."""
        copies = len(kept)
        return Batch(
            image.repeat(copies, 1, 1, 1, 1),
            crops.label_bcxyz.repeat(copies, 1, 1, 1, 1),
            features.repeat(copies, 1, 1, 1, 1),
            torch.tensor(kept).repeat_interleave(8, dim=0),
        )

    draws = [mask for mask, chance in groups.items() for _ in range(round(4 * chance))]
    masked = method.loss(layer, with_masks(draws), cross_entropy)
    three = [
        plain.loss(
            layer,
            Batch(image * keeps_image, crops.label_bcxyz, features * keeps_features, crops.kept_bc),
            cross_entropy,
        )
        for keeps_image, keeps_features in groups
    ]
    combined = sum(chance * risk for chance, risk in zip(groups.values(), three, strict=True))
    assert masked.item() == pytest.approx(float(combined), abs=1e-12)


def test_planned_masks_estimate_the_exact_masked_risk() -> None:
    predictor, p = Weights(2.0, 0.7), 0.5
    method = StructuredDropout(p=p, rescale=False)
    batch = training_batch(TOY, method, 1, 3000, np.random.default_rng(1))
    with torch.no_grad():
        sampled = float(method.loss(layer_with(*predictor), batch, cross_entropy))
    assert sampled == pytest.approx(TOY.masked_risk(predictor, p), abs=0.02)


# Proposition 2


def test_prop_2_the_stable_risk_is_the_conditional_entropy() -> None:
    def binary_entropy_times_density(s: float) -> float:
        density = {y: norm.pdf(s, loc=y * TOY.stable_mean) / 2 for y in (-1, 1)}
        return -sum(value * math.log(value / sum(density.values())) for value in density.values())

    entropy, _ = quad(binary_entropy_times_density, -8, 8)
    assert pytest.approx(entropy, abs=1e-8) == H_Y_GIVEN_S


@given(environments)
def test_prop_2_the_stable_risk_is_equal_across_environments_and_above_the_joint_risk(environment: float) -> None:
    assert TOY.risk(TOY.best_stable, environment) == H_Y_GIVEN_S
    joint = TOY.risk(TOY.best_joint(environment), environment)
    assert joint < H_Y_GIVEN_S if abs(environment) > 0.01 else joint <= H_Y_GIVEN_S + 1e-9


# What they do not say


def test_the_best_joint_predictor_of_one_environment_loses_its_advantage_in_another() -> None:
    here = TOY.best_joint(TRAINING)
    assert TOY.risk(here, TRAINING) < H_Y_GIVEN_S < TOY.risk(here, FLIPPED)
    assert TOY.risk(TOY.best_joint(FLIPPED), FLIPPED) == pytest.approx(TOY.risk(here, TRAINING))


def test_a_stable_weight_is_no_promise_after_the_flip() -> None:
    masked = fitted(StructuredDropout(p=0.5, rescale=False)).weights
    assert masked.stable > 0.5
    assert TOY.risk(masked, FLIPPED) > H_Y > H_Y_GIVEN_S


def test_answering_each_mask_by_itself_lowers_the_masked_risk_and_leaves_the_shortcut() -> None:
    p = 0.5
    masked = fitted(StructuredDropout(p=p, rescale=False)).weights
    best = TOY.best_joint(TRAINING)
    apart = (1 - p) * TOY.risk(best, TRAINING) + p / 2 * TOY.risk(TOY.best_image, TRAINING) + p / 2 * H_Y_GIVEN_S
    assert apart < TOY.masked_risk(masked, p)
    assert TOY.risk(best, FLIPPED) > TOY.risk(masked, FLIPPED)


@pytest.mark.parametrize(("p", "channels"), [(0.75, 12), (0.75, 16), (0.5, 3)])
def test_channel_masks_are_rarely_group_masks_and_may_drop_everything(p: float, channels: int) -> None:
    method, generator = DropGen(p=p), np.random.default_rng(0)
    kept = np.stack([method.plan(generator, channels) for _ in range(20_000)])
    chances = {
        "image alone": (1 - p) * p**channels,
        "features alone, whole": p * (1 - p) ** channels,
        "nothing": p ** (1 + channels),
    }
    features = kept[:, 1:]
    found = {
        "image alone": (kept[:, 0] & ~features.any(axis=1)).mean(),
        "features alone, whole": (~kept[:, 0] & features.all(axis=1)).mean(),
        "nothing": (~kept.any(axis=1)).mean(),
    }
    for name, chance in chances.items():
        assert abs(found[name] - chance) < 4 * math.sqrt(chance / len(kept)) + 1e-9
    assert chances["image alone"] < p / 2


def test_channel_dropout_trusts_what_many_channels_say_and_group_masks_do_not() -> None:
    one, many = (fitted(DropGen(p=0.75), channels).weights for channels in (1, CHANNELS))
    group_one, group_many = (fitted(StructuredDropout(p=0.75), channels).weights for channels in (1, CHANNELS))
    assert group_many == pytest.approx(group_one, abs=0.1)
    assert many.image / many.stable < 0.7 * one.image / one.stable


def test_rescaled_group_masks_shrink_the_weights_by_what_they_multiply() -> None:
    p = 0.5
    plain, rescaled = (fitted(StructuredDropout(p=p, rescale=rescale)) for rescale in (False, True))
    assert rescaled.loss == pytest.approx(plain.loss, abs=1e-6)
    assert rescaled.weights == pytest.approx([(1 - p / 2) * weight for weight in plain.weights], abs=1e-3)


def test_dice_ce_is_not_a_proper_scoring_rule() -> None:
    chances = np.linspace(0.01, 0.99, 99)
    label = (torch.arange(1000) < 300).long().reshape(1, 1, 10, 10, 10)

    def best_answer(criterion: object) -> float:
        """The constant probability that minimises a loss where 300 of 1000 equal voxels are foreground."""
        assert callable(criterion)
        losses = []
        for chance in chances:
            logits = torch.tensor([1 - chance, chance]).log().float().reshape(1, 2, 1, 1, 1).expand(1, 2, 10, 10, 10)
            losses.append(float(criterion(logits, label)))
        return float(chances[int(np.argmin(losses))])

    assert best_answer(cross_entropy) == pytest.approx(0.30)
    assert best_answer(dice_ce()) > 0.35


# The probe of condition 1 on the toy


def probe(image: float, stable: float) -> float:
    batch = training_batch(TOY, DropGen(p=0.0), 1, 20, np.random.default_rng(0))
    assert batch.features_bcxyz is not None
    return gradient_agreement(
        layer_with(image, stable), batch.image_bcxyz, batch.features_bcxyz, batch.label_bcxyz, cross_entropy
    ).cosine


def test_the_probe_is_exactly_one_where_the_image_slice_is_zero() -> None:
    assert probe(0.0, 0.0) == probe(0.0, 1.3) == 1.0


def test_the_probe_agrees_where_the_stable_slice_is_zero_and_may_oppose_where_it_is_not() -> None:
    assert probe(1.0, 0.0) == pytest.approx(1.0)
    assert probe(2 * TOY.image_mean, 1.0) == pytest.approx(-1.0)
