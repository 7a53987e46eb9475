"""One suite over every registered test-time method; a new one is tested unasked."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from dropgen.config import Component
from dropgen.features.studies.prepare import Prepared, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.adaptation import ADAPTATIONS, Adaptation, Target, build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.segmenter import Segmenter
from tests_support.hooks import hooks_of
from tests_support.segmenters import make_segmenter

# Strong enough for every method to move a mask within few steps.
OPTIONS = {"tent": {"learning_rate": 0.1, "steps": 2}, "sfb": {"learning_rate": 1e-2, "steps": 2, "rounds": 2}}


@pytest.fixture(params=sorted(ADAPTATIONS))
def adaptation(request: pytest.FixtureRequest) -> Adaptation:
    return build(Component.of(request.param, **OPTIONS.get(request.param, {})))


def models_for(adaptation: Adaptation) -> tuple[Segmenter, Segmenter | None]:
    return make_segmenter(Component.of("erm")), (
        make_segmenter(Component.of("rep_only"), seed=1) if adaptation.needs_stable else None
    )


def smooth(seed: int, shape: tuple[int, int, int] = (24, 16, 20)) -> Volume:
    noise = np.random.default_rng(seed).normal(size=shape)
    return Volume(gaussian_filter(noise, 1).astype(np.float32), np.eye(4))


def prepared(volume: Volume) -> Prepared:
    return prepare([volume], make_segmenter(Component.of("erm")).spec.preparation)


def scores(adaptation: Adaptation, volume: Volume, seed: int = 0) -> Tensor:
    model, stable = models_for(adaptation)
    return adaptation.scores(Target(model, stable, prepared(volume)), np.random.default_rng(seed))


def state_hash(network: nn.Module) -> str:
    """Over every weight and buffer, and what is trained, in which mode."""
    hasher = hashlib.sha256()
    for key, value in network.state_dict().items():
        hasher.update(key.encode() + value.contiguous().numpy().tobytes())
    flags = [parameter.requires_grad for parameter in network.parameters()], network.training
    return hasher.hexdigest() + repr(flags)


def test_it_returns_a_finite_score_of_every_class_and_voxel(adaptation: Adaptation) -> None:
    found = scores(adaptation, smooth(0))
    assert found.shape == (3, 24, 16, 20)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert not found.requires_grad


def test_it_changes_the_prediction(adaptation: Adaptation) -> None:
    plain = models_for(adaptation)[0].predict_prepared(prepared(smooth(0)))
    assert not np.array_equal(scores(adaptation, smooth(0)).argmax(dim=0).numpy(), plain)


def test_the_stored_weights_are_the_same_before_and_after_every_volume_of_every_model_it_is_for(
    adaptation: Adaptation,
) -> None:
    for component in adaptation.adapts:
        model, (_, stable) = make_segmenter(component), models_for(adaptation)
        networks = [one.network for one in (model, stable) if one is not None]
        before = [state_hash(network) for network in networks]
        adapted = AdaptedSegmenter(adaptation, model, stable)
        for seed in (0, 1):
            adapted.predict(smooth(seed))
            assert [state_hash(network) for network in networks] == before
        assert [hooks_of(network) for network in networks] == [[]] * len(networks)


def test_a_volume_does_not_depend_on_the_one_before_it(adaptation: Adaptation) -> None:
    after_another, alone = (AdaptedSegmenter(adaptation, *models_for(adaptation)) for _ in range(2))
    after_another.predict(smooth(0))
    np.testing.assert_array_equal(after_another.predict(smooth(1)), alone.predict(smooth(1)))


def test_the_same_generator_gives_the_same_scores(adaptation: Adaptation) -> None:
    torch.manual_seed(0)
    one = scores(adaptation, smooth(0))
    torch.manual_seed(1)
    assert torch.equal(one, scores(adaptation, smooth(0)))


def test_a_constant_volume_gives_finite_scores(adaptation: Adaptation) -> None:
    flat = Volume(np.full((16, 16, 16), 7, dtype=np.float32), np.eye(4))
    assert torch.isfinite(scores(adaptation, flat)).all()


def test_a_volume_smaller_than_the_crop_gets_a_mask_of_its_size(adaptation: Adaptation) -> None:
    small = smooth(0, (9, 12, 7))
    mask = AdaptedSegmenter(adaptation, *models_for(adaptation)).predict(small)
    assert mask.shape == (9, 12, 7)


def test_it_works_with_features_of_windows(adaptation: Adaptation) -> None:
    model, stable = models_for(adaptation)
    if stable is not None:
        stable = make_segmenter(Component.of("rep_only"), seed=1, feature_scope="window")
    assert torch.isfinite(AdaptedSegmenter(adaptation, model, stable).logits(prepared(smooth(0)))).all()


def test_stored_features_give_what_extracted_ones_give(adaptation: Adaptation) -> None:
    model, stable = models_for(adaptation)
    if stable is None:
        model = make_segmenter(Component.of("dropgen", p=0))
    volume = prepared(smooth(0))
    adapted = AdaptedSegmenter(adaptation, model, stable)
    features = (stable or model).raw_features(volume)
    assert features is not None
    assert torch.equal(adapted.logits(volume, features), adapted.logits(volume))


def test_every_value_of_the_search_space_can_be_built(adaptation: Adaptation) -> None:
    assert adaptation.search_space
    for name, values in adaptation.search_space.items():
        for value in values:
            assert getattr(build(Component.of(adaptation.name, **{name: value})), name) == value


def test_its_label_is_read_back(adaptation: Adaptation) -> None:
    options = {key: value for key, value in dataclasses.asdict(adaptation).items() if value is not None}
    assert build(Component.parse(Component.of(adaptation.name, **options).label)) == adaptation


def test_it_says_what_it_is_and_where_it_comes_from(adaptation: Adaptation) -> None:
    assert ADAPTATIONS[adaptation.name] is type(adaptation)
    assert type(adaptation).__doc__
    assert adaptation.source
    assert adaptation.kind == "adaptation"
