"""Weight noise: nothing at sigma 0, as asked beyond it, and no trace."""

from __future__ import annotations

from statistics import fmean

import torch
from torch import nn

from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.flatness import SEEDS, SIGMAS, analyse, shake


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(4, 64, 3), nn.BatchNorm3d(64), nn.Conv3d(64, 4, 3))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def test_sigma_0_gives_back_the_weights_bit_for_bit_whatever_was_shaken_before() -> None:
    module = network()
    before = weights(module)
    shake(module, before, 0.5, seed=1)
    shake(module, before, 0.0, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))


def test_the_noise_has_the_spread_that_was_asked_for_and_leaves_buffers_alone() -> None:
    module = network()
    before, buffers = weights(module), [buffer.clone() for buffer in module.buffers()]
    shake(module, before, 0.02, seed=1)
    noise = torch.cat([(p.detach() - w).flatten() for p, w in zip(module.parameters(), before, strict=True)])
    assert abs(float(noise.std()) - 0.02) < 0.0005
    assert abs(float(noise.mean())) < 0.0005
    assert all(torch.equal(one, other) for one, other in zip(buffers, module.buffers(), strict=True))


def test_a_seed_is_one_noise_and_another_seed_another() -> None:
    shaken = []
    for seed in (1, 1, 2):
        module = network()
        shake(module, weights(module), 0.01, seed)
        shaken.append(weights(module)[0])
    assert torch.equal(shaken[0], shaken[1])
    assert not torch.equal(shaken[0], shaken[2])


def test_at_sigma_0_the_dice_is_exactly_that_of_the_table(scene: Scene) -> None:
    found = analyse(scene)
    for model in scene.chosen_models:
        own = [row for row in found.rows if row["model"] == model.name]
        (clean,) = [row for row in own if row["sigma"] == 0]
        assert clean["unseen_dice"] == fmean(d for d in model.row["target_dice"].values() if d is not None)
        assert clean["source_dice"] == model.row["source_dice"]
        assert len(own) == 1 + len(SEEDS) * (len(SIGMAS) - 1)
