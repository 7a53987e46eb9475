from __future__ import annotations

import json
from pathlib import Path

import pytest

from dropgen.config import Component
from dropgen.errors import RegistryError, TooLargeError, VolumeError
from dropgen.platform.bundle import WEIGHTS_FILE
from dropgen.platform.tracking import register
from dropgen.serving.models import POLL_SECONDS, Model, Models
from tests_support.segmenters import make_segmenter


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of `a`, of which the first is the champion, and one of `b`, which needs a modality."""
    root = tmp_path_factory.mktemp("models")
    for seed, (name, alias) in enumerate((("a", "champion"), ("a", "next"), ("b", "champion"))):
        intensity = {"ct": "hu", "mr": "minmax"} if name == "b" else "minmax"
        make_segmenter(Component.of("erm"), seed, intensity=intensity).save(root / str(seed) / "bundle")
        register(root, root / str(seed) / "bundle", name, alias)
    return root


def test_a_model_is_found_by_name_alias_and_version(root: Path) -> None:
    models = Models(root, "a@champion", 2**30)
    assert [models.find(text).registered.version for text in (None, "a", "a@champion", "a@next", "a/2")] == list(
        "11122"
    )
    for missing in ("c", "a@none", "a/3"):
        with pytest.raises(RegistryError):
            models.find(missing)


def test_moving_the_champion_is_the_rollout(root: Path) -> None:
    now = 0.0
    models = Models(root, "a@champion", 2**30, clock=lambda: now)
    first = models.find()
    try:
        register(root, root / "1" / "bundle", "a", "champion")
        assert models.find() is first
        now = POLL_SECONDS
        assert models.find().registered.version == "2"
    finally:
        register(root, root / "0" / "bundle", "a", "champion")


def test_a_masks_comment_has_the_codes_of_classes_and_the_values_of_regions() -> None:
    tumour = {"scheme": "SCT", "value": "108369006", "meaning": "Neoplasm", "abnormal": True}
    model = Model("", "d", ("background", "tumour", "core"), "brain", "3", {"tumour": tumour}, ((1, 2), (2,)))
    assert json.loads(model.comment) == {
        "algorithm": "brain",
        "version": "3",
        "digest": "d",
        "use": "research use only",
        "segments": [
            {"name": "tumour", "values": [1, 2], "code": tumour},
            {"name": "core", "values": [2], "code": None},
        ],
    }


def test_the_least_recently_used_leaves_first_and_the_sum_stays_below_the_cap(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {
        text: (Models(root, text, 1).find().registered.bundle / WEIGHTS_FILE).stat().st_size for text in ("a", "b")
    }
    cap = 2 * max(sizes.values()) + 1000
    monkeypatch.setattr("dropgen.serving.models._resident", lambda: 0)  # the weights alone count
    models = Models(root, "a@champion", cap)
    one, two, three = (models.find(text) for text in ("a/1", "a/2", "b"))
    kept = models.segmenter(one)
    models.segmenter(two)
    assert models.segmenter(one) is kept
    models.segmenter(three)
    assert models.state()["loaded"] == [one.model.digest, three.model.digest]
    assert models.state()["bytes"] <= cap


def test_a_model_that_cannot_fit_is_refused_with_numbers(root: Path) -> None:
    models = Models(root, "a@champion", 1000)
    with pytest.raises(TooLargeError, match=r"takes .* MiB of memory where all models together may take 0\.0 MiB"):
        models.segmenter(models.find())


def test_a_model_that_needs_a_modality_says_so_before_it_sees_a_volume(root: Path) -> None:
    served = Models(root, "b@champion", 2**30).find()
    served.require_modality("ct")
    for wrong in (None, "xray"):
        with pytest.raises(VolumeError, match="one of ct, mr"):
            served.require_modality(wrong)
