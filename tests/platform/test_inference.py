from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features import extractors
from dropgen.features.extractors import extract, instance_norm
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.inference import predict_logits
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import MIND, make_segmenter

CROP = (16, 16, 16)


def prepared_volume(segmenter: Segmenter, shape: tuple[int, int, int] = (24, 16, 24)) -> Prepared:
    noise = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return prepare(Volume(noise, np.eye(4)), segmenter.spec.preparation)


def windows_by_hand(segmenter: Segmenter, prepared: Prepared, raw: np.ndarray, step: int) -> np.ndarray:
    """Mean of the windows' logits, one window at a time."""
    total = np.zeros((len(segmenter.spec.classes), *prepared.unit.shape))
    count = np.zeros(prepared.unit.shape)
    for start in itertools.product(*(range(0, size - 15, step) for size in prepared.unit.shape)):
        box = tuple(slice(edge, edge + 16) for edge in start)
        image = torch.from_numpy(prepared.unit[box].copy())[None, None]
        features = instance_norm(torch.from_numpy(raw[:, *box].copy())[None])
        with torch.no_grad():
            total[:, *box] += segmenter.network(segmenter.method.inputs(image, features))[0].numpy()
        count[box] += 1
    return total / count


@pytest.mark.parametrize(("overlap", "step"), [(0.5, 8), (0.75, 4)])
def test_overlapping_windows_are_averaged_without_weights(overlap: float, step: int) -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5))
    prepared = prepared_volume(segmenter)
    raw, _ = extract(extractors.build(MIND), prepared.unit)
    found = predict_logits(
        segmenter.network, segmenter.method, prepared, raw, None, crop=CROP, overlap=overlap, device="cpu"
    )
    np.testing.assert_allclose(found.numpy(), windows_by_hand(segmenter, prepared, raw, step), rtol=1e-4, atol=1e-4)


def test_features_are_normalised_per_window_not_per_volume() -> None:
    segmenter = make_segmenter(Component.of("rep_only"))
    prepared = prepared_volume(segmenter)
    raw, _ = extract(extractors.build(MIND), prepared.unit)
    # A brightness step between the halves of every channel: whole-volume statistics would keep it.
    raw[:, :8] += 100
    found = predict_logits(segmenter.network, segmenter.method, prepared, raw, None, crop=CROP, overlap=0, device="cpu")
    flat = raw.copy()
    flat[:, :8] -= 100
    # Of the two windows along x (0..16, 8..24) the second never meets the step.
    by_hand = predict_logits(
        segmenter.network, segmenter.method, prepared, flat, None, crop=CROP, overlap=0, device="cpu"
    )
    np.testing.assert_array_equal(found[:, 16:].numpy(), by_hand[:, 16:].numpy())
    assert not torch.allclose(found[:, :8], by_hand[:, :8])


def test_no_gradient_is_kept() -> None:
    segmenter = make_segmenter(Component.of("erm"))
    prepared = prepared_volume(segmenter)
    logits = predict_logits(
        segmenter.network, segmenter.method, prepared, None, None, crop=CROP, overlap=0.5, device="cpu"
    )
    assert not logits.requires_grad
    assert logits.shape == (3, *prepared.unit.shape)
