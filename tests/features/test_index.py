"""What changes a key, what does not, and what an incomplete store is told."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropgen.errors import StoreError, VolumeError
from dropgen.features.extractors.mind import Mind
from dropgen.features.index import CaseKeys, StudyIndex
from dropgen.features.store import FeatureStore
from dropgen.features.studies.study import Study, load_study
from dropgen.features.studies.volume import read_mask, write_mask, write_volume
from dropgen.manifest import read_json, write_json

if TYPE_CHECKING:
    from conftest import StudyFolder


@dataclass
class Site:
    """A sound study beside an empty store."""

    study: Study
    store: FeatureStore

    def keys(self, **changes: object) -> dict[str, CaseKeys]:
        return dict(StudyIndex.of(replace(self.study, **changes), Mind(), "float16", self.store).keys)


@pytest.fixture
def site(tiny: StudyFolder, tmp_path: Path) -> Site:
    return Site(load_study(tiny.write(), tmp_path), FeatureStore(tmp_path / "store"))


def correct_label(path: Path) -> None:
    mask = read_mask(path)
    write_mask(path, 1 - mask.array, mask.affine)


def test_a_corrected_label_changes_its_own_key_alone(site: Site) -> None:
    before = site.keys()
    correct_label(site.study.cases[1].label)
    after = site.keys()
    assert after["two"].label != before["two"].label
    assert replace(after["two"], label=before["two"].label) == before["two"]
    assert {case: after[case] for case in ("one", "three")} == {case: before[case] for case in ("one", "three")}


def test_another_image_changes_every_key_of_its_case(site: Site) -> None:
    before = site.keys()["one"]
    write_volume(site.study.cases[0].image, np.ones((5, 6, 7), np.float32), np.eye(4))
    after = site.keys()["one"]
    assert after.volume != before.volume
    assert after.label != before.label
    assert after.features != before.features


@pytest.mark.parametrize("changes", [{"spacing": (1.0, 1.0, 2.0)}, {"crop": (8, 8, 8)}, {"intensity": "zscore"}])
def test_another_preparation_changes_every_key(site: Site, changes: dict[str, object]) -> None:
    before, after = site.keys(), site.keys(**changes)
    for case in before:
        assert set(vars(before[case]).values()).isdisjoint(vars(after[case]).values())


def test_features_go_by_extractor_and_type_and_nothing_else_does(site: Site) -> None:
    indices = [
        StudyIndex.of(site.study, extractor, dtype).keys["one"]
        for extractor, dtype in (
            (Mind(), "float16"), (Mind(), "float32"), (Mind(dilations=(2,)), "float16"), (None, "float16")
        )
    ]  # fmt: skip
    assert len({keys.features for keys in indices}) == 4
    assert indices[3].features is None
    assert len({(keys.volume, keys.label) for keys in indices}) == 1


def test_only_the_rule_of_the_own_modality_matters(site: Site) -> None:
    cases = tuple(replace(case, modality="ct") for case in site.study.cases)
    plain = site.keys(cases=cases, intensity="hu")
    assert site.keys(cases=cases, intensity={"ct": "hu", "mr": "zscore"}) == plain
    assert site.keys(cases=cases, intensity={"ct": "hu", "mr": "minmax"}) == plain
    assert site.keys(cases=cases, intensity={"ct": "minmax", "mr": "minmax"}) != plain


def test_studies_over_copies_of_the_same_files_share_every_entry(site: Site, tmp_path: Path) -> None:
    copies = []
    for case in site.study.cases:
        image = shutil.copy(case.image, tmp_path / f"copy-{case.image.name}")
        label = shutil.copy(case.label, tmp_path / f"copy-{case.label.name}")
        copies.append(replace(case, images=(Path(image),), label=Path(label)))
    assert site.keys(name="other", cases=tuple(copies)) == site.keys()


def test_the_digest_follows_the_keys(site: Site) -> None:
    before = StudyIndex.of(site.study, Mind(), "float16")
    assert StudyIndex.of(site.study, Mind(), "float16").digest == before.digest
    correct_label(site.study.cases[0].label)
    assert StudyIndex.of(site.study, Mind(), "float16").digest != before.digest


@pytest.fixture
def remembered(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of hashes, after every source file was old enough to be remembered."""
    monkeypatch.setattr("dropgen.features.index.SETTLED_SECONDS", -1.0)
    site.keys()
    return site.store.folder / "source-hashes.json"


def test_a_file_that_did_not_change_is_not_read_again(site: Site, remembered: Path) -> None:
    before = site.keys()
    hashes = read_json(remembered)
    write_json(remembered, {path: [*stamp, "another"] for path, (*stamp, _) in hashes.items()})
    assert site.keys()["one"].volume != before["one"].volume  # so the remembered hash is what was used
    remembered.unlink()
    assert site.keys() == before


@pytest.mark.usefixtures("remembered")
def test_a_change_that_keeps_size_and_modification_time_is_noticed(site: Site) -> None:
    before = site.keys()
    image = site.study.cases[0].image
    status = image.stat()
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert image.stat().st_size == status.st_size
    assert image.stat().st_mtime_ns == status.st_mtime_ns
    assert site.keys()["one"].volume != before["one"].volume


def test_a_file_that_was_just_written_is_not_remembered(site: Site) -> None:
    site.keys()
    assert not (site.store.folder / "source-hashes.json").exists()


def test_a_missing_file_names_its_case(site: Site) -> None:
    site.study.cases[1].image.unlink()
    with pytest.raises(VolumeError, match=r"case two: .*two_0000.nii.gz cannot be read \(No such file"):
        site.keys()


def fill(index: StudyIndex, store: FeatureStore, cases: tuple[str, ...], extractor: str = "") -> None:
    for case in cases:
        keys = index.keys[case]
        store.put_label(keys.volume, np.ones((2, 2, 2), np.uint8), {"case": case})
        shutil.copytree(store.path("labels", keys.volume), store.path("volumes", keys.volume), dirs_exist_ok=True)
        store.put_label(keys.label, np.ones((2, 2, 2), np.uint8), {"case": case})
        made = {"case": case, "volume": keys.volume, "extractor": extractor or index.extractor, "dtype": index.dtype}
        store.put_features(keys.features, np.ones((1, 2, 2, 2)), None, made)


def test_a_store_that_covers_every_case_is_accepted(site: Site) -> None:
    index = StudyIndex.of(site.study, Mind(), "float16")
    fill(index, site.store, ("one", "two", "three"))
    index.require(site.store)
    assert index.missing(site.store) == {}


def test_a_store_that_lacks_cases_names_the_first_their_number_and_the_command(site: Site) -> None:
    index = StudyIndex.of(site.study, Mind(), "float16")
    fill(index, site.store, ("one",))
    assert list(index.missing(site.store)) == ["two", "three"]
    expected = (
        r"lacks the volumes and labels and features of case two and of 1 more of the 3 cases; run `dropgen precompute"
    )
    with pytest.raises(StoreError, match=expected):
        index.require(site.store)


def test_features_of_another_extractor_are_refused_by_name(site: Site) -> None:
    fill(StudyIndex.of(site.study, Mind(), "float16"), site.store, ("one", "two", "three"))
    other = StudyIndex.of(site.study, Mind(dilations=(2,)), "float16")
    with pytest.raises(StoreError) as refusal:
        other.require(site.store)
    message = str(refusal.value)
    assert "lacks the features of case one and of 2 more" in message
    assert f"made by {Mind().fingerprint} (float16), not by {Mind(dilations=(2,)).fingerprint} (float16)" in message
    assert message.endswith("run `dropgen precompute EXPERIMENT`")


def test_the_index_of_a_study_lies_in_the_store(site: Site) -> None:
    index = StudyIndex.of(site.study, Mind(), "float16")
    index.save(site.store)
    saved = read_json(site.store.folder / "studies" / f"tiny.{Mind().fingerprint}.float16.json")
    assert saved["keys"]["two"] == vars(index.keys["two"])
    assert saved["extractor"] == Mind().fingerprint


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_of_an_index_lets_it_refer_to_other_entries(tmp_path: Path, data: st.DataObject) -> None:
    store = FeatureStore(tmp_path)
    index = StudyIndex("tiny", None, "float16", {"one": CaseKeys("00ff", "11ee")})
    index.save(store)
    path = tmp_path / "studies" / "tiny.json"
    damaged = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        assert StudyIndex.saved(store) == [index]
    except StoreError as refusal:
        assert "tiny.json is no index of a study" in str(refusal)
