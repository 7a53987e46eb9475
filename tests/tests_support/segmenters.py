"""Small real models for tests: untrained, but with every class in their masks."""

from __future__ import annotations

import torch

from dropgen.config import Component, Network
from dropgen.features import extractors
from dropgen.platform import methods
from dropgen.platform.bundle import SegmenterSpec
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter

MIND = Component.of("mind")
NETWORK = Network(base=4, downs=2, convs=1)


def make_segmenter(method: Component, seed: int = 0, **changes: object) -> Segmenter:
    rule = methods.build(method)
    images = len(changes.get("channels", ())) or 1  # type: ignore[arg-type]
    extractor = extractors.build(MIND, image_channels=images) if rule.needs_features else None
    spec = SegmenterSpec(
        name="toy",
        study="toy",
        classes=("background", "one", "two"),
        spacing=(1.0, 1.0, 1.0),
        crop=(16, 16, 16),
        intensity="minmax",
        method=method,
        network=NETWORK,
        extractor=MIND if extractor else None,
        extractor_fingerprint=extractor.fingerprint if extractor else None,
    ).model_copy(update=changes)
    torch.manual_seed(seed)
    channels = extractor.channels if extractor else 0
    network = build_network(spec.network, rule, channels, len(spec.classes), images)
    head = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)][-1]
    with torch.no_grad():
        # Batch statistics that fit the input and a head without a favourite class: else one class wins everywhere.
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.momentum = 1.0
        inputs = torch.rand(2, rule.in_channels(channels, images), *spec.crop)
        network(inputs)
        head.weight -= head.weight.mean(dim=(1, 2, 3, 4), keepdim=True)
        if head.bias is not None:
            head.bias -= network.eval()(inputs).mean(dim=(0, 2, 3, 4))
    return Segmenter(spec, network.eval(), rule, extractor)
