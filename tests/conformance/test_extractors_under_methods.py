"""Every extractor under every method that reads features: a step is trained; one without weights segments a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.errors import DropGenError
from dropgen.features.extractors import EXTRACTORS, Extractor, extract, instance_norm
from dropgen.features.extractors import build as build_extractor
from dropgen.features.studies.prepare import Preparation, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.bundle import SegmenterSpec
from dropgen.platform.methods import METHODS, Method
from dropgen.platform.methods import build as build_method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.training.losses import dice_ce
from tests_support.extractors import state_of

CLASSES, CROP = ("background", "one", "two"), (8, 8, 8)
NETWORK = Network(base=2, downs=1)
READERS = [name for name in METHODS if METHODS[name].needs_features]


def weightless() -> list[str]:
    """The extractors that can be built from nothing, a new one among them unasked."""
    found = []
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("DROPGEN_WEIGHTS", raising=False)
        for name in EXTRACTORS:
            try:
                build_extractor(Component.of(name))
            except DropGenError:
                continue
            found.append(name)
    return found


def network_of(method: Method, extractor: Extractor) -> nn.Module:
    torch.manual_seed(0)
    return build_network(NETWORK, method, extractor.channels, len(CLASSES)).train()


def backward(method: Method, network: nn.Module, extractor: Extractor) -> Tensor:
    """The loss of one step on random crops, whose gradient would go on into the extractor if it could.

    Where the extractor wants larger inputs the network is given a corner of them, to save time.
    """
    generators = [np.random.default_rng(seed) for seed in range(2)]
    shape = (2, 1, *(max(edge, extractor.min_size) for edge in CROP))
    corner = (..., *(slice(edge) for edge in CROP))
    image, label = torch.rand(shape), torch.randint(len(CLASSES), shape)
    image, label = method.augment(image, label, len(CLASSES), generators)
    kept, strength = zip(*(method.draw(generator, extractor.channels) for generator in generators), strict=True)
    features = instance_norm(extractor(image.requires_grad_()))
    assert not features.requires_grad
    kept_bc, strength_b = torch.from_numpy(np.stack(kept)), torch.tensor(strength)
    batch = Batch(image[corner], label[corner], features[corner], kept_bc, 1, strength_b)
    loss = method.loss(network, batch, dice_ce())
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize("name", weightless())
@pytest.mark.parametrize("reader", READERS)
def test_a_method_trains_and_predicts_on_the_features(reader: str, name: str) -> None:
    method, extractor = build_method(Component.of(reader)), build_extractor(Component.of(name))
    network = network_of(method, extractor)
    assert torch.isfinite(backward(method, network, extractor))
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)

    spec = SegmenterSpec(
        name="toy", study="toy", classes=CLASSES, spacing=(1.0, 1.0, 1.0), crop=CROP, intensity="minmax",
        method=Component.of(reader), network=NETWORK, extractor=Component.of(extractor.name),
        extractor_fingerprint=extractor.fingerprint,
    )  # fmt: skip
    array = np.random.default_rng(0).random((9, 8, 11), dtype=np.float32)
    prepared = prepare([Volume(array, np.eye(4))], Preparation(spec.spacing, CROP, "minmax"))
    whole = Segmenter(spec, network.eval(), method, extractor)
    mask = whole.predict_prepared(prepared)
    assert mask.shape == array.shape
    stored, _ = extract(extractor, prepared.unit)
    np.testing.assert_array_equal(whole.predict_prepared(prepared, stored), mask)
    windowed = Segmenter(spec.model_copy(update={"feature_scope": "window"}), network, method, extractor)
    assert windowed.predict_prepared(prepared).shape == array.shape


def test_no_step_of_any_method_moves_a_tensor_of_the_extractor_or_gives_one_a_gradient(extractor: Extractor) -> None:
    before = state_of(extractor)
    held = nn.ModuleList(value for value in vars(extractor).values() if isinstance(value, nn.Module))
    frozen = {id(parameter) for parameter in held.parameters()}
    for method in (build_method(Component.of(reader)) for reader in READERS):
        network = network_of(method, extractor)
        together = nn.ModuleList((network, held)).train()  # as a trainer might hold them
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        assert not frozen & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        backward(method, network, extractor)
        optimizer.step()
        assert all(parameter.grad is None for parameter in held.parameters())
        assert {id(parameter) for parameter in together.parameters() if parameter.grad is None} == frozen
    after = state_of(extractor)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
