from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.features import extractors
from dropgen.features.extractors import extract, instance_norm
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.inference import (
    WINDOWS_AT_ONCE,
    Slab,
    predict_slabs,
    slab_axis,
    whole_logits,
    window_input,
)
from dropgen.platform.evaluation.metrics import dice
from dropgen.platform.methods import METHODS, build
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import MIND, make_segmenter

CROP = (16, 16, 16)
Shape = tuple[int, int, int]


def prepared_volume(segmenter: Segmenter, shape: Shape = (24, 16, 24)) -> Prepared:
    noise = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return prepare([Volume(noise, np.eye(4))], segmenter.spec.preparation)


def logits_of(segmenter: Segmenter, prepared: Prepared, raw: np.ndarray | None, overlap: float) -> Tensor:
    return predict_slabs(
        segmenter.network, segmenter.method, prepared, raw, None,
        lambda slabs: whole_logits(slabs, prepared.shape), crop=CROP, overlap=overlap, device="cpu",
    )  # fmt: skip


def plain_logits(segmenter: Segmenter, prepared: Prepared) -> Tensor:
    """The path without slabs: MONAI's windows and its own stitching, logits of the whole volume."""
    raw = segmenter.raw_features(prepared)
    window_extractor = segmenter._window_extractor
    whole = [torch.from_numpy(part.copy())[None] for part in (prepared.unit, raw) if part is not None]

    def over_windows(predict: Callable[[Tensor], Tensor]) -> Tensor:
        def window_logits(window_bcxyz: Tensor) -> Tensor:
            unit_bmxyz, *cut = window_bcxyz.split([part.shape[1] for part in whole], dim=1)
            raw_bcxyz = cut[0] if cut else None
            return predict(window_input(segmenter.method, prepared, unit_bmxyz, raw_bcxyz, window_extractor))

        spec = segmenter.spec
        blended = sliding_window_inference(
            torch.cat(whole, dim=1), spec.crop, WINDOWS_AT_ONCE, window_logits, spec.overlap
        )
        assert isinstance(blended, Tensor)
        return blended[0]

    with torch.no_grad():
        return segmenter.method.predict(segmenter.network, over_windows)


def windows_by_hand(segmenter: Segmenter, prepared: Prepared, raw: np.ndarray, step: int) -> np.ndarray:
    """Mean of the windows' logits, one window at a time."""
    total = np.zeros((len(segmenter.spec.classes), *prepared.shape))
    count = np.zeros(prepared.shape)
    for start in itertools.product(*(range(0, size - 15, step) for size in prepared.shape)):
        box = tuple(slice(edge, edge + 16) for edge in start)
        image = torch.from_numpy(prepared.unit[:, *box].copy())[None]
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
    found = logits_of(segmenter, prepared, raw, overlap)
    np.testing.assert_allclose(found.numpy(), windows_by_hand(segmenter, prepared, raw, step), rtol=1e-4, atol=1e-4)


def test_features_are_normalised_per_window_not_per_volume() -> None:
    segmenter = make_segmenter(Component.of("rep_only"))
    prepared = prepared_volume(segmenter)
    raw, _ = extract(extractors.build(MIND), prepared.unit)
    # A brightness step between the halves of every channel: whole-volume statistics would keep it.
    raw[:, :8] += 100
    found = logits_of(segmenter, prepared, raw, overlap=0)
    flat = raw.copy()
    flat[:, :8] -= 100
    # Of the two windows along x (0..16, 8..24) the second never meets the step.
    by_hand = logits_of(segmenter, prepared, flat, overlap=0)
    np.testing.assert_array_equal(found[:, 16:].numpy(), by_hand[:, 16:].numpy())
    assert not torch.allclose(found[:, :8], by_hand[:, :8])


def test_no_gradient_is_kept() -> None:
    segmenter = make_segmenter(Component.of("erm"))
    prepared = prepared_volume(segmenter)
    logits = logits_of(segmenter, prepared, None, overlap=0.5)
    assert not logits.requires_grad
    assert logits.shape == (3, *prepared.shape)


class Place(nn.Module):
    """Logits that depend on image and place in the window, so that windows which overlap disagree."""

    def forward(self, x_bcxyz: Tensor) -> Tensor:
        weights = torch.arange(3 * x_bcxyz[0].numel(), dtype=torch.float32).sin().reshape(3, *x_bcxyz.shape[2:])
        return x_bcxyz * weights


@settings(max_examples=60)
@given(
    crop=st.tuples(*[st.integers(1, 6)] * 3),
    beyond=st.tuples(*[st.integers(0, 9)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]),
)
def test_blended_slabs_are_the_windows_that_monai_stitches(crop: Shape, beyond: Shape, overlap: float) -> None:
    shape = tuple(edge + more for edge, more in zip(crop, beyond, strict=True))
    noise = np.random.default_rng(0).random(shape, np.float32)
    grid = prepare([Volume(noise, np.eye(4))], make_segmenter(Component.of("erm")).spec.preparation).grid
    prepared, network, axis = Prepared(noise[None], (0.0,), (1.0,), grid), Place(), slab_axis(shape, crop)
    held: list[int] = []

    def collect(slabs: Iterable[Slab]) -> Tensor:
        found, covered = torch.full((3, *shape), torch.nan), torch.zeros(shape)
        for slab in slabs:
            assert slab.axis == axis
            found[:, *slab.box] = slab.logits_kxyz
            covered[slab.box] += 1
            held.append(slab.logits_kxyz.untyped_storage().nbytes())
        assert (covered == 1).all()
        return found

    found = predict_slabs(
        network, build(Component.of("erm")), prepared, None, None, collect, crop=crop, overlap=overlap, device="cpu"
    )
    expected = sliding_window_inference(torch.from_numpy(noise)[None, None], crop, WINDOWS_AT_ONCE, network, overlap)
    torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    if axis == 0:  # the order of MONAI's sums
        assert torch.equal(found, expected[0])
    assert set(held) == {4 * 3 * noise.size // shape[axis] * crop[axis]}


@pytest.mark.parametrize("scope", ["volume", "window"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_methods_mask_is_that_of_the_plain_logits(name: str, scope: str) -> None:
    method = build(Component.of(name))
    if scope == "window" and not method.needs_features:
        pytest.skip("reads no features")
    crop = CROP if method.sizes is None else (method.sizes.smallest,) * 3
    spacing = (1.0, 1.5, 2.5)
    segmenter = make_segmenter(Component.of(name), feature_scope=scope, crop=crop, spacing=spacing)
    shape = (29, 21, 11) if method.sizes is None else (crop[0] + 5, 21, 11)  # the last axis is smaller than the crop
    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), 1).astype(np.float32)
    volume = Volume(image, np.diag([-1.2, 0.9, 3.1, 1.0]))
    prepared = prepare([volume], segmenter.spec.preparation)
    plain = plain_logits(segmenter, prepared).argmax(dim=0).to(torch.uint8).numpy()
    for found, expected in (
        (segmenter.predict_prepared(prepared), plain), (segmenter.predict(volume), prepared.grid.restore(plain)),
    ):  # fmt: skip
        classes = len(segmenter.spec.classes)
        agreement = dice(found + np.uint8(1), expected + np.uint8(1), classes + 1)
        assert np.nanmin(agreement) > 0.999
        assert np.isfinite(agreement).sum() > 1, "a mask of one class proves nothing"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_cut_along_its_longest_axis_in_windows_and_the_mask_is_the_same(axis: int) -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5))
    shape = [17, 18, 19]
    shape[axis] = 45
    prepared = prepared_volume(segmenter, (shape[0], shape[1], shape[2]))
    assert slab_axis(prepared.shape, CROP) == axis
    plain = plain_logits(segmenter, prepared).argmax(dim=0).numpy()
    assert dice(segmenter.predict_prepared(prepared), plain, 3).min() > 0.999
