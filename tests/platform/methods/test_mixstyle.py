"""MixStyle: the algebra of mixed statistics, and where and when it happens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Network
from dropgen.errors import ConfigError
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.mixstyle import MixStyle, MixStyleLayer, mix_styles
from tests_support.steps import assert_same_step, batch_of, loss_of_step, network_of, step, unet_of


def features(samples: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(samples, 5, 1, 1, 1, generator=generator) + 0.5
    return torch.randn(samples, 5, 4, 4, 4, generator=generator) * scale + 3 * scale


def statistics(h_bcxyz: Tensor) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(h_bcxyz, dim=(2, 3, 4))
    return deviation, mean


def mixers(network: nn.Module) -> list[MixStyleLayer]:
    return [module for module in network.modules() if isinstance(module, MixStyleLayer)]


def test_share_zero_swaps_the_statistics_exactly() -> None:
    h, partner = features(), torch.tensor([1, 2, 0])
    mixed, wanted = statistics(mix_styles(h, torch.zeros(3), partner)), statistics(h[partner])
    assert torch.allclose(mixed[0], wanted[0], rtol=1e-4)
    assert torch.allclose(mixed[1], wanted[1], rtol=1e-4)


def test_a_share_interpolates_the_statistics_and_keeps_the_content() -> None:
    h, partner, share = features(), torch.tensor([2, 0, 1]), torch.tensor([0.3, 0.5, 0.9])
    mixed = mix_styles(h, share, partner)
    for own, other, found in zip(statistics(h), statistics(h[partner]), statistics(mixed), strict=True):
        assert torch.allclose(found, share[:, None] * own + (1 - share[:, None]) * other, rtol=1e-4)
    before, after = nn.functional.instance_norm(h), nn.functional.instance_norm(mixed)
    assert torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_sample_paired_with_itself_is_unchanged(share: float) -> None:
    h = features()
    assert torch.allclose(mix_styles(h, torch.full((3,), share), torch.arange(3)), h, atol=1e-5)


def test_a_batch_of_one_is_unchanged() -> None:
    h = features(1)
    assert torch.allclose(MixStyleLayer(1.0, 0.1).train()(h), h, atol=1e-5)


def test_the_gradient_is_the_mixed_deviation_over_the_own() -> None:
    h, partner, share = features().requires_grad_(), torch.tensor([1, 2, 0]), torch.tensor([0.2, 0.6, 0.8])
    mix_styles(h, share, partner).sum().backward()
    assert h.grad is not None
    deviation = (h.detach().var(dim=(2, 3, 4), keepdim=True) + 1e-6).sqrt()
    weight = share.view(-1, 1, 1, 1, 1)
    factor = (weight * deviation + (1 - weight) * deviation[partner]) / deviation
    assert torch.allclose(h.grad, factor.expand_as(h), rtol=1e-5)


def test_permuting_the_batch_permutes_the_result() -> None:
    h, share, partner = features(4), torch.rand(4), torch.tensor([2, 0, 3, 1])
    order = torch.tensor([3, 1, 0, 2])
    renamed = order.argsort()[partner[order]]  # where the partners have gone
    assert torch.allclose(mix_styles(h[order], share[order], renamed), mix_styles(h, share, partner)[order])


def test_a_constant_channel_stays_finite() -> None:
    h = features()
    h[0, 0] = 2.0
    mixed = mix_styles(h, torch.zeros(3), torch.tensor([1, 2, 0]))
    assert torch.isfinite(mixed).all()
    assert torch.allclose(mixed[0, 0], h[1, 0].mean().expand(4, 4, 4))


def test_statistics_are_float32_under_bfloat16() -> None:
    h = (features(2) * torch.tensor([1.0, 100]).view(2, 1, 1, 1, 1)).bfloat16()
    share, partner = torch.full((2,), 0.3), torch.tensor([1, 0])
    mixed = mix_styles(h, share, partner)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, mix_styles(h.float(), share, partner).bfloat16())


@pytest.mark.parametrize("p", [0.0, 0.25, 0.75, 1.0])
def test_a_layer_mixes_with_probability_p_from_the_global_generator(p: float) -> None:
    torch.manual_seed(0)
    layer, h = MixStyleLayer(p, 0.1).train(), features(2)
    mixed = sum(layer(h) is not h for _ in range(1000)) / 1000
    assert abs(mixed - p) <= 4 * (p * (1 - p) / 1000) ** 0.5


def test_the_layer_follows_the_seed() -> None:
    layer, h = MixStyleLayer(1.0, 0.1).train(), features(8)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(h))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_in_eval_mode_it_is_the_identity() -> None:
    h = features()
    assert MixStyleLayer(1.0, 0.1).eval()(h) is h


def test_the_paper_sized_encoder_mixes_at_the_end_of_its_first_three_levels() -> None:
    with torch.device("meta"):
        unet = unet_of(network_of(MixStyle(), network=Network()))
    holders = [at for at, module in enumerate(unet.model) if isinstance(module, nn.Sequential)]
    assert tuple(holders) == unet.level_ends[:3]
    assert all(isinstance(unet.model[at + 1], nn.MaxPool3d) for at in holders)
    assert len(mixers(unet)) == 3


@pytest.mark.parametrize(("levels", "found"), [(1, 1), (2, 2), (7, 2)])
def test_levels_counts_from_the_top_and_stops_at_the_deepest(levels: int, found: int) -> None:
    assert len(mixers(network_of(MixStyle(levels=levels)))) == found


def test_the_skip_carries_the_mixed_features() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 1, 4, 4, 4) * torch.tensor([1.0, 5, 20, 80]).view(-1, 1, 1, 1, 1)
    always, never = (unet_of(network_of(MixStyle(p=p, levels=1, alpha=5.0))).train() for p in (1.0, 0.0))
    (mixed,), (plain,) = always.encode(x)[1].values(), never.encode(x)[1].values()
    assert not torch.allclose(mixed, plain, atol=1e-3)


def test_p_zero_is_an_erm_step_bit_for_bit() -> None:
    assert_same_step(MixStyle(p=0), "erm")


def test_p_one_is_no_erm_step() -> None:
    assert loss_of_step(MixStyle(p=1.0, alpha=5.0)) != loss_of_step(Erm())


def test_a_step_runs_under_bfloat16_autocast() -> None:
    method = MixStyle(p=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(step(method, network_of(method), batch_of(method)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"p": 1.5}, r"p = 1.5 .* \[0, 1\]"), ({"alpha": 0}, r"alpha = 0 .* \(0, inf\)"), ({"levels": 0}, "levels = 0"),
     ({"levels": 1.5}, "levels = 1.5"), ({"p": float("nan")}, "p = nan")],
)  # fmt: skip
def test_a_hyperparameter_outside_its_range_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"mixstyle: {message}"):
        MixStyle(**options)  # type: ignore[arg-type]


def test_another_predictor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mixstyle reaches into the layers of the flat UNet.*Identity"):
        MixStyle().network(lambda width: nn.Identity(), 0, 2)
