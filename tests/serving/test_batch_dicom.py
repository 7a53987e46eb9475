"""`dropgen segment` on DICOM trees: masks and DICOM-SEG, what is quarantined, and what the audit log says."""

from __future__ import annotations

import csv
import getpass
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from pydicom import dcmread
from pydicom.uid import UID

from dropgen.__main__ import main
from dropgen.config import Component
from dropgen.features.studies.codes import Code
from dropgen.features.studies.dicom import read_series
from dropgen.features.studies.volume import Volume, read_mask, read_volume, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from tests_support.dicom import make_slices, write_slices
from tests_support.segmenters import make_segmenter
from tests_support.service import build

GOOD, GAP, SCOUT = UID("1.2.3.4"), UID("1.2.3.5"), UID("1.2.3.6")
CODE = {"scheme": "SCT", "value": "87878005", "meaning": "Left ventricle", "abnormal": False}


@pytest.fixture
def tree(tmp_path: Path, oblique_volume: Any) -> Path:
    """A study of three series: one good, one that lacks its third slice, one of localizers."""
    volume = oblique_volume(0)
    volume = Volume(np.rint(volume.array), volume.affine)
    folder = tmp_path / "export"
    write_slices(folder / "Meier" / "1", make_slices(volume, GOOD))
    gap = make_slices(volume, GAP)
    del gap[2]
    write_slices(folder / "Meier" / "2" / "deep", gap)
    scout = make_slices(volume, SCOUT)[:3]
    for one in scout:
        one.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slices(folder / "Meier" / "1", scout)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "outcomes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    code = main(["segment", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_a_tree_gives_a_mask_and_a_dicom_seg_of_what_is_sound_and_says_of_the_rest_why(
    tree: Path, tmp_path: Path, bundle: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    code, document, err = run(
        capsys, tree, masks, "--bundle", bundle, "--dicom-seg", "labelmap", "--root", tmp_path / "runs"
    )
    assert code == 2
    assert [document[kind] for kind in ("done", "skipped", "failed", "left_out")] == [1, 0, 1, 1]
    told = {row["case"]: (row["file"], row["outcome"], row["reason"]) for row in rows(masks)}
    assert told[GOOD] == ("Meier/1", "done", "")
    assert told[GAP][:2] == ("Meier/2/deep", "failed")
    assert "1 missing between slices 4 and 2" in told[GAP][2]
    assert told[SCOUT] == ("Meier/1", "left out", "series 6, CT, 3 files: it is a localizer")
    assert "1 of 2 scans failed: Meier/2/deep" in err
    assert "segment:  Meier/1 (series 4, CT, 19 files)" in err
    assert "left out: Meier/1 (series 6, CT, 3 files: it is a localizer)" in err
    assert {path.name for path in masks.iterdir() if not path.name.startswith(".")} == {
        "outcomes.csv", "outcomes.html", f"{GOOD}.nii.gz", f"{GOOD}.png", f"{GOOD}.seg.dcm",
    }  # fmt: skip

    series = read_series(sorted(path for path in tree.rglob("*") if path.is_file() and belongs(path, GOOD)), 10**6)
    mask = read_mask(masks / f"{GOOD}.nii.gz")
    np.testing.assert_array_equal(mask.array, segmenter.predict(series.volume))
    np.testing.assert_allclose(mask.affine, series.volume.affine, atol=1e-4)
    seg = dcmread(masks / f"{GOOD}.seg.dcm")
    frames = {
        tuple(groups.PlanePositionSequence[0].ImagePositionPatient): frame
        for frame, groups in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True)
    }
    for index in range(mask.array.shape[2]):
        slice_ = dcmread(sorted_slices(tree)[series.order[index]])
        frame = frames.get(tuple(slice_.ImagePositionPatient))
        expected = mask.array[:, :, index].T
        assert (frame is None and not expected.any()) or np.array_equal(frame, expected)


def belongs(path: Path, series: str) -> bool:
    return bool(dcmread(path, stop_before_pixels=True).SeriesInstanceUID == series)


def sorted_slices(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file() and belongs(path, GOOD))


def test_every_result_has_its_line_in_the_audit_log_and_no_name_gets_there(
    tree: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, root = tmp_path / "masks", tmp_path / "runs"
    log = root / "service" / "audit.jsonl"
    register(root, bundle, "blobs")
    words = (tree, masks, "--name", "blobs", "--dicom-seg", "--root", root)
    run(capsys, *words)
    (line,) = log.read_text().splitlines()
    entry, seg = json.loads(line), (masks / f"{GOOD}.seg.dcm").read_bytes()
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted_slices(tree))
    assert {key: value for key, value in entry.items() if key not in ("time", "digest", "run")} == {
        "who": getpass.getuser(),
        "input_sha256": hashlib.sha256("".join(hashes).encode()).hexdigest(),
        "model": "blobs",
        "version": "1",
        "output_sha256": hashlib.sha256((masks / f"{GOOD}.nii.gz").read_bytes()).hexdigest(),
        "sop_instance_uid": dcmread(masks / f"{GOOD}.seg.dcm").SOPInstanceUID,
        "dicom_sha256": hashlib.sha256(seg).hexdigest(),
        "use": "research use only",
    }
    assert "Meier" not in line
    _, document, _ = run(capsys, *words)
    assert document["skipped"] == 1
    assert log.read_text().splitlines() == [line]
    (masks / f"{GOOD}.nii.gz").unlink()
    run(capsys, *words)
    assert log.read_text().splitlines()[0] == line
    assert len(log.read_text().splitlines()) == 2


def test_a_dicom_seg_that_is_missing_or_of_another_type_is_made_and_one_not_asked_for_is_not_kept(
    tree: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    seg = masks / f"{GOOD}.seg.dcm"
    words = (tree, masks, "--bundle", bundle, "--root", tmp_path / "runs")
    run(capsys, *words, "--dicom-seg")
    assert dcmread(seg).SegmentationType == "LABELMAP"
    seg.unlink()
    assert run(capsys, *words, "--dicom-seg")[1]["done"] == 1
    assert run(capsys, *words, "--dicom-seg")[1]["skipped"] == 1
    assert run(capsys, *words, "--dicom-seg", "binary")[1]["done"] == 1
    assert dcmread(seg).SegmentationType == "BINARY"
    assert run(capsys, *words)[1]["done"] == 1
    assert not seg.exists()


@contextmanager
def listening(root: Path) -> Iterator[str]:
    """The service on loopback, as `dropgen serve` has it behind Ray."""
    server = uvicorn.Server(uvicorn.Config(build(root), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_through_a_service_masks_and_dicom_seg_are_the_same(
    tree: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    register(root, bundle, "blobs")
    words = ("--dicom-seg", "labelmap", "--root", root)
    _, here, _ = run(capsys, tree, tmp_path / "here", "--name", "blobs", *words)
    with listening(root) as url:
        _, there, _ = run(capsys, tree, tmp_path / "there", "--url", url, *words)
    assert here["model"] == there["model"]
    assert [case["findings"] for case in here["cases"]] == [case["findings"] for case in there["cases"]]
    masks = [read_mask(tmp_path / name / f"{GOOD}.nii.gz") for name in ("here", "there")]
    np.testing.assert_array_equal(masks[0].array, masks[1].array)
    np.testing.assert_allclose(masks[0].affine, masks[1].affine, atol=1e-5)  # NIfTI on the way stores float32
    one, other = (dcmread(tmp_path / name / f"{GOOD}.seg.dcm") for name in ("here", "there"))
    assert one.PixelData == other.PixelData
    assert one.SegmentSequence == other.SegmentSequence


def test_a_folder_may_hold_both_formats_and_a_seg_of_nifti_alone_is_refused(
    tree: Path, tmp_path: Path, bundle: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (scans, tmp_path / "masks", "--bundle", bundle, "--dicom-seg", "labelmap", "--root", tmp_path / "runs")
    assert main(["segment", *map(str, words)]) == 2
    assert "--dicom-seg needs DICOM series" in capsys.readouterr().err
    (tree / "Meier").rename(scans / "Meier")
    _, document, _ = run(capsys, *words)
    assert [document[kind] for kind in ("done", "failed", "left_out")] == [4, 1, 1]
    assert [path.name for path in (tmp_path / "masks").glob("*.dcm")] == [f"{GOOD}.seg.dcm"]


def test_the_modality_is_the_manifests_or_the_tags_and_two_that_differ_are_refused(
    tree: Path, tmp_path: Path, oblique_volume: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    rules = {"ct": "hu", "mr": "minmax"}
    make_segmenter(Component.of("erm"), intensity=rules, codes={}).save(folder)
    segmenter = Segmenter.load(folder)
    words = ("--bundle", folder, "--root", tmp_path / "runs")
    run(capsys, tree, tmp_path / "by-tag", *words)
    series = read_series(sorted_slices(tree), 10**6)
    found = read_mask(tmp_path / "by-tag" / f"{GOOD}.nii.gz").array
    np.testing.assert_array_equal(found, segmenter.predict(series.volume, modality="ct"))

    code, document, _ = run(capsys, tree, tmp_path / "against", *words, "--modality", "mr")
    reasons = {case["case"]: case["reason"] for case in document["cases"]}
    assert code == 2
    assert "given as 'mr' and its DICOM tag says CT" in reasons[GOOD]

    volume = oblique_volume(1)
    write_volume(tmp_path / "a.nii.gz", volume.array, volume.affine)
    write_volume(tmp_path / "b.nii.gz", volume.array, volume.affine)
    (tmp_path / "list.csv").write_text("image,modality\na.nii.gz,mr\nb.nii.gz,\n")
    code, document, _ = run(capsys, tmp_path / "list.csv", tmp_path / "listed", *words, "--modality", "ct")
    assert (code, document["done"]) == (0, 2)
    for name, modality in (("a", "mr"), ("b", "ct")):
        found = read_mask(tmp_path / "listed" / f"{name}.nii.gz").array
        np.testing.assert_array_equal(
            found, segmenter.predict(read_volume(tmp_path / f"{name}.nii.gz"), modality=modality)
        )


def test_codes_of_the_study_are_those_of_the_file(
    tree: Path, tmp_path: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = segmenter.spec.model_copy(update={"codes": {"left": Code.model_validate(CODE)}})
    bundle = tmp_path / "coded"
    Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(bundle)
    register(tmp_path / "runs", bundle, "coded")
    _, document, _ = run(capsys, tree, tmp_path / "m", "--name", "coded", "--root", tmp_path / "runs", "--dicom-seg")
    assert document["model"]["codes"] == {"left": CODE}
    segments = {item.SegmentLabel: item for item in dcmread(tmp_path / "m" / f"{GOOD}.seg.dcm").SegmentSequence}
    assert segments["left"].SegmentedPropertyTypeCodeSequence[0].CodeValue == "87878005"
    assert segments["right"].SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator == "99DROPGEN"
