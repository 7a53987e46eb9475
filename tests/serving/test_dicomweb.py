"""`dropgen segment` on a real Orthanc: QIDO and WADO in, STOW out; and an archive that lies."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import UID

from dropgen.__main__ import main
from dropgen.errors import ConfigError
from dropgen.features.studies.volume import Volume, read_mask
from dropgen.platform.segmenter import Segmenter
from dropgen.serving.dicomweb import Archive, read_auth
from tests_support.dicom import STUDY, make_slices
from tests_support.orthanc import PASSWORD, USER, Orthanc, running

pytest.importorskip("dicomweb_client", reason="dicomweb-client is not installed: pip install 'dropgen[dicom-net]'")

GOOD, GAP, OTHER = UID("1.2.3.4"), UID("1.2.3.5"), UID("1.2.3.7")


@pytest.fixture
def whole(oblique_volume: Any) -> Volume:
    volume = oblique_volume(0)
    return Volume(np.rint(volume.array), volume.affine)


@pytest.fixture
def orthanc(tmp_path: Path, whole: Volume) -> Iterator[Orthanc]:
    """An archive of one patient with a good series and one that lacks a slice, and of another patient."""
    with running(tmp_path / "orthanc") as started:
        gap, other = make_slices(whole, GAP), make_slices(whole, OTHER)
        del gap[2]
        for one in other:
            one.PatientID, one.StudyInstanceUID = "P-18", UID("1.2.3.8")
        started.add([*make_slices(whole, GOOD), *gap, *other])
        yield started


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, Any], str]:
    code = main(["segment", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


def test_series_are_found_fetched_and_segmented_and_their_dicom_seg_is_in_the_same_study_once(
    orthanc: Orthanc, tmp_path: Path, bundle: Path, segmenter: Segmenter, whole: Volume,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    masks, root = tmp_path / "masks", tmp_path / "runs"
    monkeypatch.setenv("DROPGEN_DICOMWEB_AUTH", f"{USER}:{PASSWORD}")
    search = f"{orthanc.dicomweb}/series?PatientID=P-17&Modality=CT"
    words = (search, masks, "--store", "--bundle", bundle, "--root", root)
    code, document, err = run(capsys, *words)
    assert code == 2
    assert "1 missing between slices 4 and 2" in err
    outcomes = {case["case"]: case["outcome"] for case in document["cases"]}
    assert outcomes == {str(GOOD): "done", str(GAP): "failed"}
    assert document["stored"] == {"sent": 1, "there": 0, "failed": {}}
    mask = read_mask(masks / f"{GOOD}.nii.gz")
    np.testing.assert_array_equal(np.unique(mask.array), [0, 1, 2])

    archive = Archive(f"{orthanc.dicomweb}/studies/{STUDY}/series?Modality=SEG", read_auth(None))
    (found,) = archive.find()
    assert (found.study, found.modality, found.instances) == (str(STUDY), "SEG", 1)
    seg = dcmread(masks / f"{GOOD}.seg.dcm")
    kept = dcmread(io.BytesIO(orthanc.file(seg.SOPInstanceUID)))
    assert kept.SeriesInstanceUID == found.uid
    assert (kept.PatientID, kept.PixelData) == ("P-17", seg.PixelData)

    lines = [json.loads(line) for line in (root / "service" / "audit.jsonl").read_text().splitlines()]
    assert [line["sop_instance_uid"] for line in lines] == [seg.SOPInstanceUID] * 2
    assert lines[1]["stored"] == orthanc.dicomweb
    assert not any(secret in err + json.dumps(lines) for secret in (PASSWORD, "Meier"))

    code, document, _ = run(capsys, *words)
    assert (document["skipped"], document["stored"]) == (1, {"sent": 0, "there": 1, "failed": {}})
    assert len(archive.find()) == 1

    orthanc.add([make_slices(whole, GAP)[2]])  # the slice arrives late
    code, document, err = run(capsys, *words)
    assert (code, document["done"], document["skipped"]) == (0, 1, 1), err
    assert document["stored"]["sent"] == 1
    assert len(archive.find()) == 2

    code, document, _ = run(capsys, f"{orthanc.dicomweb}/studies/{STUDY}/series", *words[1:])
    reasons = {case["reason"] for case in document["cases"] if case["outcome"] == "left out"}
    assert reasons == {"it is SEG, no CT or MR"}


def test_what_the_archive_refuses_or_lacks_is_one_sentence(
    orthanc: Orthanc, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (tmp_path / "masks", "--bundle", bundle, "--root", tmp_path / "runs")
    search = f"{orthanc.dicomweb}/series?PatientID=P-17"
    code, _, err = run(capsys, search, *words)
    assert (code, "answers 401 to these credentials; give others in DROPGEN_DICOMWEB_AUTH" in err) == (2, True)
    auth = tmp_path / "auth"
    auth.write_text(f"{USER}:{PASSWORD}\n")
    asked = ("--dicomweb-auth", auth)
    code, _, err = run(capsys, search.replace("P-17", "P-99"), *words, *asked)
    assert (code, "has no CT or MR series to fetch by this search" in err) == (2, True)
    code, _, err = run(capsys, f"{orthanc.url}/system/series?PatientID=P-17", *words, *asked)
    assert (code, "answers 404 to the search; check its address, or try later" in err) == (2, True)
    code, _, err = run(capsys, "http://127.0.0.1:1/dicom-web/series?PatientID=P-17", *words)
    assert (code, "cannot be reached (ConnectionError)" in err) == (2, True)
    assert err.count("\n") == 1
    monkeypatch.setattr("dropgen.serving.dicomweb.SERIES_BYTES", 5000)
    code, _, err = run(capsys, search, *words, *asked)
    assert (code, "sends more than 5000 bytes at once" in err) == (2, True)


@pytest.mark.parametrize(
    ("search", "auth", "says"),
    [
        ("https://pacs/dicom-web/series", None, "would fetch the whole archive"),
        ("https://pacs/dicom-web/studies?PatientID=1", None, "no search for series"),
        ("https://anna:secret@pacs/dicom-web/series?PatientID=1", None, "holds a password"),
        ("http://pacs/dicom-web/series?PatientID=1", "anna:secret", "unencrypted; use https"),
        ("file:///etc/series?PatientID=1", None, "is no address"),
        ("https://pacs:port/dicom-web/series?PatientID=1", None, "is no address"),
    ],
)
def test_an_address_that_would_give_something_away_or_is_no_search_is_refused_without_repeating_it(
    search: str, auth: str | None, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Archive(search, auth)
    assert "secret" not in str(caught.value)
    assert "PatientID=1" not in str(caught.value)


def test_store_without_an_archive_is_refused(
    tmp_path: Path, bundle: Path, scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (scans, tmp_path / "masks", "--store", "--bundle", bundle, "--root", tmp_path / "runs")
    code, _, err = run(capsys, *words)
    assert (code, "and the input is none; leave it out" in err) == (2, True)
