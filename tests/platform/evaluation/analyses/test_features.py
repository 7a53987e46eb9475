"""Principal components of features: their shares, their axes, and the picture of them."""

from __future__ import annotations

import pytest
import torch

from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.features import analyse, components


def test_components_are_orthonormal_and_their_shares_are_the_variances_along_them() -> None:
    values = torch.randn(6, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [5.0, 3.0, 2.0, 1.0, 0.5, 0.1]
    ).unsqueeze(1)
    mean, axes, shares = components(values)
    assert torch.allclose(axes.T @ axes, torch.eye(3), atol=1e-5)
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    variances = ((values - mean[:, None]).T @ axes).var(dim=0, correction=0)
    expected = torch.tensor(shares[:3]) * values.var(dim=1, correction=0).sum()
    assert torch.allclose(variances, expected.float(), rtol=1e-3)


def test_features_of_fewer_than_three_channels_leave_a_colour_black() -> None:
    _, axes, shares = components(torch.randn(1, 50, generator=torch.Generator().manual_seed(0)))
    assert axes.tolist() == [[1.0, 0.0, 0.0]]
    assert shares == [1.0]


def test_the_picture_shows_the_source_and_every_unseen_domain_that_validates(scene: Scene) -> None:
    found = analyse(scene)
    shown = [row["case"] for row in found.rows if row["what"] == "channel_sd_before_norm" and row["index"] == 0]
    domains = {case.id: case.domain for case in scene.bench.study.cases}
    assert domains[shown[0]] in scene.bench.study.train_domains
    assert all(domains[name] not in scene.bench.study.train_domains for name in shown[1:])
    assert len(shown) >= 2
    assert sum(row["value"] for row in found.rows if row["what"] == "component") == pytest.approx(1)
