"""Losses of studies with voxels to ignore and of studies with regions that overlap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dropgen.features.studies.labelling import Labelling
from dropgen.platform.evaluation.inference import Slab, labels
from dropgen.platform.evaluation.metrics import labelled_dice
from dropgen.platform.training.losses import LOSSES, build_loss, dice_ce, truth_of

CLASSES = ("background", "one", "two", "three")
SHAPE = (6, 5, 4)
PLAIN = Labelling(CLASSES)
IGNORING = Labelling(CLASSES, ignore=4)
NESTED = Labelling(CLASSES, ((1, 2, 3), (2, 3), (3,)), (1, 2, 3))
NESTED_IGNORING = Labelling(CLASSES, NESTED.regions, NESTED.order, ignore=4)
DISJOINT = Labelling(CLASSES, ((1,), (2,), (3,)), (1, 2, 3))


def random_label(seed: int = 0) -> Tensor:
    return torch.randint(0, 4, (2, 1, *SHAPE), generator=torch.Generator().manual_seed(seed))


def random_logits(labelling: Labelling, seed: int = 1) -> Tensor:
    return torch.randn(2, labelling.outputs, *SHAPE, generator=torch.Generator().manual_seed(seed))


def ignoring_some(label: Tensor, seed: int = 2) -> tuple[Tensor, Tensor]:
    unknown = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    return label.masked_fill(unknown, 4), unknown


@pytest.mark.parametrize("name", LOSSES)
def test_without_a_voxel_to_ignore_it_is_the_plain_loss(name: str) -> None:
    label, logits = random_label(), random_logits(PLAIN)
    assert torch.allclose(build_loss(name, IGNORING)(logits, label), build_loss(name)(logits, label), atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_plain_loss_of_the_voxels_that_are_known(name: str) -> None:
    label, logits = random_label(), random_logits(PLAIN)
    unknown = label.clone()
    unknown[:, :, 4:] = 4
    expected = build_loss(name)(logits[:, :, :4], label[:, :, :4])
    assert torch.allclose(build_loss(name, IGNORING)(logits, unknown), expected, atol=1e-6)


@pytest.mark.parametrize("labelling", [IGNORING, NESTED_IGNORING], ids=["classes", "regions"])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_voxels_give_no_loss_and_no_gradient(name: str, labelling: Labelling) -> None:
    label, unknown = ignoring_some(random_label())
    logits = random_logits(labelling).requires_grad_()
    criterion = build_loss(name, labelling)
    loss = criterion(logits, label)
    loss.backward()
    assert logits.grad is not None
    each = unknown.expand_as(logits)
    assert not logits.grad[each].any()
    assert logits.grad[~each].abs().min() > 0
    changed = torch.where(each, 10 * random_logits(labelling, seed=7), logits.detach())
    assert torch.equal(criterion(changed, label), loss)


@pytest.mark.parametrize("labelling", [IGNORING, NESTED_IGNORING], ids=["classes", "regions"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_a_known_voxel_costs_nothing(name: str, labelling: Labelling) -> None:
    logits = random_logits(labelling).requires_grad_()
    loss = build_loss(name, labelling)(logits, torch.full((2, 1, *SHAPE), 4))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_regions_give_the_closed_form_of_sigmoids() -> None:
    label, logits = random_label(), random_logits(NESTED)
    p, terms = logits.double().sigmoid(), []
    truth = torch.stack([(label[:, 0] >= value) for value in (1, 2, 3)], dim=1).double()
    for sample in range(2):
        for region in range(3):
            pr, gr = p[sample, region], truth[sample, region]
            terms.append(1 - (2 * (pr * gr).sum() + 1e-5) / (pr.sum() + gr.sum() + 1e-5))
    entropy = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    expected = torch.stack(terms).mean() + entropy
    assert dice_ce(NESTED)(logits, label).item() == pytest.approx(expected.item(), rel=1e-5)


def test_truth_of_regions_overlaps_and_of_ignored_voxels_is_nothing() -> None:
    truth, known = truth_of(torch.arange(5).view(1, 1, 5, 1, 1), NESTED_IGNORING)
    assert truth[0, :, :, 0, 0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert known.flatten().tolist() == [1, 1, 1, 1, 0]


def fitted(name: str, labelling: Labelling, label: Tensor) -> Tensor:
    """Logits that a loss was followed down to."""
    logits = torch.zeros(2, labelling.outputs, *SHAPE, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    criterion = build_loss(name, labelling)
    for _ in range(60):
        optimizer.zero_grad()
        criterion(logits, label).backward()
        optimizer.step()
    return logits.detach()


@pytest.mark.parametrize("name", LOSSES)
def test_training_on_disjoint_regions_and_on_labels_ends_in_the_same_metrics(name: str) -> None:
    label = random_label()
    for sample in range(2):
        truth = label[sample, 0].numpy()
        by_label = labels(Slab(0, 0, fitted(name, PLAIN, label)[sample]))
        by_region = labels(Slab(0, 0, fitted(name, DISJOINT, label)[sample]), DISJOINT.order)
        scores = labelled_dice(by_region, truth, DISJOINT)
        assert scores.tolist() == labelled_dice(by_label, truth, PLAIN).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", LOSSES)
def test_training_on_nested_regions_finds_every_one_and_leaves_ignored_voxels_alone(name: str) -> None:
    label, unknown = ignoring_some(random_label())
    logits = fitted(name, NESTED_IGNORING, label)
    assert not logits[unknown.expand_as(logits)].any()
    found = labels(Slab(0, 0, logits[0]), NESTED.order)
    assert labelled_dice(found, label[0, 0].numpy(), NESTED_IGNORING).tolist() == [1, 1, 1]
