from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.errors import ConfigError, ResourceError, ServiceError
from dropgen.features.studies.volume import Volume, read_mask, read_note, read_volume, write_volume
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.batch import Asked
from dropgen.serving.cases import Scan, find_cases
from dropgen.serving.models import Model
from dropgen.serving.quality import Segmented
from tests_support.folders import segment_folder

Segment = Callable[[Scan], Segmented]


@pytest.fixture
def counted(segmenter: Segmenter) -> tuple[Segment, list[str]]:
    """The real model, and the names of the files that reached it."""
    seen: list[str] = []

    def segment(scan: Scan) -> Segmented:
        volume = scan.load().channels[0]
        seen.append(scan.file)
        return Segmented(volume, Volume(segmenter.predict(volume), volume.affine))

    return segment, seen


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "outcomes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_masks_are_the_segmenters_own_with_voxels_counted(
    scans: Path, tmp_path: Path, bundle: Path, segmenter: Segmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    assert main(["segment", str(scans), str(masks), "--bundle", str(bundle), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [document[kind] for kind in ("done", "skipped", "failed")] == [3, 0, 0]
    assert sorted(stamps(masks)) == ["anna.nii.gz", "bert.nii.gz", "carl.nii.gz"]
    for row in rows(masks):
        scan, mask = read_volume(scans / row["file"]), read_mask(masks / f"{row['case']}.nii.gz")
        np.testing.assert_array_equal(mask.array, segmenter.predict(scan))
        np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-5)
        assert [int(row["voxels left"]), int(row["voxels right"])] == [(mask.array == 1).sum(), (mask.array == 2).sum()]


def test_a_mask_says_in_its_header_who_made_it_and_what_it_is_for(scans: Path, tmp_path: Path, bundle: Path) -> None:
    assert main(["segment", str(scans), str(tmp_path / "masks"), "--bundle", str(bundle), "--root", str(tmp_path)]) == 0
    note = read_note(tmp_path / "masks" / "anna.nii.gz")
    assert note is not None
    assert note.startswith("research use only; toy ")
    model = Model.of(bundle, "")
    assert model.version.startswith(note.rpartition(" ")[2])
    (comment,) = nib.load(tmp_path / "masks" / "anna.nii.gz").header.extensions
    said = json.loads(comment.text)
    assert (said["algorithm"], said["version"], said["use"]) == ("toy", model.version, "research use only")
    assert [(one["name"], one["values"]) for one in said["segments"]] == [("left", [1]), ("right", [2])]


def test_broken_file_costs_that_file_only(
    scans: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (scans / "anna.nii.gz").read_bytes()
    (scans / "anna.nii.gz").write_bytes(whole[:-200])
    masks = tmp_path / "masks"
    arguments = ["segment", str(scans), str(masks), "--bundle", str(bundle), "--json"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert "1 of 3 scans failed: anna.nii.gz" in err.strip().splitlines()[-1]
    assert json.loads(out)["failed"] == 1
    assert [row["outcome"] for row in rows(masks)] == ["failed", "done", "done"]
    assert "truncated" in rows(masks)[0]["reason"]

    (scans / "anna.nii.gz").write_bytes(whole)
    assert main(arguments) == 0
    assert [row["outcome"] for row in rows(masks)] == ["done", "skipped", "skipped"]


def test_second_run_does_only_what_is_missing_or_changed(
    scans: Path,
    tmp_path: Path,
    model: Model,
    counted: tuple[Segment, list[str]],
    oblique_volume: Callable[[int], Volume],
) -> None:
    segment, seen = counted
    masks = tmp_path / "masks"
    first = segment_folder(scans, masks, model, segment)
    before = stamps(masks)
    seen.clear()
    second = segment_folder(scans, masks, model, segment)
    assert (seen, stamps(masks), second["skipped"]) == ([], before, 3)
    assert [case["findings"] for case in second["cases"]] == [case["findings"] for case in first["cases"]]
    assert all(case["findings"]["voxels"] for case in first["cases"])

    changed = oblique_volume(9)
    write_volume(scans / "bert.nii", changed.array, changed.affine)
    (masks / "carl.nii.gz").unlink()
    segment_folder(scans, masks, model, segment)
    assert seen == ["bert.nii", "carl_0000.nii.gz"]

    seen.clear()
    another = replace(model, digest="another")
    segment_folder(scans, masks, another, segment)
    assert len(seen) == 3
    seen.clear()
    segment_folder(scans, masks, another, segment, Asked(modality="MR"))
    assert len(seen) == 3


def test_failure_leaves_no_mask_of_an_earlier_file(
    scans: Path, tmp_path: Path, model: Model, counted: tuple[Segment, list[str]]
) -> None:
    masks = tmp_path / "masks"
    segment_folder(scans, masks, model, counted[0])
    (scans / "bert.nii").write_bytes(b"no longer a scan")
    document = segment_folder(scans, masks, model, counted[0])
    assert document["failed"] == 1
    assert sorted(stamps(masks)) == ["anna.nii.gz", "carl.nii.gz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ServiceError])
def test_stop_in_the_middle_keeps_what_is_done(
    scans: Path, tmp_path: Path, model: Model, counted: tuple[Segment, list[str]], error: type[BaseException]
) -> None:
    segment, seen = counted
    masks = tmp_path / "masks"

    def stopping(scan: Scan) -> Segmented:
        if scan.file == "bert.nii":
            raise error("stop")
        return segment(scan)

    with pytest.raises(error):
        segment_folder(scans, masks, model, stopping)
    assert [row["outcome"] for row in rows(masks)] == ["done"]
    segment_folder(scans, masks, model, segment)
    assert seen == ["anna.nii.gz", "bert.nii", "carl_0000.nii.gz"]
    assert not list(masks.glob(".*.partial"))


@pytest.mark.parametrize("pair", [("a.nii", "a.nii.gz"), ("a_0000.nii.gz", "a.nii.gz"), ("A.nii.gz", "a.nii.gz")])
def test_two_scans_for_one_mask_are_refused_by_name(tmp_path: Path, pair: tuple[str, str]) -> None:
    for name in pair:
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as caught:
        find_cases(tmp_path, tmp_path / "masks")
    assert all(name in str(caught.value) for name in pair)


def test_folders_that_cannot_be_meant_are_refused(
    scans: Path, tmp_path: Path, model: Model, counted: tuple[Segment, list[str]]
) -> None:
    segment, seen = counted
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "._a.nii.gz").touch()  # what macOS leaves on foreign disks
    with pytest.raises(ConfigError, match=r"holds no \.nii"):
        find_cases(tmp_path / "empty", tmp_path / "masks")
    with pytest.raises(ConfigError, match="is not a folder"):
        find_cases(tmp_path / "nowhere", tmp_path / "masks")
    with pytest.raises(ConfigError, match="overwrite the scans"):
        segment_folder(scans, scans, model, segment)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be made"):
        segment_folder(scans, tmp_path / "file", model, segment)
    labels = tmp_path / "labels"
    labels.mkdir()
    shutil.copy(scans / "anna.nii.gz", labels / "carl.nii.gz")
    kept = (labels / "carl.nii.gz").read_bytes()
    with pytest.raises(ConfigError, match=r"carl\.nii\.gz exists but was not written by"):
        segment_folder(scans, labels, model, segment)
    assert (labels / "carl.nii.gz").read_bytes() == kept
    assert seen == []


def test_full_disk_stops_the_run_with_one_sentence(
    scans: Path, tmp_path: Path, model: Model, counted: tuple[Segment, list[str]]
) -> None:
    masks = tmp_path / "masks"

    def locking(scan: Scan) -> Segmented:
        mask = counted[0](scan)
        shutil.rmtree(masks)
        masks.touch()  # a file where the folder was: no write can succeed, also for root
        return mask

    with pytest.raises(ResourceError, match="cannot write"):
        segment_folder(scans, masks, model, locking)


def test_unreachable_service_is_one_sentence(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(scans), str(tmp_path / "masks"), "--url", "http://127.0.0.1:9"]) == 2
    assert "cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()


@pytest.mark.slow
def test_ctrl_c_of_the_command_keeps_finished_masks(
    tmp_path: Path, bundle: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    scans, masks = tmp_path / "scans", tmp_path / "masks"
    for seed in range(20):
        volume = oblique_volume(seed)
        write_volume(scans / f"case{seed:02d}.nii", volume.array, volume.affine)
    words = ["segment", str(scans), str(masks), "--bundle", str(bundle), "--workers", "0", "--in-flight", "2"]
    command = [sys.executable, "-m", "dropgen", *words]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    deadline = time.monotonic() + 120
    while len(stamps(masks)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command continues" in err
    done = [row["case"] for row in rows(masks) if row["outcome"] == "done"]
    assert 3 <= len(done) < 20  # the last mask may be on disk and not yet on record
    before = stamps(masks)
    for case in done:
        assert read_mask(masks / f"{case}.nii.gz").array.any()
    assert main(words) == 0
    assert [row["outcome"] for row in rows(masks)].count("skipped") == len(done)
    assert {name: stamps(masks)[name] for name in (f"{case}.nii.gz" for case in done)} == {
        name: before[name] for name in (f"{case}.nii.gz" for case in done)
    }
