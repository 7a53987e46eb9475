"""Linear CKA against its definition with Gram matrices, and the invariances that it is chosen for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropgen.platform.evaluation.analyses.cka import linear_cka

sizes = st.tuples(st.integers(3, 60), st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 2**32 - 1)


def pair(size: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Two representations with something in common."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns, others = size
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(columns, others, generator=generator, dtype=torch.float64)
    return x, y + torch.randn(rows, others, generator=generator, dtype=torch.float64)


def by_grams(x: Tensor, y: Tensor) -> float:
    """HSIC of the n x n Gram matrices, as Kornblith et al. define it."""
    n = len(x)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    k, m = (centring @ part @ part.T @ centring for part in (x, y))
    return float((k * m).sum() / (k.norm() * m.norm()))


@settings(max_examples=40)
@given(sizes, seeds, st.integers(1, 70))
def test_it_is_the_definition_however_the_rows_are_cut(size: tuple[int, int, int], seed: int, chunk: int) -> None:
    x, y = pair(size, seed)
    assert linear_cka(x, y, chunk) == pytest.approx(by_grams(x, y), abs=1e-10)
    assert linear_cka(x, y, chunk) == pytest.approx(linear_cka(x, y, len(x)), abs=1e-10)


@settings(max_examples=40)
@given(sizes, seeds)
def test_rotations_one_scale_and_shifts_change_nothing_and_neither_does_the_order(
    size: tuple[int, int, int], seed: int
) -> None:
    x, y = pair(size, seed)
    rotation = torch.linalg.qr(torch.randn(size[1], size[1], dtype=torch.float64))[0]
    moved = -3.7 * x @ rotation + 1000 * torch.arange(size[1])
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, moved) == pytest.approx(1, abs=1e-10)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), abs=1e-10)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)
    assert -1e-12 <= linear_cka(x, y) <= 1 + 1e-12


def test_the_scale_of_a_single_column_does_change_it() -> None:
    x, _ = pair((60, 3, 1), 0)
    assert linear_cka(x, x * torch.tensor([1.0, 1, 10])) < 0.8


def test_independent_noise_goes_to_zero_with_many_rows() -> None:
    x, y = (
        torch.from_numpy(np.random.default_rng(seed).normal(size=(100_000, 12)).astype(np.float32)) for seed in (0, 1)
    )
    assert linear_cka(x, y) < 1e-3


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_what_is_the_same_everywhere_has_no_cka(rows: int) -> None:
    assert math.isnan(linear_cka(torch.full((rows, 2), 3.0), torch.arange(2.0 * rows).view(rows, 2)))
