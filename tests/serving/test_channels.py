"""Models of several channels: folders and manifests of their images, and what a service says to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features.studies.volume import Volume, read_mask, read_volume, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.cases import find_cases
from dropgen.serving.channels import with_channels
from dropgen.serving.models import Models
from tests_support.segmenters import make_segmenter
from tests_support.service import build, call, nifti

NAMES = ("t1", "flair")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Segmenter, Path]:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5), channels=NAMES)
    folder = tmp_path_factory.mktemp("two") / "bundle"
    segmenter.save(folder)
    return segmenter, folder


def noise(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).random((17, 18, 19), np.float32), np.diag([1.0, 1.1, 0.9, 1.0]))


def write(path: Path, seed: int) -> Volume:
    volume = noise(seed)
    write_volume(path, volume.array, volume.affine)
    return read_volume(path)  # a file's affine is float32


def test_a_folder_in_nnunets_names_is_segmented_case_by_case(
    two: tuple[Segmenter, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segmenter, bundle = two
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    pairs = {
        case: tuple(write(scans / f"{case}_{channel:04d}.nii.gz", 10 * index + channel) for channel in range(2))
        for index, case in enumerate(("anna", "bert"))
    }
    write(scans / "carl_0000.nii.gz", 5)
    write(scans / "dora.nii.gz", 6)
    call_of = ["segment", str(scans), str(masks), "--bundle", str(bundle), "--root", str(tmp_path), "--json"]
    assert main(call_of) == 2
    document = json.loads(capsys.readouterr().out)
    assert (document["done"], document["failed"]) == (2, 2)
    reasons = {case["case"]: case["reason"] for case in document["cases"] if case["outcome"] == "failed"}
    assert reasons["carl"] == "channel flair is missing; the model takes 2 channels, t1, flair"
    assert reasons["dora"] == "the model takes 2 channels, t1, flair: a case is dora_0000 to _0001"
    for case, channels in pairs.items():
        np.testing.assert_array_equal(read_mask(masks / f"{case}.nii.gz").array, segmenter.predict(*channels))
        assert (masks / f"{case}.png").is_file()
    write(scans / "anna_0001.nii.gz", 77)  # another second channel makes the mask anew
    main(call_of)
    document = json.loads(capsys.readouterr().out)
    assert {case["case"]: case["outcome"] for case in document["cases"]} == {
        "anna": "done", "bert": "skipped", "carl": "failed", "dora": "failed",
    }  # fmt: skip


def test_a_manifest_gives_the_channels_in_any_order(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.nii.gz", 0)
    manifest = tmp_path / "list.csv"
    manifest.write_text("image_flair,image_t1,id\nb.nii.gz,a.nii.gz,one\n")
    cases = find_cases(manifest, tmp_path / "masks")
    (scan,) = with_channels(cases, NAMES, manifest).scans
    assert [path.name for path in scan.paths] == ["a.nii.gz", "b.nii.gz"]
    for channels, told in ((("t1", "t2"), "and the model takes 2 channels, t1, t2"), ((), "and the model takes one")):
        with pytest.raises(ConfigError, match=f"names the channels flair, t1 {told}"):
            with_channels(cases, channels, manifest)


def test_for_a_model_of_one_channel_every_file_stays_a_scan(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "scans" / f"scan_{number:04d}.nii.gz", number)
    cases = find_cases(tmp_path / "scans", tmp_path / "masks")
    assert with_channels(cases, (), tmp_path) is cases
    assert [scan.case for scan in cases.scans] == ["scan", "scan_0001", "scan_0002"]


def test_channels_that_lie_on_other_grids_fail_with_their_names(
    two: tuple[Segmenter, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = write(tmp_path / "scans" / "anna_0000.nii.gz", 0)
    moved = replace(volume, affine=volume.affine @ np.diag([2.0, 1.0, 1.0, 1.0]))
    write_volume(tmp_path / "scans" / "anna_0001.nii.gz", moved.array, moved.affine)
    main(["segment", str(tmp_path / "scans"), str(tmp_path / "masks"), "--bundle", str(two[1]), "--root",
          str(tmp_path), "--json"])  # fmt: skip
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    assert case["reason"].startswith("channel flair is not on the grid of channel t1: step of axis x")


def test_the_service_refuses_before_the_body_and_says_who_does_not(two: tuple[Segmenter, Path], tmp_path: Path) -> None:
    register(tmp_path, two[1], "pairs")
    api = build(tmp_path, models=Models(tmp_path, "pairs@champion", 2**30))
    for route in ("/v1/segment", "/v1/jobs"):
        answer = call(api, "POST", route, content=nifti(noise(0).array))
        assert answer.status_code == 400
        assert answer.json()["error"] == (
            "model 'pairs' takes images of 2 channels, t1, flair, and the service takes one volume; segment such "
            "images with dropgen segment, without --url"
        )
    assert call(api, "GET", "/healthz").json()["model"]["channels"] == list(NAMES)
