"""Images of several channels: read, checked, prepared, stored, and extracted channel by channel."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml

from dropgen.config import Component
from dropgen.errors import ConfigError, StudyError, VolumeError
from dropgen.features.demand import demand_of
from dropgen.features.extractors import EXTRACTORS, build, extract
from dropgen.features.extractors.channels import EachChannel
from dropgen.features.extractors.mind import Mind
from dropgen.features.extractors.rolling import RollingFeatures
from dropgen.features.index import CaseKeys, StudyIndex, case_keys
from dropgen.features.plan import make_plan
from dropgen.features.store import FeatureStore
from dropgen.features.studies.check import check_study
from dropgen.features.studies.prepare import Preparation, network_scale, prepare
from dropgen.features.studies.raw import open_source
from dropgen.features.studies.shift import shift_study
from dropgen.features.studies.study import Case, Study, load_study, read_study, under_rule
from dropgen.features.studies.volume import Volume, read_volume, write_volume
from dropgen.features.symmetry import SYMMETRIES
from dropgen.features.worker import Recipe, Work, Worker
from dropgen.manifest import read_json, write_json
from tests_support.channels import NAMES, two_channel_study

if TYPE_CHECKING:
    from conftest import StudyFolder

BUILDABLE = sorted(set(EXTRACTORS) - {"anatomix", "nninteractive"})  # what needs no weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("pair")
    return load_study(two_channel_study(root / "study"), root)


def volumes(case: Case) -> list[Volume]:
    return [read_volume(path) for path in case.images]


def with_second(tiny: StudyFolder, names: tuple[str, str] = ("t1", "flair")) -> None:
    """A manifest with a column for each of two channels, the second of other intensities."""
    for row in tiny.rows:
        first = row.pop("image")
        image = read_volume(tiny.path / first)
        second = f"other/{Path(first).name.replace('_0000', '')}"
        write_volume(tiny.path / second, (100 - 7 * image.array).astype(np.float32), image.affine)
        row |= {f"image_{names[0]}": first, f"image_{names[1]}": second}


# What there was before images could have several channels


def test_the_keys_of_one_channel_are_those_of_before() -> None:
    case = Case("one", "one", "site", "mr", "train", (Path("one_0000.nii.gz"),), Path("one.nii.gz"))
    before = CaseKeys(volume="9a2fed04bd7f601b", label="6e33580ff3efff2a", features="9655c5f73cf37e91")
    for intensity in ("zscore", {"mr": "zscore", "ct": "hu"}):
        preparation = Preparation((1.0, 1.1, 1.3), (8, 8, 8), intensity)
        assert case_keys(case, preparation, "mind-v2", "float16", lambda path: path.name) == before


def test_an_entry_of_one_channel_has_the_bytes_of_before(store: FeatureStore) -> None:
    array = np.random.default_rng(0).random((8, 9, 10), np.float32)
    prepared = prepare([Volume(array, np.eye(4))], Preparation((1.0,) * 3, (8,) * 3, "zscore"))
    store.put_volume("k", prepared, {"case": "one"})
    folder = store.path("volumes", "k")
    assert (folder / "c.0.0.0").read_bytes() == prepared.unit[0].tobytes()
    metadata = json.loads((folder / "zarr.json").read_text())
    assert metadata["shape"] == [8, 9, 10]
    assert metadata["attributes"] == {
        "shift": prepared.shift[0], "scale": prepared.scale[0], "grid": json.loads(json.dumps(prepared.grid.to_json()))
    }  # fmt: skip


def test_one_channel_is_the_plain_extractor() -> None:
    for name in BUILDABLE:
        assert type(build(Component.of(name), image_channels=1)) is EXTRACTORS[name]


# Studies


def test_a_raw_folder_gives_the_channels_that_its_description_names(pair: Study) -> None:
    assert pair.channels == NAMES
    assert pair.image_channels == 2
    for case in pair.cases:
        assert [path.name for path in case.images] == [f"{case.id}_0000.nii.gz", f"{case.id}_0001.nii.gz"]
    assert check_study(pair) == []


def test_a_missing_and_a_surplus_channel_of_a_raw_folder_are_named(tmp_path: Path) -> None:
    study = two_channel_study(tmp_path / "study")
    first = next(iter(sorted((tmp_path / "study/imagesTr").glob("*_0001.nii.gz"))))
    first.unlink()
    with pytest.raises(StudyError) as caught:
        load_study(study, tmp_path)
    case = first.name.removesuffix("_0001.nii.gz")
    assert caught.value.problems == (f"case {case}: channel inverted: image {first} does not exist",)
    first.with_name(f"{case}_0002.nii.gz").touch()
    with pytest.raises(StudyError) as caught:
        load_study(study, tmp_path)
    told = f"channel 2; a case has 2 channels, as dataset.json names them, from {case}_0000"
    assert caught.value.problems == (f"{first.with_name(f'{case}_0002.nii.gz')}: {told}",)


def test_two_channels_of_one_name_are_refused(tmp_path: Path) -> None:
    study = two_channel_study(tmp_path / "study")
    path = tmp_path / "study/dataset.json"
    write_json(path, read_json(path) | {"channel_names": {"0": "MRI", "1": "MRI"}})
    with pytest.raises(StudyError, match="channel_names names 'MRI' 2 times; give every channel a name of its own"):
        load_study(study, tmp_path)


def test_a_manifest_names_channels_in_its_header(tiny: StudyFolder, tmp_path: Path) -> None:
    with_second(tiny)
    study = load_study(tiny.write(), tmp_path)
    assert study.channels == ("t1", "flair")
    assert [case.id for case in study.cases] == ["one", "two", "three"]
    assert study.cases[0].images == (tmp_path / "images/one_0000.nii.gz", tmp_path / "other/one.nii.gz")
    assert check_study(study) == []
    assert open_source(tmp_path / "manifest.csv", tmp_path).channels == study.channels


def test_a_manifest_with_a_hole_or_with_columns_that_contradict_is_refused(tiny: StudyFolder, tmp_path: Path) -> None:
    with_second(tiny)
    tiny.rows[1]["image_flair"] = ""
    with pytest.raises(StudyError) as caught:
        load_study(tiny.write(), tmp_path)
    assert caught.value.problems == ("line 3: no image is named in image_flair",)
    for row in tiny.rows:
        row.pop("image_flair")
    with pytest.raises(StudyError, match="has the columns image_t1; one image per case is 'image', and several chan"):
        load_study(tiny.write(), tmp_path)


def test_a_channel_on_another_grid_is_named_with_case_and_file(tiny: StudyFolder, tmp_path: Path) -> None:
    with_second(tiny)
    path = tmp_path / tiny.rows[1]["image_flair"]
    write_volume(path, np.ones((5, 6, 8), np.float32), np.eye(4))
    study = load_study(tiny.write(), tmp_path)
    first = tmp_path / tiny.rows[1]["image_t1"]
    (problem,) = check_study(study)
    assert problem == (
        f"case two: channel flair ({path}) is not on the grid of channel t1 ({first}): axis z of the channel has 8 "
        "voxels, of the first 7"
    )
    with pytest.raises(VolumeError, match="channel flair is not on the grid of channel t1: axis z"):
        prepare(volumes(study.cases[1]), study.preparation)


def test_a_pattern_for_every_channel_pairs_what_agrees(tmp_path: Path) -> None:
    for person in ("01", "02", "03"):
        for name in ("t1", "flair", "seg"):
            path = tmp_path / f"sub-{person}/sub-{person}_{name}.nii.gz"
            write_volume(path, np.zeros((4, 4, 4), np.int16), np.eye(4))
    settings = {
        "name": "bids", "classes": ["background", "organ"], "spacing": [1, 1, 1], "crop": [4, 4, 4],
        "intensity": {"t1": "zscore", "flair": "minmax"},
        "source": {
            "images": {name: f"sub-{{subject}}/*_{name}.nii.gz" for name in ("t1", "flair")},
            "labels": "sub-{subject}/*_seg.nii.gz", "splits": {"train": ["01"], "val": ["02"], "test": ["03"]},
        },
    }  # fmt: skip
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    study = load_study(path, tmp_path)
    assert study.channels == ("t1", "flair")
    assert [path.name for path in study.cases[2].images] == ["sub-03_t1.nii.gz", "sub-03_flair.nii.gz"]
    (tmp_path / "sub-02/sub-02_flair.nii.gz").unlink()
    with pytest.raises(StudyError) as caught:
        load_study(path, tmp_path)
    image = tmp_path / "sub-02/sub-02_t1.nii.gz"
    told = f"{image}: no image of channel flair for it by 'sub-{{subject}}/*_flair.nii.gz'; a case has one"
    assert caught.value.problems == (told,)
    settings["source"] |= {"leave_out": ["02"], "splits": {"train": ["01"], "test": ["03"]}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    assert [case.id for case in load_study(path, tmp_path).cases] == ["sub-01_t1", "sub-03_t1"]


def test_a_channel_without_an_intensity_rule_is_named(tiny: StudyFolder, tmp_path: Path) -> None:
    with_second(tiny)
    tiny.settings["intensity"] = {"t1": "zscore"}
    assert check_study(read_study(tiny.write(), tmp_path)) == [
        "channel 'flair' has no intensity rule; the study has rules for t1"
    ]


def test_hounsfield_units_are_for_channels_that_are_ct(tiny: StudyFolder, tmp_path: Path) -> None:
    with_second(tiny, ("CT", "pet"))
    study = load_study(tiny.write(), tmp_path)
    with pytest.raises(ConfigError, match="intensity = hu is for CT, and channel pet of study tiny is none"):
        under_rule(study, "hu")


def test_a_shifted_study_shifts_every_channel(pair: Study, tmp_path: Path) -> None:
    path = shift_study(pair, tmp_path / "shifted", ("inverted",))
    shifted = load_study(path, tmp_path)
    assert shifted.channels == pair.channels
    originals = {case.subject: case for case in pair.cases}
    copies = [case for case in shifted.cases if case.domain == "inverted" and case.id.endswith("-inverted")]
    assert copies
    for copy in copies:
        for new, old in zip(volumes(copy), volumes(originals[copy.subject]), strict=True):
            assert np.allclose(new.array, old.array.max() + old.array.min() - old.array, atol=1e-2)
    assert check_study(shifted) == []


def test_a_plan_counts_every_channel_and_has_a_rule_for_each(tmp_path: Path) -> None:
    study = two_channel_study(tmp_path / "study")
    folder = study.parent
    wide = next(iter(sorted((folder / "imagesTr").glob("*_0001.nii.gz"))))
    for image in (folder / "imagesTr").glob("*_0001.nii.gz"):
        volume = read_volume(image)
        volume.array[0, 0, 0] = 1e6  # an outlier, in the second channel alone
        write_volume(image, volume.array, volume.affine)
    plan = make_plan(folder, tmp_path)
    assert wide.is_file()
    assert plan.study.intensity == {"plain": "minmax", "inverted": "percentile"}
    assert plan.predictor.in_channels == 2 + 2 * 12
    assert list(plan.fingerprint.intensities) == list(NAMES)
    assert plan.demand.disk > 1.9 * make_plan(_one_channel(folder), tmp_path).demand.disk


def _one_channel(folder: Path) -> Path:
    manifest = folder / "one.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        for split, (images, labels) in {"train": ("imagesTr", "labelsTr"), "val": ("imagesVal", "labelsVal"),
                                        "test": ("imagesTs", "labelsTs")}.items():  # fmt: skip
            for image in sorted((folder / images).glob("*_0000.nii.gz")):
                label = f"{labels}/{image.name.replace('_0000', '')}"
                writer.writerow((f"{images}/{image.name}", label, split))
    return manifest


# Preparing and storing


def test_every_channel_is_prepared_by_its_own_rule_on_one_grid(pair: Study) -> None:
    case = pair.cases[1]
    rules = {"plain": "zscore", "inverted": "minmax"}
    prepared = prepare(volumes(case), Preparation((1.5, 1.0, 1.0), (16,) * 3, rules, NAMES))
    for channel, (volume, rule) in enumerate(zip(volumes(case), rules.values(), strict=True)):
        alone = prepare([volume], Preparation((1.5, 1.0, 1.0), (16,) * 3, rule))
        assert np.array_equal(prepared.unit[channel], alone.unit[0])
        assert (prepared.shift[channel], prepared.scale[channel]) == (alone.shift[0], alone.scale[0])
        assert prepared.grid == alone.grid
    seen = network_scale(torch.from_numpy(prepared.unit)[None].repeat(1, 2, 1, 1, 1), [prepared])
    assert torch.equal(seen[:, :2], seen[:, 2:])
    assert torch.equal(seen[:, 1], torch.from_numpy(prepared.unit[1:]))
    assert not torch.equal(seen[:, 0], torch.from_numpy(prepared.unit[:1]))


def test_another_number_of_channels_is_refused_in_one_sentence(pair: Study) -> None:
    first, second = volumes(pair.cases[0])
    with pytest.raises(VolumeError, match="the image has 1 channel where 2 are wanted: plain, inverted"):
        prepare([first], pair.preparation)
    with pytest.raises(VolumeError, match="the image has 2 channels where one is wanted"):
        prepare([first, second], Preparation((1.0,) * 3, (8,) * 3, "minmax"))


def test_a_key_covers_every_channel_their_order_and_their_rules(pair: Study) -> None:
    case = pair.cases[0]

    def key(images: tuple[Path, ...], intensity: object = "minmax", channels: tuple[str, ...] = NAMES) -> str:
        changed = Case(case.id, case.subject, case.domain, None, "train", images, None)
        preparation = Preparation((1.0,) * 3, (8,) * 3, intensity, channels)  # type: ignore[arg-type]
        return case_keys(changed, preparation, None, "float16").volume

    keys = [
        key(case.images), key(case.images[::-1]), key(case.images[:1], channels=()),
        key(case.images, {"plain": "minmax", "inverted": "zscore"}), key(case.images[:1] * 2),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(case.images, channels=("a", "b")) == keys[0]  # a name alone changes no voxel


def test_a_worker_stores_what_preparing_and_extracting_give(pair: Study, store: FeatureStore) -> None:
    worker = Worker(Recipe(store, pair, Component.of("mind"), "float32", "commit"))
    extractor = build(Component.of("mind"), image_channels=2)
    index = StudyIndex.of(pair, extractor, "float32")
    case = pair.cases[0]
    keys = index.keys[case.id]
    assert worker.run(Work(case, keys, tuple(kind for kind, _ in keys.entries()))).problem is None
    expected = prepare(volumes(case), pair.preparation)
    found = store.volume(keys.volume)
    assert np.array_equal(found.unit, expected.unit)
    assert (found.shift, found.scale, found.grid) == (expected.shift, expected.scale, expected.grid)
    assert not found.unit.flags.writeable
    features, stats = extract(extractor, expected.unit)
    assert keys.features is not None
    assert np.array_equal(store.features(keys.features).whole(), features)
    assert np.array_equal(store.features(keys.features).stats, stats)
    for kind, key in keys.entries():
        store.verify(kind, key)
    demand = demand_of([Work(case, keys, ("volumes", "labels", "features"))], pair, extractor, "float32")
    voxels = found.unit[0].size
    assert demand.disk == voxels * (2 * 4 + 1 + 24 * 4)


# Extracting


@pytest.mark.parametrize("name", BUILDABLE)
def test_features_of_a_channel_are_those_of_an_image_of_its_own(name: str) -> None:
    plain, each = build(Component.of(name)), build(Component.of(name), image_channels=3)
    unit = np.random.default_rng(0).random((3, 13, 9, 11), np.float32)
    features, stats = extract(each, unit)
    alone = [extract(plain, channel[None]) for channel in unit]
    assert each.channels == 3 * plain.channels
    assert each.fingerprint == f"{plain.fingerprint}-x3"
    np.testing.assert_array_equal(features, np.concatenate([of_one for of_one, _ in alone]))
    if stats is not None:
        np.testing.assert_array_equal(stats, np.concatenate([of_one for _, of_one in alone]))
    with pytest.raises(ValueError, match="takes 3 channels, got 1"):
        each(torch.zeros(1, 1, 8, 8, 8))


def test_symmetries_permute_within_the_block_of_a_channel() -> None:
    each = EachChannel(Mind((1, 2)), 2)
    image = torch.rand(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    stats = each.fit(image)
    for symmetry in SYMMETRIES[::7]:
        permutation = each.channel_permutation(symmetry)
        assert permutation is not None
        replayed = symmetry(each(image, stats))[:, list(permutation)]
        assert torch.allclose(each(symmetry(image), stats), replayed, atol=1e-5)
    assert EachChannel(build(Component.of("random")), 2).channel_permutation(SYMMETRIES[1]) is None


def test_tiles_and_rolling_windows_give_the_features_of_one_pass() -> None:
    each = EachChannel(Mind(), 2)
    unit = np.random.default_rng(0).random((2, 40, 9, 11), np.float32)
    whole, stats = extract(each, unit)
    tiled, tiled_stats = extract(each, unit, working_bytes=unit[0].size // 2 * each.tile_bytes * each.channels)
    np.testing.assert_allclose(tiled_stats, stats, rtol=1e-6)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)
    rolling = RollingFeatures(each, unit, 0, 12, "cpu")
    for start in range(0, 29, 7):
        box = (slice(start, start + 12), slice(0, 9), slice(2, 8))
        np.testing.assert_allclose(rolling.cut(box), whole[:, *box], rtol=0, atol=1e-6)
