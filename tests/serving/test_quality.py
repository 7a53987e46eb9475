"""What `dropgen segment` tells of its masks: columns, flags, previews, and how sure the model is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dropgen import memory
from dropgen.__main__ import main
from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import read_mask, read_volume
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.evaluation.uncertainty import predict_uncertain
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.models import Model
from tests_support.folders import segment_folder
from tests_support.segmenters import make_segmenter


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "outcomes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def segment(scans: Path, masks: Path, bundle: Path, *more: str) -> int:
    return main(["segment", str(scans), str(masks), "--bundle", str(bundle), "--json", *more])


def test_every_mask_has_a_preview_volumes_and_fragments(
    scans: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    assert segment(scans, masks, bundle) == 0
    out, err = capsys.readouterr()
    assert sorted(path.name for path in masks.glob("*.png")) == ["anna.png", "bert.png", "carl.png"]
    assert not list(masks.glob(".*.partial")) and not list(masks.glob("*.entropy.nii.gz"))
    for row, case in zip(rows(masks), json.loads(out)["cases"], strict=True):
        mask = read_mask(masks / f"{row['case']}.nii.gz")
        voxel_ml = 1.3 * 0.9 * 1.7 / 1000
        for value, name in enumerate(("left", "right"), 1):
            voxels = np.count_nonzero(mask.array == value)
            assert int(row[f"voxels {name}"]) == voxels == case["findings"]["voxels"][name]
            assert float(row[f"ml {name}"]) == pytest.approx(voxels * voxel_ml, abs=1e-3)
            assert int(row[f"fragments {name}"]) == case["findings"]["fragments"][name] > 0
        assert (row["flags"], row["entropy"], row["disagreement"]) == ("", "", "")
    assert "memory: anna.nii.gz takes most, 0.0" in err and "GiB are free" in err


def test_a_mask_unlike_those_of_the_training_is_flagged_and_named(
    scans: Path, tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = [segmenter.predict(read_volume(scans / "anna.nii.gz")) for _ in range(2)]
    voxel_ml = 1.3 * 0.9 * 1.7 / 1000
    told = record_classes(masks, voxel_ml, segmenter.spec.classes)
    far = told["right"].model_copy(update={"log_ml": 9.0, "log_sd": 0.01, "present": 9})
    odd = {"left": told["left"], "right": far}
    for name, records in (("usual", told), ("odd", odd)):
        spec = segmenter.spec.model_copy(update={"training": records})
        Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(tmp_path / name)
        assert segment(scans, tmp_path / f"masks-{name}", tmp_path / name) == 0
        err = capsys.readouterr().err
        flags = [row["flags"] for row in rows(tmp_path / f"masks-{name}")]
        if name == "usual":
            assert flags[0] == ""
        else:
            assert all("right has " in flag and " ml, expected " in flag for flag in flags)
            assert "to look at: anna, bert, carl" in err


def test_how_sure_the_model_is_costs_passes_that_are_announced_and_gives_columns_and_maps(
    scans: Path, tmp_path: Path, bundle: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    assert segment(scans, masks, bundle) == 0
    before = (masks / "anna.nii.gz").read_bytes()
    assert segment(scans, masks, bundle, "--uncertainty") == 0
    err = capsys.readouterr().err
    assert "--uncertainty: 3 passes over every volume instead of 1" in err
    assert (masks / "anna.nii.gz").read_bytes() == before
    scan = read_volume(scans / "anna.nii.gz")
    _, expected = predict_uncertain(segmenter, prepare([scan], segmenter.spec.preparation, None))
    for suffix, array in (("entropy", expected.entropy_map), ("disagreement", expected.disagreement_map)):
        found = nib.load(masks / f"anna.{suffix}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), array)
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
    row = rows(masks)[0]
    assert float(row["entropy"]) == pytest.approx(expected.entropy, abs=1e-4)
    assert float(row["disagreement"]) == pytest.approx(expected.disagreement, abs=1e-4)
    assert segment(scans, masks, bundle, "--uncertainty") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["skipped"] == 3
    assert document["cases"][0]["findings"]["entropy"] == float(row["entropy"])


def test_what_stood_beside_a_mask_goes_with_it(scans: Path, tmp_path: Path, bundle: Path) -> None:
    masks = tmp_path / "masks"
    assert segment(scans, masks, bundle, "--uncertainty") == 0
    (scans / "bert.nii").write_bytes(b"no longer a scan")
    assert segment(scans, masks, bundle, "--uncertainty") == 2
    assert not list(masks.glob("bert*"))
    assert len(list(masks.glob("anna*"))) == 4


def test_a_picture_that_is_not_ours_is_not_overwritten(scans: Path, tmp_path: Path, model: Model) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "bert.png").write_bytes(b"holiday")
    with pytest.raises(ConfigError, match=r"bert\.png exists but was not written by"):
        segment_folder(scans, tmp_path / "masks", model, lambda scan: pytest.fail("nothing may be segmented"))


def test_a_file_for_which_there_is_no_memory_is_refused_with_numbers_before_it_is_read(
    scans: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    whole = (scans / "anna.nii.gz").read_bytes()
    (scans / "anna.nii.gz").write_bytes(whole[:-200])  # truncated: reading it would say so
    assert segment(scans, tmp_path / "masks", bundle) == 2
    reasons = [row["reason"] for row in rows(tmp_path / "masks")]
    assert all("the prediction takes about " in reason and "0.00 GiB are free" in reason for reason in reasons)


@pytest.mark.parametrize("more", [("--adapt", "tent"), ("--url", "http://127.0.0.1:9")])
def test_uncertainty_is_of_one_plain_model_here(
    scans: Path, tmp_path: Path, more: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_segmenter(Component.of("erm")).save(tmp_path / "erm")
    words = ["segment", str(scans), str(tmp_path / "masks"), "--uncertainty", *more]
    assert main([*words, *([] if "--url" in more else ["--bundle", str(tmp_path / "erm")])]) == 2
    assert "--uncertainty asks one plain model" in capsys.readouterr().err
