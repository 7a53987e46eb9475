from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dropgen.platform.adaptation.temperature import RANGE, fit_temperature, nll


def calibrated(classes: int = 3, voxels: int = 20000) -> tuple[Tensor, Tensor]:
    """Logits and labels that were drawn from them: their temperature is 1."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(classes, voxels, 1, 1, generator=generator)
    labels = torch.multinomial(logits.flatten(1).softmax(dim=0).T, 1, generator=generator)
    return logits, labels.view(voxels, 1, 1)


def test_honest_logits_have_temperature_one() -> None:
    logits, labels = calibrated()
    assert fit_temperature([logits], [labels]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("factor", [0.2, 3, 8])
def test_scaled_logits_scale_the_temperature(factor: float) -> None:
    logits, labels = calibrated()
    base = fit_temperature([logits], [labels])
    assert fit_temperature([factor * logits], [labels]) == pytest.approx(factor * base, rel=1e-3)


def test_no_other_temperature_is_better() -> None:
    logits, labels = calibrated(voxels=500)
    best = fit_temperature([3 * logits], [labels])
    assert all(nll([3 * logits], [labels], best) <= nll([3 * logits], [labels], best * f) for f in (0.5, 0.95, 1.05, 2))


def test_voxels_with_a_value_beyond_the_classes_are_left_out() -> None:
    logits, labels = calibrated(voxels=500)
    unknown = torch.cat((labels, torch.full((100, 1, 1), 3)))
    more = torch.cat((logits, 50 * torch.randn(3, 100, 1, 1)), dim=1)
    assert nll([more], [unknown], 1.7) == pytest.approx(nll([logits], [labels], 1.7))


def test_every_voxel_counts_once_however_the_volumes_are_cut() -> None:
    logits, labels = calibrated(voxels=600)
    parts = [part.half() for part in logits.split([100, 500], dim=1)], list(labels.split([100, 500]))
    assert nll(*parts, 1.3) == pytest.approx(nll([logits], [labels], 1.3), rel=1e-3)


def test_uniform_logits_cost_ln_k_and_labels_without_doubt_end_at_the_bound() -> None:
    labels = torch.arange(3).view(3, 1, 1)
    assert nll([torch.zeros(3, 3, 1, 1)], [labels], 2.0) == pytest.approx(math.log(3))
    certain = torch.eye(3).view(3, 3, 1, 1)
    assert RANGE[0] <= fit_temperature([certain], [labels]) < 0.1
