"""CutOut: cubes of 0.5 in the image and of background in the label, and nothing else touched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.platform.methods import build
from dropgen.platform.methods.cutout import CutOut

SHAPE = (12, 9, 16)


def crops(samples: int) -> tuple[Tensor, Tensor]:
    """Images without a 0.5 and labels without background: what is either was cut out."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(samples, 1, *SHAPE, generator=generator) * 0.4
    return image, torch.randint(1, 3, (samples, 1, *SHAPE), generator=generator)


def cut(method: CutOut, samples: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = [np.random.default_rng((seed, sample)) for sample in range(samples)]
    return method.augment(*crops(samples), 3, draws)


def spans(label_1xyz: Tensor) -> list[tuple[int, int]]:
    """First voxel and side of the hole along every axis."""
    hole = label_1xyz[0] == 0
    axes = [hole.any(dim=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return [(int(axis.nonzero()[0]), int(axis.sum())) for axis in axes]


@pytest.mark.parametrize("seed", range(20))
def test_inside_is_exactly_half_and_background_outside_is_untouched_bit_for_bit(seed: int) -> None:
    (image, label), (before, truth) = cut(CutOut(p=1), seed=seed), crops(1)
    inside = label == 0
    assert inside.sum() == np.prod([side for _, side in spans(label[0])])
    assert (image[inside] == 0.5).all()
    assert torch.equal(image[~inside], before[~inside])
    assert torch.equal(label[~inside], truth[~inside])
    assert (image.dtype, label.dtype) == (before.dtype, truth.dtype)


@pytest.mark.parametrize("fraction", [1 / 3, 0.4, 0.01, 0.9])
def test_a_hole_has_its_full_side_wherever_the_border_does_not_clip_it(fraction: float) -> None:
    sides = [max(1, round(fraction * size)) for size in SHAPE]
    full = [0, 0, 0]
    for seed in range(60):
        for axis, (start, side) in enumerate(spans(cut(CutOut(p=1, fraction=fraction), seed=seed)[1][0])):
            touches = start == 0 or start + side == SHAPE[axis]
            assert side == sides[axis] or (touches and side < sides[axis])
            full[axis] += side == sides[axis]
    assert min(full) > 0


def test_the_centre_is_uniform_over_all_voxels() -> None:
    single = CutOut(p=1, fraction=0.01)
    found = np.array([[start for start, _ in spans(cut(single, seed=seed)[1][0])] for seed in range(800)])
    for axis, size in enumerate(SHAPE):
        share = np.bincount(found[:, axis], minlength=size) / 800
        assert np.abs(share - 1 / size).max() < 4 * (1 / size / 800) ** 0.5


def test_the_centre_lies_in_the_middle_of_the_hole() -> None:
    # On 9 voxels a side of 3 covers a voxel from 3 centres of 9, at either border from 2.
    covered = torch.stack([(cut(CutOut(p=1), seed=seed)[1][0, 0] == 0).any(dim=2).any(dim=0) for seed in range(600)])
    expected = torch.tensor([2, 3, 3, 3, 3, 3, 3, 3, 2]) / 9
    assert (covered.float().mean(dim=0) - expected).abs().max() < 4 * (2 / 9 / 600) ** 0.5


def test_an_axis_of_one_voxel_is_cut_whole() -> None:
    image, label = torch.zeros(1, 1, 1, 6, 6), torch.ones(1, 1, 1, 6, 6).long()
    changed, cut_label = CutOut(p=1).augment(image, label, 2, [np.random.default_rng(0)])
    assert 1 <= (cut_label == 0).sum() <= 4
    assert torch.equal(changed == 0.5, cut_label == 0)


def test_samples_have_holes_of_their_own() -> None:
    _, label = cut(CutOut(p=1), samples=4)
    assert len({tuple(spans(one)) for one in label}) > 1


def test_more_holes_cut_more() -> None:
    one, three = ((cut(CutOut(p=1, n_holes=count))[1] == 0).sum() for count in (1, 3))
    assert one < three <= 3 * 4 * 3 * 5


def test_p_is_the_chance_that_a_sample_is_cut_and_the_given_batch_is_never_written_to() -> None:
    image, label = crops(400)
    draws = [np.random.default_rng((1, sample)) for sample in range(400)]
    same_image, same_label = CutOut(p=0).augment(image, label, 3, draws)
    assert torch.equal(same_image, image)
    assert torch.equal(same_label, label)
    _, cut_label = CutOut(p=0.25).augment(image, label, 3, draws)
    assert torch.equal(label, crops(400)[1])
    assert torch.equal(image, crops(400)[0])
    share = (cut_label == 0).flatten(1).any(dim=1).float().mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_the_unit_scale_is_kept() -> None:
    image, _ = CutOut(p=1).augment(torch.rand(2, 1, *SHAPE), crops(2)[1], 3, [np.random.default_rng(s) for s in (0, 1)])
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("p", value) for value in (-0.1, 1.1, float("nan"), "half", True)],
        *[("fraction", value) for value in (0, 0.0, 1, 1.0, 1.5, float("nan"), "third")],
        *[("n_holes", value) for value in (0, 1.5, True)],
    ],
)
def test_a_value_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{option} = {value!r} must be"):
        build(Component.of("cutout", **{option: value}))
