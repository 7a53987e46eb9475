"""DSBN: the restyled foreground, the domain it makes, and the two branches of every batch norm."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.methods.bezier import bezier_curve
from dropgen.platform.methods.dsbn import Dsbn, DualNorm, DualNormUNet, domains
from dropgen.platform.methods.erm import Erm
from tests_support.segmenters import make_segmenter
from tests_support.steps import assert_same_step, batch_of, network_of, step


def dual(**options: object) -> DualNormUNet:
    network = network_of(Dsbn(**options))  # type: ignore[arg-type]
    assert isinstance(network, DualNormUNet)
    return network


def norms(network: nn.Module) -> list[DualNorm]:
    return [module for module in network.modules() if isinstance(module, DualNorm)]


def branch_state(network: nn.Module, domain: int) -> dict[str, Tensor]:
    return {
        f"{at}.{key}": value.clone()
        for at, norm in enumerate(norms(network))
        for key, value in norm.branches[domain].state_dict().items()
    }


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, two[key]) for key, value in one.items())


def crops(samples: int = 6) -> tuple[Tensor, Tensor, list[np.random.Generator]]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(samples, 1, 6, 6, 6, generator=generator)
    image[:, :, 0] = 0
    label = torch.randint(3, image.shape, generator=generator)
    return image, label, [np.random.default_rng((3, sample)) for sample in range(samples)]


def fitted(**options: object) -> tuple[DualNormUNet, Tensor, Tensor]:
    """Branches that have learnt the statistics of two unlike kinds of input, and an input of each kind."""
    network = dual(**options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
    generator = torch.Generator().manual_seed(0)
    inputs = [scale * torch.rand(4, 1, 8, 8, 8, generator=generator) + shift for scale, shift in ((1, 0), (0.2, 3))]
    for domain, x in enumerate(inputs):
        network.train()(x, torch.full((4,), domain))
    return network.eval(), inputs[0], inputs[1]


# Augmentation


@pytest.mark.parametrize("region", ["label", "image", "crop"])
def test_voxels_outside_the_region_and_the_label_stay_bit_for_bit(region: str) -> None:
    image, label, generators = crops()
    both, label_after = Dsbn(p=1, region=region).augment(image, label, 3, generators)
    restyled, original = both.split(1, dim=1)
    inside = {"label": label > 0, "image": image > 0, "crop": torch.ones_like(label) > 0}[region]
    assert torch.equal(original, image)
    assert torch.equal(label_after, label)
    assert torch.equal(restyled[~inside], image[~inside])
    assert (restyled != image)[inside & (image > 0)].double().mean() > 0.99  # a rising curve keeps 0
    assert 0 <= restyled.min() <= restyled.max() <= 1


def test_the_given_crop_is_not_written_to() -> None:
    image, label, generators = crops()
    before = image.clone()
    Dsbn(p=1).augment(image, label, 3, generators)
    assert torch.equal(image, before)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.75, 1.0])
def test_a_sample_is_restyled_with_probability_p(p: float) -> None:
    image, label = torch.full((1000, 1, 1, 1, 2), 0.3), torch.ones(1000, 1, 1, 1, 2, dtype=torch.long)
    both, _ = Dsbn(p=p).augment(image, label, 2, [np.random.default_rng(sample) for sample in range(1000)])
    share = (both[:, 0] != both[:, 1]).flatten(1).any(dim=1).double().mean()
    assert abs(share - p) <= 4 * (p * (1 - p) / 1000) ** 0.5


def test_samples_get_curves_of_their_own_and_the_same_from_the_same_generators() -> None:
    image, label, generators = crops(2)
    image, label = image[:1].expand(2, -1, -1, -1, -1), label[:1].expand(2, -1, -1, -1, -1)
    one, _ = Dsbn(p=1).augment(image, label, 3, generators)
    two, _ = Dsbn(p=1).augment(image, label, 3, crops(2)[2])
    assert not torch.equal(one[0], one[1])
    assert torch.equal(one, two)


def test_a_constant_image_stays_constant() -> None:
    image, label = torch.full((4, 1, 4, 4, 4), 0.5), torch.ones(4, 1, 4, 4, 4, dtype=torch.long)
    both, _ = Dsbn(p=1).augment(image, label, 2, [np.random.default_rng(s) for s in range(4)])
    assert all(len(sample.unique()) == 1 for sample in both[:, 0])


# Domains


@pytest.mark.parametrize("scaling", [(0.0, 1.0), (0.37, 0.21)])
def test_the_mean_rule_follows_the_foreground_mean_in_any_intensity_rule(scaling: tuple[float, float]) -> None:
    image, label, generators = crops(20)
    shift, scale = scaling
    both = (Dsbn(p=0.7).augment(image, label, 3, generators)[0] - shift) / scale
    restyled, original = both.split(1, dim=1)
    found = domains(restyled, original, "mean")
    for sample in range(20):
        foreground = label[sample] > 0
        expected = restyled[sample][foreground].double().mean() < original[sample][foreground].double().mean()
        assert found[sample] == expected
    assert 0 < found.sum() < 20


@pytest.mark.parametrize("scaling", [(0.0, 1.0), (0.37, 0.21)])
@pytest.mark.parametrize("falling", [False, True])
def test_the_direction_rule_follows_the_curve(falling: bool, scaling: tuple[float, float]) -> None:
    image, label, _ = crops(20)
    restyled, generator = image.clone(), np.random.default_rng(0)
    for sample in range(20):
        curve, foreground = bezier_curve(generator.random(4), falling), label[sample] > 0
        restyled[sample][foreground] = torch.from_numpy(curve(image[sample][foreground].numpy()))
    shift, scale = scaling
    found = domains((restyled - shift) / scale, (image - shift) / scale, "direction")
    assert (found == int(falling)).all()


@pytest.mark.parametrize("rule", ["mean", "direction"])
def test_untransformed_samples_and_those_without_foreground_are_of_domain_0(rule: str) -> None:
    image, label, generators = crops()
    for p, labels in ((0, label), (1, torch.zeros_like(label))):
        both, _ = Dsbn(p=p, domain_rule=rule).augment(image, labels, 3, generators)
        assert torch.equal(both[:, :1], image)
        assert not domains(both[:, :1], both[:, 1:], rule).any()


def test_the_loss_hands_over_the_restyled_image_and_its_domains() -> None:
    class Recorder(nn.Module):
        def forward(self, x_bcxyz: Tensor, domain_b: Tensor) -> Tensor:
            self.seen = x_bcxyz, domain_b
            return x_bcxyz

    method, network = Dsbn(p=1), Recorder()
    batch = batch_of(method, samples=12)
    method.loss(network, batch, lambda logits, label: logits.sum())
    image, domain_b = network.seen
    assert torch.equal(image, batch.image_bcxyz[:, :1])
    assert torch.equal(domain_b, domains(batch.image_bcxyz[:, :1], batch.image_bcxyz[:, 1:], "mean"))
    assert set(domain_b.tolist()) == {0, 1}


# Branches


def test_the_paper_sized_predictor_gains_7560_parameters() -> None:
    with torch.device("meta"):
        plain, doubled = network_of(Erm(), network=Network()), network_of(Dsbn(), network=Network())
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, doubled)]
    assert counts[1] - counts[0] == 7560


@pytest.mark.parametrize("domain", [0, 1])
def test_one_domain_alone_is_the_plain_network_and_leaves_the_other_branch_untouched(domain: int) -> None:
    plain, doubled, x = network_of(Erm()), dual(), torch.rand(3, 1, 4, 4, 4)
    untouched = branch_state(doubled, 1 - domain)
    for mode in (True, False):  # the second time with the statistics of the first
        expected, found = plain.train(mode)(x), doubled.train(mode)(x, torch.full((3,), domain))
        assert torch.equal(found, expected)
    assert same(branch_state(doubled, 1 - domain), untouched)
    reference = [module for module in plain.modules() if isinstance(module, nn.BatchNorm3d)]
    for norm, one in zip(norms(doubled), reference, strict=True):
        assert torch.equal(norm.branches[domain].get_buffer("running_mean"), one.get_buffer("running_mean"))
        assert torch.equal(norm.branches[domain].get_buffer("running_var"), one.get_buffer("running_var"))
        assert torch.equal(norm.branches[domain].get_buffer("num_batches_tracked"), torch.tensor(1))


def test_a_mixed_batch_is_its_two_halves_run_separately_in_their_order() -> None:
    mixed = dual().train()
    with torch.no_grad():
        for norm in norms(mixed):  # branches that differ
            norm.branches[1].get_parameter("weight").mul_(2)
            norm.branches[1].get_parameter("bias").add_(0.5)
    halves, x, domain_b = copy.deepcopy(mixed), torch.rand(5, 1, 4, 4, 4), torch.tensor([1, 0, 0, 1, 0])
    found = mixed(x, domain_b)
    for domain in (0, 1):
        chosen = domain_b == domain
        assert torch.allclose(found[chosen], halves(x[chosen], domain_b[chosen]), atol=1e-5)
    for domain in (0, 1):
        one, two = branch_state(mixed, domain), branch_state(halves, domain)
        assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)


def test_a_branch_of_one_sample_trains() -> None:
    network = dual()
    network.train()(torch.rand(3, 1, 4, 4, 4), torch.tensor([0, 1, 0])).square().mean().backward()
    for norm in norms(network):
        for branch in norm.branches:
            gradient = branch.get_parameter("weight").grad
            assert gradient is not None
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("domain", [0, 1])
def test_an_idle_branch_gets_gradient_zero(domain: int) -> None:
    network = dual()
    network.train()(torch.rand(2, 1, 4, 4, 4), torch.full((2,), domain)).square().mean().backward()
    for norm in norms(network):
        for parameter in norm.branches[1 - domain].parameters():
            assert parameter.grad is not None
            assert not parameter.grad.any()
        assert any(
            parameter.grad is not None and parameter.grad.any() for parameter in norm.branches[domain].parameters()
        )


def test_p_zero_is_an_erm_step_bit_for_bit() -> None:
    assert_same_step(Dsbn(p=0), "erm")


def test_the_memory_layout_of_the_predictor_survives_both_branches() -> None:
    h = torch.randn(4, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d)
    for counts in ((4, 0), (2, 2), (0, 4)):
        normalised = DualNorm(nn.BatchNorm3d(3))(h, counts)
        assert normalised.is_contiguous(memory_format=torch.channels_last_3d)


# Inference


def test_statistics_select_the_branch_that_the_input_fits() -> None:
    network, of_0, of_1 = fitted()
    for domain, x in enumerate((of_0, of_1)):
        forced = copy.deepcopy(network)
        forced.select = domain
        other = copy.deepcopy(network)
        other.select = 1 - domain
        assert torch.equal(network(x), forced(x))
        assert not torch.allclose(network(x), other(x), atol=1e-3)


def test_features_drawn_from_a_branchs_statistics_are_closest_to_it() -> None:
    layer = DualNorm(nn.BatchNorm3d(6))
    generator = torch.Generator().manual_seed(0)
    for branch in layer.branches:
        branch.get_buffer("running_mean").copy_(torch.randn(6, generator=generator))
        branch.get_buffer("running_var").copy_(torch.rand(6, generator=generator) + 0.5)
    for domain, branch in enumerate(layer.branches):
        mean, variance = (branch.get_buffer(f"running_{key}").view(1, 6, 1, 1, 1) for key in ("mean", "var"))
        h = torch.randn(2, 6, 8, 8, 8, generator=generator) * variance.sqrt() + mean
        assert layer.distance(h, domain) < layer.distance(h, 1 - domain)


def test_the_distance_is_the_sum_of_both_norms_averaged_over_samples() -> None:
    layer = DualNorm(nn.BatchNorm3d(2))
    h = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4)  # mean (3, 4), variance 0
    assert torch.allclose(layer.distance(h, 0), torch.tensor(5 + 2**0.5))
    both = torch.cat((h, torch.zeros_like(h)))
    assert torch.allclose(layer.distance(both, 0), torch.tensor(5 / 2 + 2**0.5))


def test_average_is_the_mean_of_both_branches_logits() -> None:
    network, x, _ = fitted(select="average")
    zero, one = ((network(x, torch.full((4,), domain))) for domain in (0, 1))
    assert torch.allclose(network(x), (zero + one) / 2)


@pytest.mark.parametrize("domain", [0, 1])
def test_a_branch_can_be_named(domain: int) -> None:
    network, x, _ = fitted(select=domain)
    assert torch.equal(network(x), network(x, torch.full((4,), domain)))


def test_inference_moves_nothing() -> None:
    network, x, _ = fitted()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network(x)
    assert same(before, network.state_dict())


def test_a_step_runs_under_bfloat16_autocast() -> None:
    method = Dsbn(p=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(step(method, network_of(method), batch_of(method, samples=4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"p": -1}, r"p = -1 .* \[0, 1\]"), ({"region": "organ"}, "region = 'organ' must be one of 'label', 'image'"),
     ({"domain_rule": "median"}, "domain_rule = 'median'"), ({"select": 2}, "select = 2 must be one of 'stats', 0, 1"),
     ({"select": True}, "select = True"), ({"select": "0"}, "select = '0'")],
)  # fmt: skip
def test_a_hyperparameter_outside_its_choices_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"dsbn: {message}"):
        Dsbn(**options)  # type: ignore[arg-type]


def test_another_predictor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dsbn reaches into the layers of the flat UNet.*Identity"):
        Dsbn().network(lambda width: nn.Identity(), 0, 2)


@pytest.mark.parametrize("like", [0, 1])
def test_a_volume_is_predicted_in_one_branch_whatever_single_windows_are_closest_to(like: int) -> None:
    network, *inputs = fitted()
    windows = [*inputs[like]] * 8 + [inputs[1 - like][0]]

    def over_windows(predict: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([predict(window[None]) for window in windows])

    with torch.no_grad():
        found = Dsbn().predict(network, over_windows)
        torch.testing.assert_close(found, over_windows(lambda x: network.branch(x, like)[0]), rtol=0, atol=0)
        odd = network(windows[-1][None])  # alone, the last window would have been predicted in the other branch
    assert not torch.equal(found[-1:], odd)


def test_a_segmenter_asks_the_method_for_the_whole_volume() -> None:
    forced = {select: make_segmenter(Component.of("dsbn", select=select)) for select in (0, 1, "stats")}
    for segmenter in forced.values():
        for position, norm in enumerate(norms(segmenter.network)):
            generator = torch.Generator().manual_seed(position)
            norm.branches[1].running_mean.normal_(generator=generator)  # the branches begin as copies
    image = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    prepared = prepare([Volume(image, np.eye(4))], forced[0].spec.preparation)
    logits = {select: segmenter.logits(prepared) for select, segmenter in forced.items()}
    assert not torch.equal(logits[0], logits[1])
    assert any(torch.equal(logits["stats"], logits[select]) for select in (0, 1))
