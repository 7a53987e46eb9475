"""RSC: what is masked, and that looking for it leaves no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from dropgen.errors import ConfigError
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.rsc import KINDS, Rsc, SelfChallengingUNet, confidence, keep_undominant
from tests_support.steps import assert_same_step, batch_of, loss_of_step, network_of, step

EVERY_KIND = (*KINDS, "element")


def challenging(size: int = 4, samples: int = 2, **options: object) -> tuple[SelfChallengingUNet, Tensor, Tensor]:
    method = Rsc(p=1, **options)  # type: ignore[arg-type]
    network = network_of(method)
    assert isinstance(network, SelfChallengingUNet)
    batch = batch_of(method, samples=samples, size=size)
    step(method, network, batch)  # batch statistics that are not the initial ones
    network.zero_grad()
    return network, batch.image_bcxyz, batch.label_bcxyz


def random_features(shape: tuple[int, ...] = (2, 10, 2, 3, 4)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize(("kind", "shape", "entries"), [("channel", (2, 10, 1, 1, 1), 10),
                                                        ("spatial", (2, 1, 2, 3, 4), 24),
                                                        ("element", (2, 10, 2, 3, 4), 240)])  # fmt: skip
@pytest.mark.parametrize("fraction", [0.2, 1 / 3])
def test_the_rounded_up_fraction_is_dropped_in_every_sample(
    kind: str, shape: tuple[int, ...], entries: int, fraction: float
) -> None:
    kept = keep_undominant(*random_features(), kind, fraction)
    assert kept.shape == shape
    assert set(kept.unique().tolist()) == {0, 1}
    assert ((kept == 0).flatten(1).sum(dim=1) == math.ceil(fraction * entries)).all()


def test_two_of_eight_voxels_are_dropped_and_128_of_640_channels() -> None:
    h, gradient = random_features((1, 640, 2, 2, 2))
    assert (keep_undominant(h, gradient, "spatial", 0.2) == 0).sum() == 2
    assert (keep_undominant(h, gradient, "channel", 0.2) == 0).sum() == 128


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_equal_scores_drop_the_count_and_not_everything(kind: str) -> None:
    h = torch.ones(2, 10, 2, 2, 2)
    masks = [keep_undominant(h, h, kind, 0.2) for _ in range(2)]
    assert torch.equal(masks[0], masks[1])
    assert ((masks[0] == 0).flatten(1).sum(dim=1) == math.ceil(0.2 * masks[0][0].numel())).all()


def test_what_is_dropped_scores_highest_by_the_written_formulas() -> None:
    h, gradient = random_features()
    weight = gradient.flatten(2).mean(dim=2)
    scores = {
        "channel": weight,
        "spatial": torch.einsum("bc,bcxyz->bxyz", weight, h).flatten(1),
        "element": gradient.flatten(1),
    }
    for kind, score in scores.items():
        kept = keep_undominant(h, gradient, kind, 0.2).flatten(1).bool()
        for b in range(2):
            assert score[b][~kept[b]].min() >= score[b][kept[b]].max()


@pytest.mark.parametrize("mask", ["alternate", *EVERY_KIND])
def test_scoring_leaves_no_gradient_and_moves_no_statistics(mask: str) -> None:
    network, x, label = challenging(mask=mask)
    network.train()
    deepest, skips = network.unet.encode(x)
    before = copy.deepcopy(network.state_dict())
    network._kept(deepest.detach(), {at: skip.detach() for at, skip in skips.items()}, label)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("batch_fraction", [0.5, 1.0])
def test_every_batch_norm_counts_one_batch_per_step(batch_fraction: float) -> None:
    network, x, label = challenging(batch_fraction=batch_fraction)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [int(norm.num_batches_tracked or 0) for norm in norms]
    network.train()(x, label)
    assert [int(norm.num_batches_tracked or 0) for norm in norms] == [count + 1 for count in before]


def test_scoring_is_the_gradient_of_the_true_class_logits_in_eval_mode() -> None:
    network, x, label = challenging(mask="channel")
    network.train()
    deepest, skips = network.unet.encode(x)
    h, skips = deepest.detach().requires_grad_(), {at: skip.detach() for at, skip in skips.items()}
    kept = network._kept(deepest.detach(), skips, label)
    decoder = copy.deepcopy(network.unet).eval()
    truth = nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1)
    (decoder.decode(h, skips) * truth).sum().backward()
    assert h.grad is not None
    assert torch.equal(kept, keep_undominant(deepest.detach(), h.grad, "channel", 0.2))


@pytest.mark.parametrize("mask", EVERY_KIND)
def test_a_challenged_step_decodes_the_masked_features_with_whole_skips(mask: str) -> None:
    network, x, label = challenging(mask=mask)
    other = copy.deepcopy(network)
    logits = network.train()(x, label)
    deepest, skips = other.train().unet.encode(x)
    kept = other._kept(deepest.detach(), {at: skip.detach() for at, skip in skips.items()}, label)
    assert torch.equal(logits, other.unet.decode(deepest * kept, skips))


def test_exactly_the_dropped_channels_get_no_gradient() -> None:
    network, x, label = challenging(mask="channel", samples=1)
    other = copy.deepcopy(network).train()
    deepest, skips = other.unet.encode(x)
    kept = other._kept(deepest.detach(), {at: skip.detach() for at, skip in skips.items()}, label)
    seen: list[Tensor] = []
    end = network.unet.model[network.unet.level_ends[-1]]
    end.register_forward_hook(lambda module, inputs, output: seen.append(output))
    (gradient,) = torch.autograd.grad(network.train()(x, label).square().sum(), seen[0])
    assert not kept.all()
    assert torch.equal(gradient.flatten(2).any(dim=2), kept.flatten(1).bool())


def test_the_mask_alternates_between_channels_and_voxels() -> None:
    network, x, label = challenging()
    deepest, skips = network.train().unet.encode(x)
    skips = {at: skip.detach() for at, skip in skips.items()}
    torch.manual_seed(0)
    channel = sum(network._kept(deepest.detach(), skips, label).shape[2] == 1 for _ in range(100))
    assert abs(channel - 50) <= 20


@pytest.mark.parametrize(("batch_fraction", "challenged"), [(0.25, 1), (0.5, 2), (0.6, 3)])
def test_only_the_samples_whose_confidence_falls_most_are_challenged(batch_fraction: float, challenged: int) -> None:
    network, x, label = challenging(samples=4, mask="spatial", batch_fraction=batch_fraction)
    whole = SelfChallengingUNet(network.unet, "spatial", 0.2, 1.0).train()
    deepest, skips = whole.unet.encode(x)
    h, skips = deepest.detach(), {at: skip.detach() for at, skip in skips.items()}
    every, some = whole._kept(h, skips, label), network._kept(h, skips, label)
    unet = copy.deepcopy(network.unet).eval()
    fall = confidence(unet.decode(h, skips), label) - confidence(unet.decode(h * every, skips), label)
    chosen = fall.topk(challenged).indices.sort().values
    assert torch.equal((some == 0).flatten(1).any(dim=1).nonzero()[:, 0], chosen)
    assert torch.equal(some[chosen], every[chosen])


def test_confidence_is_the_mean_probability_of_the_truth() -> None:
    label = torch.tensor([0, 1]).view(2, 1, 1, 1, 1).expand(2, 1, 2, 2, 2)
    logits = torch.zeros(2, 4, 2, 2, 2)
    logits[1, 1] = 100
    assert torch.allclose(confidence(logits, label), torch.tensor([0.25, 1.0]))


def test_p_zero_is_an_erm_step_bit_for_bit() -> None:
    assert_same_step(Rsc(p=0), "erm")


@pytest.mark.parametrize("mask", EVERY_KIND)
def test_p_one_is_no_erm_step(mask: str) -> None:
    assert loss_of_step(Rsc(p=1, mask=mask)) != loss_of_step(Erm())


@pytest.mark.parametrize("p", [0.0, 0.25, 0.75, 1.0])
def test_a_step_is_challenged_with_probability_p(p: float) -> None:
    class Asked(nn.Module):
        times = 0

        def forward(self, x_bcxyz: Tensor, label: Tensor | None = None) -> Tensor:
            self.times += label is not None
            return x_bcxyz

    method, network = Rsc(p=p), Asked()
    torch.manual_seed(0)
    for _ in range(1000):
        method.loss(network, batch_of(method), lambda logits, label: logits.sum())
    assert abs(network.times / 1000 - p) <= 4 * (p * (1 - p) / 1000) ** 0.5


def test_with_the_input_alone_it_is_the_plain_prediction() -> None:
    network, x, _ = challenging()
    assert torch.equal(network.eval()(x), network.unet(x))


@pytest.mark.parametrize("mask", EVERY_KIND)
def test_a_step_runs_under_bfloat16_autocast(mask: str) -> None:
    method = Rsc(p=1, mask=mask, batch_fraction=0.5)
    network = network_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(step(method, network, batch_of(method)))
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"p": 2}, r"p = 2 .* \[0, 1\]"), ({"mask": "chanel"}, "mask = 'chanel' must be one of 'alternate', 'channel'"),
     ({"fraction": 1}, r"fraction = 1 .* \(0, 1\)"), ({"batch_fraction": 0}, r"batch_fraction = 0 .* \(0, 1\]")],
)  # fmt: skip
def test_a_hyperparameter_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"rsc: {message}"):
        Rsc(**options)  # type: ignore[arg-type]


def test_another_predictor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rsc reaches into the layers of the flat UNet.*Identity"):
        Rsc().network(lambda width: nn.Identity(), 0, 2)
