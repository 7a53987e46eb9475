from __future__ import annotations

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.extractors import instance_norm
from dropgen.features.studies.prepare import Prepared, network_scale, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.uncertainty import extra_passes, predict_uncertain
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter

DROPGEN = Component.of("dropgen", p=0.5)


def volume(shape: tuple[int, int, int] = (22, 19, 17)) -> Volume:
    array = np.random.default_rng(0).normal(100, 30, shape).astype(np.float32)
    return Volume(array, np.diag([-1.0, 1.0, 1.5, 1.0]))


def ready(segmenter: Segmenter, image: Volume) -> Prepared:
    return prepare([image], segmenter.spec.preparation)


@pytest.mark.parametrize("scope", ["volume", "window"])
def test_the_mask_is_the_very_one_that_is_made_without_asking(scope: str) -> None:
    segmenter = make_segmenter(DROPGEN, feature_scope=scope)
    mask, uncertainty = predict_uncertain(segmenter, ready(segmenter, volume()))
    np.testing.assert_array_equal(mask, segmenter.predict(volume()))
    assert uncertainty.entropy_map.shape == mask.shape
    assert uncertainty.entropy is not None and 0 < uncertainty.entropy < 1
    assert uncertainty.disagreement is not None and 0 < uncertainty.disagreement <= 1


def test_both_maps_are_those_of_one_window_by_hand() -> None:
    segmenter = make_segmenter(DROPGEN)
    one = volume((16, 16, 10))
    prepared = prepare([one], segmenter.spec.preparation)
    raw = segmenter.raw_features(prepared)
    assert raw is not None
    image = network_scale(torch.from_numpy(prepared.unit)[None], [prepared])
    u = torch.cat([image, instance_norm(torch.from_numpy(raw)[None])], dim=1)
    without_image, without_features = u.clone(), u.clone()
    without_image[:, 0], without_features[:, 1:] = 0, 0
    with torch.no_grad():
        whole, a, b = (segmenter.network(x)[0] for x in (u, without_image, without_features))
    p = whole.softmax(dim=0).double()
    entropy = prepared.grid.restore(np.rint(100 * (-(p * p.log()).sum(dim=0) / np.log(3)).numpy()).astype(np.uint8))
    a_mask, b_mask = (prepared.grid.restore(z.argmax(dim=0).numpy().astype(np.uint8)) for z in (a, b))
    mask, uncertainty = predict_uncertain(segmenter, ready(segmenter, one))
    assert np.abs(uncertainty.entropy_map.astype(int) - entropy).max() <= 1
    assert uncertainty.entropy == pytest.approx(uncertainty.entropy_map[mask > 0].mean() / 100)
    assert uncertainty.disagreement_map is not None
    np.testing.assert_array_equal(uncertainty.disagreement_map, a_mask != b_mask)
    differ, either = (a_mask != b_mask).sum(), ((a_mask > 0) | (b_mask > 0)).sum()
    assert uncertainty.disagreement == pytest.approx(differ / either)


@pytest.mark.parametrize(("gain", "low", "high"), [(0.0, 1.0, 1.0), (1e6, 0.0, 0.02)])
def test_logits_that_are_equal_are_unsure_and_those_far_apart_are_sure(gain: float, low: float, high: float) -> None:
    segmenter = make_segmenter(Component.of("erm"))
    head = [module for module in segmenter.network.modules() if isinstance(module, torch.nn.Conv3d)][-1]
    head.weight.data *= gain
    mask, uncertainty = predict_uncertain(segmenter, ready(segmenter, volume()))
    assert low <= uncertainty.entropy_map.mean() / 100 <= high
    if gain == 0:
        assert not mask.any()  # the first among equals is background
        assert uncertainty.entropy is None


@pytest.mark.parametrize(("name", "passes"), [("erm", 0), ("rep_only", 0), ("dropgen", 2), ("dropgen_any_p", 2)])
def test_image_and_features_are_asked_apart_only_where_both_were_trained_on(name: str, passes: int) -> None:
    segmenter = make_segmenter(Component.of(name))
    calls: list[int] = []
    segmenter.network.register_forward_hook(lambda *_: calls.append(1))
    segmenter.predict(volume())
    plain = len(calls)
    calls.clear()
    _, uncertainty = predict_uncertain(segmenter, ready(segmenter, volume()))
    assert len(calls) == (1 + passes) * plain
    assert extra_passes(segmenter) == passes
    assert (uncertainty.disagreement_map is None) == (passes == 0)


def test_nothing_is_left_behind_in_the_network() -> None:
    segmenter = make_segmenter(DROPGEN)
    expected = segmenter.predict(volume())
    segmenter.network.train()
    predict_uncertain(segmenter, ready(segmenter, volume()))
    assert segmenter.network.training
    again = Segmenter(segmenter.spec, segmenter.network.eval(), segmenter.method, segmenter._extractor)
    np.testing.assert_array_equal(again.predict(volume()), expected)
