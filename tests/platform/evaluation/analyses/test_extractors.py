"""Extractors side by side: an unchanged image has CKA 1, and who cannot be built is named."""

from __future__ import annotations

import numpy as np
import pytest

from dropgen.config import Component
from dropgen.features.extractors import build
from dropgen.platform.evaluation.analyses.analysis import Scene
from dropgen.platform.evaluation.analyses.cka import linear_cka
from dropgen.platform.evaluation.analyses.extractors import analyse, rows_of
from tests_support.anatomix import weights


def test_an_unchanged_image_has_cka_1_under_every_extractor(scene: Scene) -> None:
    found = analyse(scene)
    clean = [row for row in found.rows if row["level"] == 0]
    assert {row["kind"] for row in clean} == {"gamma", "bias"}
    assert [row["cka"] for row in clean] == pytest.approx([1.0] * len(clean), abs=1e-9)
    assert all(0 <= row["cka"] <= 1 + 1e-9 for row in found.rows)
    assert {"mind", "image alone", "random"} <= {row["extractor"] for row in found.rows}


def test_the_image_alone_is_told_by_its_own_correlation() -> None:
    image = np.random.default_rng(0).random((12, 12, 12), dtype=np.float32)
    inside = image > 0.1
    extractor = build(Component.of("identity"))
    cka = linear_cka(rows_of(extractor, image[None], inside), rows_of(extractor, image[None] ** 2, inside))
    assert cka == pytest.approx(np.corrcoef(image[inside], image[inside] ** 2)[0, 1] ** 2, abs=1e-5)


def test_a_missing_extractor_is_named_and_both_taps_are_compared_once_its_weights_are_there(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    assert "anatomix" in analyse(scene).said[-1]
    folder = tmp_path_factory.mktemp("weights")
    weights(folder, "random").rename(folder / "anatomix.pth")
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(folder))
    found = analyse(scene)
    taps = [name for name in {row["extractor"] for row in found.rows} if name.startswith("anatomix")]
    assert sorted(taps) == ["anatomix tap=59", "anatomix tap=65"]
