"""The sample plan: a pure function of seed, step and slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropgen.platform.training.plan import Sample, SamplePlan


def plan(seed: int = 1, crop: tuple[int, int, int] = (8, 8, 8), channels: int = 13, **options: object) -> SamplePlan:
    shapes = {"a": (10, 12, 8), "b": (8, 8, 9), "c": (16, 8, 20)}
    return SamplePlan(seed, shapes, crop, lambda generator: (generator.random(channels) >= 0.5, 0.0), **options)  # type: ignore[arg-type]


def same(a: Sample, b: Sample) -> bool:
    affines = (a.affine is None and b.affine is None) or np.array_equal(a.affine, b.affine)  # type: ignore[arg-type]
    rest = (a.case, a.origin, a.size, a.symmetry, a.noise_seed) == (b.case, b.origin, b.size, b.symmetry, b.noise_seed)
    return bool(affines and rest and np.array_equal(a.kept, b.kept))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6), slot=st.integers(0, 63))
def test_a_sample_depends_on_seed_step_and_slot_only(seed: int, step: int, slot: int) -> None:
    used = plan(seed)
    for other in range(3):
        used.sample(other, slot)
    assert same(used.sample(step, slot), plan(seed).sample(step, slot))


def test_neighbouring_seeds_steps_and_slots_differ() -> None:
    base = plan(1).sample(5, 0)
    for other in (plan(2).sample(5, 0), plan(1).sample(6, 0), plan(1).sample(5, 1)):
        assert other.noise_seed != base.noise_seed


@settings(max_examples=200)
@given(step=st.integers(0, 10**6))
def test_the_crop_lies_inside_and_its_symmetry_has_the_crops_shape(step: int) -> None:
    crop = (8, 6, 8)
    sample = plan(crop=crop, probability=0.9).sample(step, 0)
    shape = plan().shapes[sample.case]
    assert all(0 <= o <= have - want for o, have, want in zip(sample.origin, shape, sample.size, strict=True))
    assert sample.symmetry(np.zeros(shape)[sample.box]).shape == crop


def test_every_case_and_every_flip_and_quarter_turn_occurs() -> None:
    samples = [plan(probability=0.5).sample(step, 0) for step in range(600)]
    assert {sample.case for sample in samples} == {"a", "b", "c"}
    assert {sample.symmetry.order for sample in samples} == {(0, 1, 2), (1, 0, 2)}
    assert len({sample.symmetry.flips for sample in samples}) == 8


def test_orientation_off_means_no_symmetry_and_affine_off_means_none() -> None:
    samples = [plan(orientation=False, affine=False, probability=1.0).sample(step, 0) for step in range(50)]
    assert all(sample.symmetry.order == (0, 1, 2) and not any(sample.symmetry.flips) for sample in samples)
    assert all(sample.affine is None for sample in samples)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_sees_the_same_samples(workers: int) -> None:
    shares = [[plan().sample(7, slot) for slot in range(8)[rank::workers]] for rank in range(workers)]
    together = sorted((sample for share in shares for sample in share), key=lambda sample: sample.noise_seed)
    alone = sorted((plan().sample(7, slot) for slot in range(8)), key=lambda sample: sample.noise_seed)
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
