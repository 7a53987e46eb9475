"""`dropgen segment --adapt`: the same folder, with a test-time method around the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.config import Component
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.adaptation import build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("erm", 0), ("rep_only", 1)):
        make_segmenter(Component.of(name), seed=seed).save(tmp_path / name)
    return tmp_path / "erm", tmp_path / "rep_only"


@pytest.mark.parametrize("adapt", ["tent learning_rate=0.1 steps=2", "sfb steps=1", "alpha alpha=0.5"])
def test_masks_are_those_of_the_adapted_segmenter(
    scans: Path, tmp_path: Path, bundles: tuple[Path, Path], adapt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, stable = bundles
    masks = tmp_path / "masks"
    words = ["segment", str(scans), str(masks), "--bundle", str(model), "--adapt", adapt, "--json"]
    if not adapt.startswith("tent"):
        words += ["--stable-bundle", str(stable)]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["done"] == 3
    assert document["model"]["uri"].endswith(f" + {adapt}")
    partner = None if adapt.startswith("tent") else Segmenter.load(stable)
    segmenter = AdaptedSegmenter(build(Component.parse(adapt)), Segmenter.load(model), partner)
    found = read_mask(masks / "bert.nii.gz").array
    np.testing.assert_array_equal(found, segmenter.predict(read_volume(scans / "bert.nii")))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3


def test_another_method_or_stable_model_makes_new_masks(
    scans: Path, tmp_path: Path, bundles: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, stable = bundles
    other = tmp_path / "other"
    make_segmenter(Component.of("rep_only"), seed=2).save(other)
    for adapt, partner in (("alpha alpha=0.5", stable), ("alpha alpha=0.6", stable), ("alpha alpha=0.6", other)):
        words = ["segment", scans, tmp_path / "masks", "--bundle", model, "--adapt", adapt, "--stable-bundle", partner]
        assert main([*map(str, words), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["done"] == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--adapt", "sfb"], "sfb needs a second, stable model of method rep_only"),
        (["--stable-bundle", "erm"], "--stable-bundle is for the test-time methods sfb and alpha"),
        (["--adapt", "tnet"], "did you mean 'tent'"),
        (["--adapt", "tent", "--url", "http://127.0.0.1:1"], "--url excludes --bundle and --adapt"),
        (["--adapt", "tent step"], "is not a name with options"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(
    scans: Path, tmp_path: Path, bundles: tuple[Path, Path], words: list[str], sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = [] if "--url" in words else ["--bundle", str(bundles[0])]
    assert main(["segment", str(scans), str(tmp_path / "masks"), *model, *words]) == 2
    assert sentence in capsys.readouterr().err
