"""One suite over every registered training method; a new one is tested unasked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.errors import ConfigError
from dropgen.features.studies.volume import Volume
from dropgen.platform.methods import METHODS, Method, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import build_network, build_predictor
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.losses import dice_ce
from tests_support.hooks import hooks_of
from tests_support.segmenters import make_segmenter

CHANNELS, CLASSES = 4, 3


def certain(name: str) -> Component | None:
    """The method with every probability of its own at 1, None where it has none that may be 1."""
    ones = {}
    for key in METHODS[name].options():
        if key.rpartition(".")[2] == "p":
            with suppress(ConfigError):
                build(Component.of(name, **{key: 1.0}))
                ones[key] = 1.0
    return Component.of(name, **ones) if ones else None


DEFAULTS = tuple(Component.of(name) for name in sorted(METHODS))
# What acts on a share of the samples may leave every one of a small batch alone.
CERTAIN = tuple(component for name in sorted(METHODS) if (component := certain(name)) is not None)


@pytest.fixture(params=(*DEFAULTS, *CERTAIN), ids=lambda component: component.label)
def component(request: pytest.FixtureRequest) -> Component:
    found: Component = request.param
    return found


@pytest.fixture
def method(component: Component) -> Method:
    return build(component)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, with all the bookkeeping of a larger one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network_for(method: Method, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(Network(base=2, downs=1), method, CHANNELS, CLASSES)


def size_for(method: Method, size: tuple[int, int, int] = (4, 6, 8)) -> tuple[int, int, int]:
    """The size, or the smallest cube that a method with a network of its own takes."""
    return size if method.sizes is None else (method.sizes.smallest,) * 3


def batch_for(
    method: Method, size: tuple[int, int, int] = (4, 6, 8), samples: int = 2, constant: bool = False
) -> Batch:
    size = size_for(method, size)
    generator, draws = torch.Generator().manual_seed(1), np.random.default_rng(1)
    kept, strength = zip(*(method.draw(draws, CHANNELS) for _ in range(samples)), strict=True)
    image = torch.rand(samples, 1, *size, generator=generator)
    label = torch.randint(CLASSES, (samples, 1, *size), generator=generator)
    features = torch.randn(samples, CHANNELS, *size, generator=generator) if method.needs_features else None
    if constant:
        image, features = torch.zeros_like(image), None if features is None else torch.zeros_like(features)
    image, label = method.augment(image, label, CLASSES, [np.random.default_rng((1, s)) for s in range(samples)])
    return Batch(image, label, features, torch.from_numpy(np.stack(kept)), 1, torch.tensor(strength))


def loss_of(method: Method, network: nn.Module, batch: Batch) -> Tensor:
    torch.manual_seed(batch.seed)
    return method.loss(network.train(), batch, dice_ce())


def loss_and_gradients(method: Method, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    network = network_for(method)
    loss = loss_of(method, network, batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def whole_input(method: Method, samples: int = 1) -> Tensor:
    size = size_for(method)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(samples, CHANNELS, *size, generator=generator) if method.needs_features else None
    return method.inputs(torch.rand(samples, 1, *size, generator=generator), features)


def evaluated(network: nn.Module, x_bcxyz: Tensor) -> Tensor:
    """Logits in eval mode, of batch norms whose statistics are not those of an untrained network."""
    for position, norm in enumerate(module for module in network.modules() if isinstance(module, nn.BatchNorm3d)):
        generator = torch.Generator().manual_seed(position)
        norm.get_buffer("running_mean").normal_(generator=generator)
        norm.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
    with torch.no_grad():
        logits: Tensor = network.eval()(x_bcxyz)
    return logits


def weights_in(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("size", [(4, 4, 4), (4, 6, 10)])
def test_every_parameter_gets_a_finite_gradient(method: Method, samples: int, size: tuple[int, int, int]) -> None:
    loss, gradients = loss_and_gradients(method, batch_for(method, size, samples))
    assert loss.ndim == 0
    trained = [parameter for parameter in network_for(method).parameters() if parameter.requires_grad]
    assert len(gradients) == len(trained)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_constant_image_gives_finite_logits_and_a_step_that_leaves_every_weight_finite(method: Method) -> None:
    network, batch = network_for(method), batch_for(method, constant=True)
    loss = loss_of(method, network, batch)
    loss.backward()
    torch.optim.AdamW(network.parameters(), lr=1e-2).step()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    image = torch.zeros_like(batch.image_bcxyz[:, :1])
    features = None if batch.features_bcxyz is None else torch.zeros_like(batch.features_bcxyz)
    with torch.no_grad():
        assert torch.isfinite(network.eval()(method.inputs(image, features))).all()


@pytest.mark.parametrize("certainly", CERTAIN, ids=lambda component: component.label)
def test_what_acts_on_every_sample_changes_the_step(certainly: Component) -> None:
    never = Component.of(certainly.name, **dict.fromkeys(certainly.options, 0.0))
    (one, _), (other, _) = (loss_and_gradients(method, batch_for(method)) for method in map(build, (certainly, never)))
    assert one != other


def test_the_same_seed_gives_the_same_loss_and_gradients(method: Method) -> None:
    one, two = (loss_and_gradients(method, batch_for(method)) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


def test_inference_takes_the_width_that_was_promised_and_draws_nothing(method: Method) -> None:
    network = network_for(method).eval()
    state = torch.get_rng_state()
    one, two = (whole_input(method) for _ in range(2))
    assert one.shape[1] == method.in_channels(CHANNELS)
    logits = network(one)
    assert logits.shape == (1, CLASSES, *size_for(method))
    assert torch.equal(logits, network(two))
    assert torch.equal(torch.get_rng_state(), state)


def test_inference_moves_no_weight_and_no_statistic(method: Method) -> None:
    network, x_bcxyz = network_for(method).eval(), whole_input(method)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network(x_bcxyz)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_what_adds_no_weights_to_the_predictor_is_the_plain_predictor_in_eval_mode(method: Method) -> None:
    width = method.in_channels(CHANNELS)
    network = network_for(method)
    torch.manual_seed(0)
    plain = build_predictor(Network(base=2, downs=1), width, CLASSES)
    if weights_in(network) != weights_in(plain):
        pytest.skip("it has weights of its own, which act at inference too; its own tests say how")
    x_bcxyz = whole_input(method, samples=3)
    assert torch.equal(evaluated(network, x_bcxyz), evaluated(plain, x_bcxyz))


def test_how_strongly_training_was_changed_is_not_seen_in_eval_mode(method: Method) -> None:
    strengths = {
        name: values
        for name, values in method.search_space.items()
        if name not in method.after_training and all(isinstance(value, int | float) for value in values)
    }
    if not strengths:
        pytest.skip("it has no strength that a search tries")
    for name, values in strengths.items():
        variants = [build(Component.of(method.name, **{name: value})) for value in values]
        seen = [whole_input(variant, samples=3) for variant in variants]
        made = [evaluated(network_for(variant), x_bcxyz) for variant, x_bcxyz in zip(variants, seen, strict=True)]
        assert all(torch.equal(one, seen[0]) for one in seen)
        assert all(torch.equal(one, made[0]) for one in made)


def test_a_checkpoint_gives_the_same_network(method: Method) -> None:
    network, other = network_for(method, seed=0), network_for(method, seed=1)
    loss_of(method, network, batch_for(method)).backward()
    other.load_state_dict(network.state_dict())
    x_bcxyz = whole_input(method)
    assert torch.equal(network.eval()(x_bcxyz), other.eval()(x_bcxyz))


def test_a_bundle_predicts_what_was_saved_at_an_odd_size(component: Component, method: Method, tmp_path: Path) -> None:
    segmenter = make_segmenter(component, crop=size_for(method, (16, 16, 16)))
    segmenter.save(tmp_path / "bundle")
    array = gaussian_filter(np.random.default_rng(0).normal(size=(17, 21, 19)), 2).astype(np.float32)
    volume = Volume(array, np.eye(4))
    mask = segmenter.predict(volume)
    assert mask.shape == array.shape
    np.testing.assert_array_equal(Segmenter.load(tmp_path / "bundle").predict(volume), mask)


def test_training_and_inference_leave_no_hook_behind(method: Method) -> None:
    network = network_for(method)
    loss_of(method, network, batch_for(method)).backward()
    assert hooks_of(network) == []
    network.eval()(whole_input(method))
    assert hooks_of(network) == []


def test_a_step_is_the_same_under_distributed_data_parallel(method: Method, process_group: None) -> None:
    alone, wrapped = network_for(method), torch.nn.parallel.DistributedDataParallel(network_for(method))
    for samples in (1, 2):  # the second forward is refused where a parameter took no part in the first step
        batch = batch_for(method, samples=samples)
        alone.zero_grad()
        wrapped.zero_grad()
        losses = [loss_of(method, network, batch) for network in (alone, wrapped)]
        for loss in losses:
            loss.backward()
        assert torch.equal(losses[0], losses[1])
        for one, two in zip(alone.parameters(), wrapped.parameters(), strict=True):
            if not one.requires_grad:  # frozen: part of the network, not of its training
                assert (one.grad, two.grad) == (None, None)
                continue
            assert one.grad is not None
            assert two.grad is not None
            assert torch.equal(one.grad, two.grad)


def test_labels_stay_labels_of_the_same_grid(method: Method) -> None:
    batch = batch_for(method)
    if batch.label_bcxyz.is_floating_point():
        assert batch.label_bcxyz.shape == (2, CLASSES, *size_for(method))
        assert torch.allclose(batch.label_bcxyz.sum(dim=1), torch.ones(2, *size_for(method)))
    else:
        assert batch.label_bcxyz.shape == (2, 1, *size_for(method))


def test_a_few_steps_lower_the_loss_of_a_fixed_batch(method: Method) -> None:
    network, batch = network_for(method), batch_for(method)
    steps, rate = (20, 1e-2) if method.sizes is None else (5, 1e-3)  # a network of its own is a big one
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = loss_of(method, network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_every_value_of_the_search_space_can_be_built(method: Method) -> None:
    for name, values in method.search_space.items():
        for value in values:
            built = build(Component.of(method.name, **{name: value}))
            owner, option = (built.inner, name.partition(".")[2]) if "." in name else (built, name)
            assert getattr(owner, option) == value


def test_it_says_what_it_is_and_where_it_comes_from(method: Method) -> None:
    assert METHODS[method.name] is type(method)
    assert type(method).__doc__
    assert method.source
    assert method.acts_on
