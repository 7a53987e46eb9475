"""Untrained models whose masks hold every class, so that a mask says something about the way it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from dropgen.config import Component, Network
from dropgen.features import extractors
from dropgen.features.bench.store import make_features
from dropgen.features.extractors import Extractor, instance_norm
from dropgen.features.extractors.anatomix import ANATOMIX, architecture
from dropgen.platform import methods
from dropgen.platform.bundle import SegmenterSpec
from dropgen.platform.networks import build_network
from dropgen.platform.segmenter import Segmenter

DROPGEN = Component.of("dropgen", p=0.5)
SEED = 0
SMOOTHED = 9  # voxels: wider than the noise and narrower than the field's bumps


def image_alone(network: Network, classes: int, crop: int) -> Segmenter:
    """A segmenter of the image, 1 mm voxels."""
    return _segmenter(Component.of("erm"), network, classes, crop, "volume", None, None)


def with_mind(network: Network, classes: int, crop: int) -> Segmenter:
    """DropGen on the default features, 1 mm voxels."""
    mind = Component.of("mind")
    return _segmenter(DROPGEN, network, classes, crop, "volume", mind, extractors.build(mind))


def anatomix_like(
    network: Network, classes: int, crop: int, scope: Literal["volume", "window"], folder: Path
) -> Segmenter:
    """DropGen on features of an untrained network of anatomix's architecture; only the predictor's head is fitted.

    Args:
        network: The predictor.
        classes: K.
        crop: Edge of a window.
        scope: Where features are extracted.
        folder: Where the extractor's file is written.
    """
    torch.manual_seed(SEED)
    weights = folder / ANATOMIX.file_name
    torch.save(architecture().state_dict(), weights)
    component = Component.of(ANATOMIX.name, weights=str(weights))
    return _segmenter(DROPGEN, network, classes, crop, scope, component, extractors.build(component))


def _segmenter(
    component: Component,
    network: Network,
    classes: int,
    crop: int,
    scope: Literal["volume", "window"],
    features: Component | None,
    extractor: Extractor | None,
) -> Segmenter:
    method = methods.build(component)
    spec = SegmenterSpec(
        name="bench",
        study="bench",
        classes=("background", *(f"class {index}" for index in range(1, classes))),
        spacing=(1.0, 1.0, 1.0),
        crop=(crop,) * 3,
        intensity="minmax",
        method=component,
        network=network,
        extractor=features,
        extractor_fingerprint=None if extractor is None else extractor.fingerprint,
        feature_scope=scope,
    )
    torch.manual_seed(SEED)
    built = build_network(network, method, 0 if extractor is None else extractor.channels, classes)
    image = _sample(crop)
    inputs = method.inputs(image, None if extractor is None else instance_norm(extractor(image)))
    _fit_statistics(built, inputs)
    if extractor is None:
        _without_favourite(built)
    else:
        _read_out_bands(built, inputs, image, classes)
    return Segmenter(spec, built.eval(), method, extractor)


def _without_favourite(network: nn.Module) -> None:
    """Takes the mean out of the head's weights: no class wins everywhere."""
    with torch.no_grad():
        head = _head(network)
        head.weight -= head.weight.mean(dim=(1, 2, 3, 4), keepdim=True)


def _read_out_bands(network: nn.Module, inputs: Tensor, image_11xyz: Tensor, classes: int) -> None:
    """Fits the head alone, by least squares: class k is the k-th of equally large bands of the smoothed intensity.

    So a mask has contiguous regions and a margin inside them, as a trained network's has; with a random head nearly
    every voxel is a toss-up, and agreement between masks would say nothing.
    """
    hidden: list[Tensor] = []
    head = _head(network)
    handle = head.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    smooth = nnf.avg_pool3d(image_11xyz, SMOOTHED, stride=1, padding=SMOOTHED // 2, count_include_pad=False).flatten()
    edges = torch.quantile(smooth, torch.arange(1, classes) / classes)
    with torch.no_grad():
        network(inputs)
        handle.remove()
        wanted = nnf.one_hot(torch.bucketize(smooth, edges), classes).double() - 1 / classes
        found = torch.linalg.lstsq(hidden[0][0].flatten(1).T.double(), wanted).solution.T
        head.weight.zero_()
        head.weight[:, :, 1, 1, 1] = found.to(head.weight.dtype)


def _head(network: nn.Module) -> nn.Conv3d:
    return [module for module in network.modules() if isinstance(module, nn.Conv3d)][-1]


def _sample(crop: int) -> Tensor:
    """A piece of the benchmark's image in unit scale."""
    field = torch.from_numpy(make_features(1, (crop,) * 3)[0]).float()
    return ((field - field.min()) / (field.max() - field.min()))[None, None]


def _fit_statistics(network: nn.Module, inputs: Tensor) -> None:
    """Sets every batch norm to what it meets, and leaves the network in eval mode."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(inputs)
    network.eval()
