from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dropgen.errors import ConfigError, StudyError
from dropgen.features.studies.benchmarks import BENCHMARKS
from dropgen.features.studies.check import check_study
from dropgen.features.studies.convert import convert
from dropgen.features.studies.prepare import resolve_rule
from dropgen.features.studies.splits import SPLITS
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import read_grid
from tests_support.archives import ARCHIVES, image

# Cases per split, as published; written here once more, so that a change of a rule is seen.
COUNTS = {
    "brats": (1020, 48, 96), "amos": (200, 30, 30), "cow": (75, 20, 30), "hvsmr": (23, 18, 19),
    "prostate": (49, 25, 42), "pandg": (6, 3, 4),
}  # fmt: skip


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives; read only."""
    folder = tmp_path_factory.mktemp("archives")
    for name, write in ARCHIVES.items():
        write(folder / name)
    return folder


@pytest.fixture(scope="module")
def studies(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them converted."""
    folder = tmp_path_factory.mktemp("studies")
    for name, benchmark in BENCHMARKS.items():
        convert(benchmark, archives / name, folder / name)
    return folder


@pytest.fixture
def broken(archives: Path, name: str, tmp_path: Path) -> Path:
    """A copy of an archive that a test may spoil; its files are links to the others' bytes."""
    return shutil.copytree(archives / name, tmp_path / "raw", copy_function=os.link)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_benchmark_has_an_archive_and_every_archive_a_benchmark() -> None:
    assert set(ARCHIVES) == set(BENCHMARKS) == set(COUNTS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_converted_study_is_sound_and_split_as_published(studies: Path, name: str, tmp_path: Path) -> None:
    study = load_study(studies / name / "study.yaml", tmp_path)
    assert tuple(len(study.split(split)) for split in SPLITS) == COUNTS[name]
    assert check_study(study) == []


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_person_and_no_domain_that_is_trained_on_is_held_out(studies: Path, name: str, tmp_path: Path) -> None:
    study = load_study(studies / name / "study.yaml", tmp_path)
    people = [{case.subject for case in study.split(split)} for split in SPLITS]
    assert sum(map(len, people)) == len(set.union(*people))
    assert study.train_domains.isdisjoint({case.domain for case in study.split("val") + study.split("test")})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_volume_has_an_intensity_rule_by_its_modality(studies: Path, name: str, tmp_path: Path) -> None:
    study = load_study(studies / name / "study.yaml", tmp_path)
    rules = {(case.modality, resolve_rule(study.intensity, case.modality)) for case in study.cases}
    assert rules == ({("ct", "hu"), ("mr", "minmax")} if name in ("amos", "cow") else {("mr", "minmax")})


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_case_is_a_3d_file_of_the_archive_or_of_the_study_by_a_relative_path(
    archives: Path, studies: Path, name: str, tmp_path: Path
) -> None:
    manifest = (studies / name / "manifest.csv").read_text()
    assert str(archives) not in manifest and str(studies) not in manifest
    study = load_study(studies / name / "study.yaml", tmp_path)
    written = set((studies / name).rglob("*.nii.gz"))
    used = {path for case in study.cases for path in (case.image, case.label) if path}
    assert written <= used and all(path.is_relative_to(archives / name) for path in used - written)
    # What has to change: a channel of every case; every fifth person's value 15; the zones of one site.
    expected = {"brats": 1020 + 48 + 96, "cow": 25, "prostate": 30}
    assert len(written) == expected.get(name, 0)
    assert read_grid(study.cases[0].image).array.ndim == 3


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_second_conversion_writes_nothing(archives: Path, studies: Path, name: str) -> None:
    before = {path: when for path, when in state(studies / name).items() if path.endswith(".nii.gz")}
    raw = state(archives / name)
    again = convert(BENCHMARKS[name], archives / name, studies / name)
    assert (again.written, again.reused) == (0, len(before))
    assert {path: when for path, when in state(studies / name).items() if path in before} == before
    assert state(archives / name) == raw


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_label_is_named_and_nothing_is_written(broken: Path, name: str, tmp_path: Path) -> None:
    beside = name in ("hvsmr", "prostate")  # labels among the images
    files = sorted(path.relative_to(broken) for path in broken.rglob("*_*eg*.nii.gz" if beside else "*.nii.gz"))
    lost = broken / next(path for path in files if "endpoints" not in path.name and (beside or "label" in str(path)))
    lost.unlink()
    with pytest.raises(StudyError, match="nothing was written; expected is") as caught:
        convert(BENCHMARKS[name], broken, tmp_path / "out")
    person = lost.name.partition(".")[0].partition("_cropped")[0].partition("_Seg")[0].partition("_seg")[0]
    assert any(person in line and "has no label" in line for line in caught.value.problems)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_file_that_is_not_published_is_named(broken: Path, name: str, tmp_path: Path) -> None:
    folder = next(path for path in sorted(broken.rglob("*.nii.gz")) if not path.name.startswith(".")).parent
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StudyError) as caught:
        convert(BENCHMARKS[name], broken, tmp_path / "out")
    relative = (folder / "notes.txt").relative_to(broken).as_posix()
    assert caught.value.problems == (f"{relative} is none of the published files",)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_folder_of_something_else_is_refused_with_what_is_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(StudyError) as caught:
        convert(BENCHMARKS[name], tmp_path / "raw", tmp_path / "out")
    assert BENCHMARKS[name].layout in str(caught.value)
    assert len(caught.value.problems) < 100
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "person", "expected"),
    [
        ("amos", "amos_0001*", 200), ("hvsmr", "pat59_*", 60), ("cow", "topcow_*_125*", 125),
        ("brats", "BRATS_484*", 484),
    ],
)  # fmt: skip
def test_a_wrong_count_is_refused_with_both_numbers(
    broken: Path, person: str, expected: int, name: str, tmp_path: Path
) -> None:
    for path in broken.rglob(person):
        path.unlink()
    with pytest.raises(StudyError, match=f"expected {expected}, found {expected - 1}"):
        convert(BENCHMARKS[name], broken, tmp_path / "out")


@pytest.mark.parametrize("name", ["hvsmr"])
def test_a_study_is_never_written_into_the_archive(broken: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="only read"):
        convert(BENCHMARKS[name], broken, broken / "study")


@pytest.mark.parametrize("name", ["prostate"])
def test_an_unknown_site_is_an_error_and_another_count_a_warning(broken: Path, name: str, tmp_path: Path) -> None:
    for path in (broken / "HK").glob("Case11*"):
        path.unlink()
    assert convert(BENCHMARKS[name], broken, tmp_path / "out").warnings == ("HK: expected 12 people, found 11",)
    image(broken / "ELSEWHERE/Case00.nii.gz")
    with pytest.raises(StudyError, match="ELSEWHERE/ is an unknown site; known are RUNMC"):
        convert(BENCHMARKS[name], broken, tmp_path / "out")
