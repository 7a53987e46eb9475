from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dropgen.errors import StudyError
from dropgen.features.studies import phantom
from dropgen.features.studies.check import check_study
from dropgen.features.studies.phantom import PhantomSpec, draw_tissue, make_phantom_study, random_curve
from dropgen.features.studies.study import load_study
from dropgen.features.studies.validation import validation_cases
from dropgen.manifest import file_digest

SMALL = PhantomSpec(size=32, train_subjects=3, val_subjects=2, test_subjects=1, ellipsoids=1, tubes=1, distractors=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom_study(tmp_path_factory.mktemp("phantom") / "study", spec=SMALL).parent


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def test_the_study_is_sound_and_its_domains_are_apart(folder: Path) -> None:
    study = load_study(folder / "study.yaml", folder)
    assert check_study(study) == []
    assert study.train_domains == {"source"}
    assert {case.domain for case in study.split("val")} == {"curves"}
    assert {case.domain for case in study.split("test")} == {"source", "inverted", "remapped", "noisy", "biased"}
    assert len(validation_cases(study, "target_validation")) == 2
    assert len({case.subject for case in study.cases}) == len(study.cases) == 10


def test_it_is_an_nnunet_raw_folder_even_without_its_manifest(folder: Path, tmp_path: Path) -> None:
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "ellipsoid": 1, "tube": 2} and description["numTraining"] == 3
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if path.name != "manifest.csv":
            (bare / path.name).symlink_to(path)
    listed, scanned = (load_study(place / "study.yaml", place) for place in (folder, bare))
    assert {(case.id, case.split) for case in listed.cases} == {(case.id, case.split) for case in scanned.cases}


def test_one_file_is_stored_lps_and_one_with_permuted_axes(folder: Path) -> None:
    codes = [nib.aff2axcodes(nib.load(path).affine) for path in sorted(folder.glob("images*/*.nii.gz"))]
    stored = sorted("".join(code) for code in codes)
    assert stored == ["LPS", *["RAS"] * 8, "SLA"]
    labels = [nib.aff2axcodes(nib.load(path).affine) for path in sorted(folder.glob("labels*/*.nii.gz"))]
    assert labels == codes


def test_storage_changes_the_axis_order_and_not_the_content(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for codes in ("RAS", "LPS", "SLA"):
        phantom._store(tmp_path / f"{codes}.nii.gz", array, codes)
    images = [nib.as_closest_canonical(nib.load(tmp_path / f"{codes}.nii.gz")) for codes in ("RAS", "LPS", "SLA")]
    for image in images:
        assert np.array_equal(image.get_fdata(), array) and np.array_equal(image.affine, images[0].affine)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    make_phantom_study(tmp_path / "again", spec=SMALL)
    assert digests(tmp_path / "again") == digests(folder)
    make_phantom_study(tmp_path / "again", seed=1, spec=SMALL)  # replaces the first
    assert set(digests(tmp_path / "again")) == set(digests(folder))
    images = [name for name in digests(folder) if name.startswith("images")]
    assert all(digests(tmp_path / "again")[name] != digests(folder)[name] for name in images)


def test_a_completed_study_is_left_alone_and_an_interrupted_one_is_made_anew(folder: Path, tmp_path: Path) -> None:
    study = make_phantom_study(tmp_path / "study", spec=SMALL)
    before = {path: path.stat().st_mtime_ns for path in study.parent.rglob("*")}
    make_phantom_study(study.parent, spec=SMALL)
    assert {path: path.stat().st_mtime_ns for path in study.parent.rglob("*")} == before

    record = json.loads((study.parent / "phantom.json").read_text())
    (study.parent / "phantom.json").write_text(json.dumps(record | {"complete": False}))
    next(study.parent.glob("imagesTr/*")).unlink()
    make_phantom_study(study.parent, spec=SMALL)
    assert digests(study.parent) == digests(folder)


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "precious.nii.gz").write_bytes(b"data")
    with pytest.raises(StudyError, match="name an empty folder"):
        make_phantom_study(tmp_path, spec=SMALL)
    assert (tmp_path / "imagesTr" / "precious.nii.gz").read_bytes() == b"data"


def test_intensity_alone_tells_the_classes_in_the_source_and_misleads_where_it_is_remapped() -> None:
    spec = PhantomSpec()
    tissue = draw_tissue(np.random.default_rng(3), spec)
    assert set(np.unique(tissue)) == set(range(5))
    source, remapped, inverted = (
        paint(tissue, np.random.default_rng(5), spec)
        for paint in (phantom.paint_source, phantom.paint_remapped, phantom.paint_inverted)
    )
    levels = [np.median(source[tissue == code]) for code in range(5)]

    def by_intensity(unit: np.ndarray) -> np.ndarray:
        return np.abs(unit[..., None] - levels).argmin(-1)

    foreground = tissue >= phantom.ELLIPSOID
    assert (by_intensity(source) == tissue)[foreground].mean() > 0.75  # edges blur into other tissues
    assert (by_intensity(remapped) == tissue)[foreground].mean() < 0.2
    assert (by_intensity(inverted) == tissue)[foreground].mean() < 0.2
    assert np.array_equal(inverted, 1 - source)


def test_edges_stay_where_intensities_are_remapped() -> None:
    spec = PhantomSpec()
    for levels in (spec.levels, spec.remapped):
        gaps = np.abs(np.subtract.outer(np.array(levels), levels))[~np.eye(5, dtype=bool)]
        assert gaps.min() >= 0.15


@pytest.mark.parametrize("seed", range(20))
def test_a_validation_curve_keeps_tissues_apart_and_is_none_of_the_test_shifts(seed: int) -> None:
    spec = PhantomSpec()
    levels = np.array(spec.levels)
    mapped = random_curve(np.random.default_rng(seed), spec)(levels)
    assert np.diff(np.sort(mapped)).min() >= spec.separation and mapped.min() >= 0 and mapped.max() <= 1
    orders = [list(np.argsort(values)) for values in (levels, -levels, np.array(spec.remapped))]
    assert list(np.argsort(mapped)) not in orders


def test_the_shifts_degrade_what_they_say() -> None:
    spec = PhantomSpec()
    tissue = draw_tissue(np.random.default_rng(3), spec)
    clean, noisy, biased = (
        paint(tissue, np.random.default_rng(5), spec)
        for paint in (phantom.paint_source, phantom.paint_noisy, phantom.paint_biased)
    )
    assert noisy.shape == clean.shape
    body = tissue == phantom.BODY
    assert noisy[body].std() > 2 * clean[body].std()
    assert biased[body].std() / biased[body].mean() > 2 * clean[body].std() / clean[body].mean()
