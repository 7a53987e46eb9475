"""What `dropgen segment --url` says of masks is what the service says: their version, and what is odd about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dropgen.config import Component
from dropgen.features.studies.volume import Volume
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving import models as models_module
from dropgen.serving.backend import Service
from dropgen.serving.cases import Scan, find_cases
from dropgen.serving.client import Client
from dropgen.serving.quality import find
from tests_support.live import live
from tests_support.segmenters import make_segmenter


@pytest.fixture
def scan(scans: Path, tmp_path: Path) -> Scan:
    return find_cases(scans, tmp_path / "masks").scans[0]


def test_a_run_keeps_the_version_that_it_tells_of_though_the_alias_is_moved(
    scan: Scan, segmenter: Segmenter, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "POLL_SECONDS", 0.0)  # else the service itself keeps to the old one for a while
    root = tmp_path / "root"
    register(root, bundle, "blobs")
    other = make_segmenter(Component.of("dropgen", p=0.5), seed=3, classes=segmenter.spec.classes)
    other.save(tmp_path / "other")
    image = scan.load().channels[0]
    mine, others = segmenter.predict(image), other.predict(image)
    assert not np.array_equal(mine, others)
    with live(root, "blobs@champion", None) as url:
        client = Client(url)
        begun = Service(client, client.model(), None)
        register(root, tmp_path / "other", "blobs")
        with begun.segment(scan) as result:
            np.testing.assert_array_equal(result.mask.array, mine)
        model = client.model()
        assert model.version == "2"
        with Service(client, model, None).segment(scan) as result:
            np.testing.assert_array_equal(result.mask.array, others)


def test_what_is_odd_about_a_mask_is_told_as_the_service_says_it(
    scan: Scan, segmenter: Segmenter, tmp_path: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    usual = record_classes([segmenter.predict(oblique_volume(seed)) for seed in (6, 6)], 0.002, ("b", "left", "right"))
    far = usual["right"].model_copy(update={"log_ml": 9.0, "log_sd": 0.01, "present": 9})
    spec = segmenter.spec.model_copy(update={"training": {"left": usual["left"], "right": far}})
    Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(tmp_path / "bundle")
    root = tmp_path / "root"
    register(root, tmp_path / "bundle", "odd")
    with live(root, "odd@champion", None) as url:
        client = Client(url)
        with Service(client, client.model(), None).segment(scan) as result:
            flags = find(result, spec.classes, {}).flags
    assert any(flag.startswith("right has ") and " ml, expected " in flag for flag in flags)
