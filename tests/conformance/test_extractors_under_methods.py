"""Every extractor without weights under every method that needs features: one step trained, one volume segmented."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dropgen.config import Component, Network
from dropgen.errors import DropGenError
from dropgen.features.extractors import EXTRACTORS, Extractor, extract, instance_norm
from dropgen.features.extractors import build as build_extractor
from dropgen.features.studies.prepare import Preparation, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.methods import METHODS
from dropgen.platform.methods import build as build_method
from dropgen.platform.methods.batch import Batch
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter, SegmenterSpec
from dropgen.platform.training.losses import dice_ce

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


@pytest.fixture(params=weightless())
def extractor(request: pytest.FixtureRequest) -> Extractor:
    return build_extractor(Component.of(request.param))


@pytest.mark.parametrize("name", READERS)
def test_a_method_trains_and_predicts_on_the_features(name: str, extractor: Extractor) -> None:
    method = build_method(Component.of(name))
    generators = [np.random.default_rng(seed) for seed in range(2)]
    torch.manual_seed(0)
    network = build_network(NETWORK, method, extractor.channels, len(CLASSES))
    image, label = torch.rand(2, 1, *CROP), torch.randint(len(CLASSES), (2, 1, *CROP))
    image, label = method.augment(image, label, len(CLASSES), generators)
    kept, strength = zip(*(method.draw(generator, extractor.channels) for generator in generators), strict=True)
    features = instance_norm(extractor(image))
    batch = Batch(image, label, features, torch.from_numpy(np.stack(kept)), 1, torch.tensor(strength))
    loss = method.loss(network.train(), batch, dice_ce())
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [parameter.grad for parameter in network.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)

    spec = SegmenterSpec(
        name="toy", study="toy", classes=CLASSES, spacing=(1.0, 1.0, 1.0), crop=CROP, intensity="minmax",
        method=Component.of(name), network=NETWORK, extractor=Component.of(extractor.name),
        extractor_fingerprint=extractor.fingerprint,
    )  # fmt: skip
    array = np.random.default_rng(0).random((9, 8, 11), dtype=np.float32)
    prepared = prepare(Volume(array, np.eye(4)), Preparation(spec.spacing, CROP, "minmax"))
    whole = Segmenter(spec, network.eval(), method, extractor)
    mask = whole.predict_prepared(prepared)
    assert mask.shape == array.shape
    stored, _ = extract(extractor, prepared.unit)
    np.testing.assert_array_equal(whole.predict_prepared(prepared, stored), mask)
    windowed = Segmenter(spec.model_copy(update={"feature_scope": "window"}), network, method, extractor)
    assert windowed.predict_prepared(prepared).shape == array.shape
