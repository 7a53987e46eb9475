"""The maths of stable feature boosting, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dropgen.platform.adaptation.boosting import EPS, boost, combine, correct, soft_confusion, unmixing


def probabilities(classes: int, voxels: int = 400, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(classes, voxels, generator=generator)).softmax(dim=0)


def one_hot(classes: int, voxels: int = 400) -> Tensor:
    labels = torch.randint(classes, (voxels,), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.one_hot(labels, classes).T.float()


def expand(values: Tensor, voxels: int) -> Tensor:
    return values.float()[:, None].expand(-1, voxels)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_columns_sum_to_one_and_the_prior_is_kept(classes: int) -> None:
    pseudo = probabilities(classes)
    confusion, mass = soft_confusion(pseudo)
    prior = mass / mass.sum()
    assert torch.allclose(confusion.sum(dim=0), torch.ones(classes, dtype=torch.float64))
    assert torch.allclose(confusion @ prior, prior)
    assert torch.allclose(prior.float(), pseudo.mean(dim=1))


def test_each_entry_is_the_formula() -> None:
    pseudo = probabilities(3).double()
    confusion, _ = soft_confusion(pseudo)
    for j in range(3):
        for k in range(3):
            assert confusion[j, k] == pytest.approx(float((pseudo[j] * pseudo[k]).sum() / pseudo[k].sum()))


def test_voxels_in_float16_and_in_many_slabs_give_the_same_sums() -> None:
    pseudo = torch.full((2, 3, 300, 300), 0.5).half()  # 270000 voxels: float16 sums would overflow at 65504
    confusion, mass = soft_confusion(pseudo)
    assert torch.equal(mass, torch.full((2,), 135000.0, dtype=torch.float64))
    assert torch.equal(confusion, torch.full((2, 2), 0.5, dtype=torch.float64))


def test_perfect_pseudo_labels_correct_nothing() -> None:
    confusion, mass = soft_confusion(one_hot(3))
    assert torch.equal(confusion, torch.eye(3, dtype=torch.float64))
    unstable = probabilities(3, seed=1)
    assert torch.allclose(correct(unstable, unmixing(confusion, mass)), unstable, atol=1e-5)


def test_a_confused_prediction_is_restored() -> None:
    truth = probabilities(4, seed=2)
    confusion, mass = soft_confusion(probabilities(4))
    confused = torch.tensordot(confusion.float(), truth, dims=1)
    assert torch.allclose(correct(confused, unmixing(confusion, mass)), truth, atol=1e-4)


def test_two_classes_match_the_binary_closed_form() -> None:
    unstable = probabilities(2, seed=3)
    confusion, mass = soft_confusion(probabilities(2))
    e0, e1 = float(confusion[0, 0]), float(confusion[1, 1])
    expected = ((unstable[1].double() + e0 - 1) / (e0 + e1 - 1)).clamp(EPS, 1 - EPS).float()
    found = correct(unstable, unmixing(confusion, mass))
    assert (found[1] - expected).abs().max() < 1e-5
    assert (expected < 2 * EPS).any()  # the clipped part took part
    assert ((expected > 0.1) & (expected < 0.9)).any()


@pytest.mark.parametrize("classes", [2, 4])
def test_pseudo_labels_that_tell_nothing_correct_nothing(classes: int) -> None:
    # Two classes: e0 + e1 - 1 = 0.
    prior = torch.arange(1, classes + 1) / sum(range(1, classes + 1))
    confusion, mass = soft_confusion(expand(prior, 400))
    assert torch.equal(unmixing(confusion, mass), torch.eye(classes, dtype=torch.float64))


def test_an_empty_class_keeps_its_probability() -> None:
    pseudo = torch.cat((probabilities(2), torch.zeros(1, 400)))
    confusion, mass = soft_confusion(pseudo)
    inverse = unmixing(confusion, mass)
    assert torch.isfinite(inverse).all()
    assert torch.equal(inverse[2], torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    two = unmixing(*soft_confusion(pseudo[:2]))
    assert torch.allclose(inverse[:2, :2], two)


def test_a_rare_class_that_is_told_apart_takes_part_in_the_inverse() -> None:
    rare = torch.zeros(1, 400)
    rare[0, 0] = 0.9
    confusion, mass = soft_confusion(torch.cat((probabilities(2) * (1 - rare), rare)))
    assert mass[2] < 1
    assert torch.allclose(unmixing(confusion, mass), torch.linalg.inv(confusion))


def test_a_class_of_less_than_one_voxel_is_left_out_where_the_inverse_would_blow_up() -> None:
    rare = torch.full((1, 400), 1e-6)  # the same everywhere: its pseudo-labels tell nothing
    confusion, mass = soft_confusion(torch.cat((probabilities(2) * (1 - rare), rare)))
    assert torch.linalg.cond(confusion) > 1e4
    inverse = unmixing(confusion, mass)
    assert inverse[2, 2] == 1
    assert inverse[2, :2].abs().sum() == inverse[:2, 2].abs().sum() == 0


def test_two_classes_that_cannot_be_told_apart_do_not_blow_up() -> None:
    pseudo = torch.zeros(3, 400)
    pseudo[0, :200] = 1
    pseudo[1:, 200:] = torch.tensor([[0.3], [0.7]])  # condition number: infinite
    inverse = unmixing(*soft_confusion(pseudo))
    assert inverse.abs().max() < 10
    assert inverse[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_corrected_prediction_is_on_the_simplex(classes: int) -> None:
    found = correct(probabilities(classes, seed=5), unmixing(*soft_confusion(probabilities(classes, sharpness=1))))
    assert (found > 0).all()
    assert torch.allclose(found.sum(dim=0), torch.ones(400))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_an_uninformative_prediction_leaves_the_stable_one(classes: int) -> None:
    stable = probabilities(classes, sharpness=1.0)
    confusion, mass = soft_confusion(stable)
    prior = mass / mass.sum()
    corrected = correct(expand(prior, 400), unmixing(confusion, mass))
    assert torch.allclose(corrected, expand(prior, 400), atol=1e-5)
    assert torch.allclose(combine(stable, corrected, prior), stable, atol=1e-5)


def test_a_prediction_at_the_prior_keeps_every_label() -> None:
    stable = probabilities(4)
    prior = stable.mean(dim=1)
    assert torch.equal(combine(stable, expand(prior, 400), prior).argmax(dim=0), stable.argmax(dim=0))


def test_the_combination_is_the_normalised_product_over_the_prior() -> None:
    stable, corrected, prior = (
        probabilities(3, sharpness=1),
        probabilities(3, seed=1, sharpness=1),
        torch.tensor([0.5, 0.3, 0.2]),
    )
    product = stable * corrected / prior[:, None]
    assert torch.allclose(combine(stable, corrected, prior), product / product.sum(dim=0), atol=1e-6)


def test_a_uniform_prediction_favours_rare_classes() -> None:
    stable, prior = torch.full((2, 1), 0.5), torch.tensor([0.9, 0.1])
    assert torch.allclose(combine(stable, torch.full((2, 1), 0.5), prior)[:, 0], torch.tensor([0.1, 0.9]))


def test_no_probability_is_too_small() -> None:
    found = combine(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, 0.0]))
    assert torch.isfinite(found).all()


def test_a_round_is_these_steps_voxel_by_voxel() -> None:
    stable, unstable, pseudo = (probabilities(3, 120, seed).view(3, 5, 4, 6) for seed in range(3))
    stable, pseudo = stable.half(), pseudo.half()
    confusion, mass = soft_confusion(pseudo)
    whole = combine(stable.float(), correct(unstable, unmixing(confusion, mass)), mass / mass.sum())
    found = boost(stable, unstable, pseudo)
    assert found.dtype == torch.float16
    assert torch.allclose(found.float(), whole, atol=1e-3)
