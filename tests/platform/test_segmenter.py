from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dropgen.config import Component
from dropgen.errors import CheckpointError, ConfigError, DropGenError, ResourceError, VolumeError, WeightsError
from dropgen.features import extractors
from dropgen.features.extractors import extract
from dropgen.features.studies.prepare import network_scale, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import MIND, make_segmenter

ALL = [Component.of("erm"), Component.of("rep_only"), Component.of("dropgen", p=0.5)]
DROPGEN = ALL[2]


def volume(shape: tuple[int, int, int] = (19, 16, 23), seed: int = 0) -> Volume:
    generator = np.random.default_rng(seed)
    affine = np.diag([-1.0, 1.0, 1.5, 1.0])
    return Volume(generator.normal(100, 30, shape).astype(np.float32), affine)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_a_saved_bundle_predicts_the_same_voxels(method: Component, tmp_path: Path) -> None:
    segmenter = make_segmenter(method)
    segmenter.save(tmp_path / "bundle")
    loaded = Segmenter.load(tmp_path / "bundle")
    image = volume()
    mask = segmenter.predict(image)
    assert mask.shape == image.array.shape
    assert mask.dtype == np.uint8
    assert len(np.unique(mask)) > 1
    np.testing.assert_array_equal(loaded.predict(image), mask)
    assert loaded.spec == segmenter.spec
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"segmenter.json", "weights.safetensors"}


def test_a_volume_of_one_window_gets_the_networks_own_answer() -> None:
    segmenter = make_segmenter(DROPGEN)
    prepared = prepare([volume((16, 16, 10))], segmenter.spec.preparation)
    raw, _ = extract(extractors.build(MIND), prepared.unit)
    normed = extractors.instance_norm(torch.from_numpy(raw)[None])
    with torch.no_grad():
        image = network_scale(torch.from_numpy(prepared.unit)[None], [prepared])
        logits = segmenter.network(torch.cat([image, normed], dim=1))
    np.testing.assert_array_equal(segmenter.predict_prepared(prepared), logits[0].argmax(0).numpy())


def test_stored_features_predict_what_extracted_ones_do() -> None:
    segmenter = make_segmenter(DROPGEN)
    prepared = prepare([volume()], segmenter.spec.preparation)
    features, _ = extract(extractors.build(MIND), prepared.unit)
    extracted = segmenter.predict_prepared(prepared)
    np.testing.assert_array_equal(segmenter.predict_prepared(prepared, features), extracted)
    assert not np.array_equal(segmenter.predict_prepared(prepared, features[::-1].copy()), extracted)


def test_feature_scope_decides_what_the_extractor_sees() -> None:
    whole, windows = make_segmenter(DROPGEN), make_segmenter(DROPGEN, feature_scope="window")
    one_window = prepare([volume((16, 16, 10))], whole.spec.preparation)
    np.testing.assert_array_equal(whole.predict_prepared(one_window), windows.predict_prepared(one_window))
    many = prepare([volume((32, 16, 16))], whole.spec.preparation)
    assert not np.array_equal(whole.predict_prepared(many), windows.predict_prepared(many))


def test_shift_and_scale_reach_the_image_channel_alone() -> None:
    image_only, features_only = make_segmenter(ALL[0]), make_segmenter(ALL[1])
    prepared = prepare([volume()], image_only.spec.preparation)
    shifted = replace(prepared, shift=(0.4,), scale=(0.2,))
    assert not np.array_equal(image_only.predict_prepared(prepared), image_only.predict_prepared(shifted))
    np.testing.assert_array_equal(features_only.predict_prepared(prepared), features_only.predict_prepared(shifted))


def test_rep_only_is_blind_to_inverted_contrast_and_erm_is_not() -> None:
    image = volume()
    inverted = Volume(image.array.max() - image.array, image.affine)
    rep_only, erm = make_segmenter(ALL[1]), make_segmenter(ALL[0])
    assert np.mean(rep_only.predict(image) == rep_only.predict(inverted)) > 0.999
    assert np.mean(erm.predict(image) == erm.predict(inverted)) < 0.999


@pytest.mark.parametrize("training", [True, False])
def test_the_training_flag_survives_and_prediction_is_in_eval_mode(training: bool) -> None:
    segmenter = make_segmenter(DROPGEN)
    expected = segmenter.predict(volume())
    state = {key: value.clone() for key, value in segmenter.network.state_dict().items()}
    segmenter.network.train(training)
    np.testing.assert_array_equal(segmenter.predict(volume()), expected)
    assert segmenter.network.training is training
    assert all(torch.equal(value, state[key]) for key, value in segmenter.network.state_dict().items())


def test_the_training_flag_comes_back_after_an_error() -> None:
    segmenter = make_segmenter(DROPGEN)
    segmenter.network.train()
    prepared = prepare([volume()], segmenter.spec.preparation)
    with pytest.raises((RuntimeError, ValueError)):
        segmenter.predict_prepared(prepared, np.zeros((3, *prepared.shape), np.float32))
    assert segmenter.network.training


def test_threads_sharing_one_segmenter_get_their_own_masks() -> None:
    segmenter = make_segmenter(DROPGEN)
    images = [volume(seed=seed) for seed in range(4)]
    expected = [segmenter.predict(image) for image in images]
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda place=place: found.update({place: segmenter.predict(images[place])}))  # type: ignore[misc]
        for place in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, mask in enumerate(expected):
        np.testing.assert_array_equal(found[place], mask)


def test_a_modality_is_required_where_the_rule_depends_on_it() -> None:
    segmenter = make_segmenter(ALL[0], intensity={"ct": "hu", "mr": "minmax"})
    with pytest.raises(VolumeError, match="ct, mr"):
        segmenter.predict(volume())
    with pytest.raises(VolumeError, match="pet"):
        segmenter.predict(volume(), modality="pet")
    assert not np.array_equal(segmenter.predict(volume(), modality="ct"), segmenter.predict(volume(), modality="mr"))


def test_another_extractor_is_refused_naming_both_fingerprints(tmp_path: Path) -> None:
    make_segmenter(DROPGEN).save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "segmenter.json"
    record = json.loads(path.read_text())
    record["spec"]["extractor"]["dilations"] = [2]
    path.write_text(json.dumps(record))
    with pytest.raises(WeightsError) as error:
        Segmenter.load(tmp_path / "bundle")
    assert extractors.build(MIND).fingerprint in str(error.value)
    assert extractors.build(Component.of("mind", dilations=(2,))).fingerprint in str(error.value)


def test_a_method_that_reads_features_is_refused_without_an_extractor() -> None:
    segmenter = make_segmenter(DROPGEN)
    with pytest.raises(WeightsError, match="None"):
        Segmenter(segmenter.spec, segmenter.network, segmenter.method, None)


def test_the_bundle_holds_no_extractor(tmp_path: Path) -> None:
    segmenter = make_segmenter(DROPGEN)
    segmenter.save(tmp_path / "bundle")
    assert set(load_file(tmp_path / "bundle" / "weights.safetensors")) == set(segmenter.network.state_dict())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), file=st.sampled_from(["segmenter.json", "weights.safetensors"]))
def test_no_flipped_byte_of_the_weights_or_cut_file_loads(tmp_path: Path, place: float, file: str) -> None:
    folder = tmp_path / "bundle"
    if not folder.exists():
        make_segmenter(ALL[0]).save(folder)
    path = folder / file
    whole = path.read_bytes()
    data = bytearray(whole)
    if file == "weights.safetensors":
        data[int(place * len(data))] ^= 0xFF
    else:
        del data[int(place * (len(data) - 1)) :]
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        Segmenter.load(folder)
    path.write_bytes(whole)
    Segmenter.load(folder)


def test_a_bundle_from_before_training_volumes_were_recorded_predicts_as_ever(tmp_path: Path) -> None:
    segmenter = make_segmenter(DROPGEN)
    segmenter.save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "segmenter.json"
    record = json.loads(path.read_text())
    assert record["spec"].pop("training") == {}
    path.write_text(json.dumps(record))
    old = Segmenter.load(tmp_path / "bundle")
    assert old.spec.training == {}
    np.testing.assert_array_equal(old.predict(volume()), segmenter.predict(volume()))


def test_damage_of_every_kind_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"segmenter\.json"):
        Segmenter.load(tmp_path / "nothing")
    folder = tmp_path / "bundle"
    make_segmenter(ALL[0]).save(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights"):
        Segmenter.load(folder)
    record = json.loads((folder / "segmenter.json").read_text())
    for change in ({"format": 99}, {"spec": {}}, {"spec": {**record["spec"], "surprise": 1}}):
        (folder / "segmenter.json").write_text(json.dumps(record | change))
        with pytest.raises(CheckpointError):
            Segmenter.load(folder)


def test_weights_of_another_network_are_refused_even_with_a_right_checksum(tmp_path: Path) -> None:
    folder, other = tmp_path / "bundle", tmp_path / "other"
    make_segmenter(ALL[0]).save(folder)
    make_segmenter(DROPGEN).save(other)
    record, donor = (json.loads((path / "segmenter.json").read_text()) for path in (folder, other))
    (folder / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes())
    (folder / "segmenter.json").write_text(json.dumps(record | {"weights_sha256": donor["weights_sha256"]}))
    with pytest.raises(CheckpointError, match="fit"):
        Segmenter.load(folder)


def test_a_bundle_that_names_code_is_only_an_unknown_name(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    make_segmenter(ALL[0]).save(folder)
    record = json.loads((folder / "segmenter.json").read_text())
    record["spec"]["method"] = {"name": "os.system", "command": "true"}
    (folder / "segmenter.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"os\.system"):
        Segmenter.load(folder)


def test_a_pickle_in_place_of_the_weights_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    make_segmenter(ALL[0]).save(folder)
    torch.save({"a": torch.ones(1)}, folder / "weights.safetensors")
    with pytest.raises(CheckpointError):
        Segmenter.load(folder)


def test_overwriting_keeps_a_whole_bundle_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    first, second = make_segmenter(ALL[0], seed=1), make_segmenter(ALL[0], seed=2)
    first.save(folder)
    image = volume()
    legal = [first.predict(image), second.predict(image)]
    assert not np.array_equal(*legal)
    seen = []
    for name in ("rename", "mkdir"):
        real = getattr(Path, name)

        def watched(self: Path, *args: object, real: object = real, **options: object) -> object:
            seen.append(Segmenter.load(folder).predict(image))
            result = real(self, *args, **options)  # type: ignore[operator]
            seen.append(Segmenter.load(folder).predict(image))
            return result

        monkeypatch.setattr(Path, name, watched)
    second.save(folder)
    assert len(seen) >= 6
    assert all(any(np.array_equal(mask, one) for one in legal) for mask in seen)
    monkeypatch.undo()
    np.testing.assert_array_equal(Segmenter.load(folder).predict(image), legal[1])
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundle"
    make_segmenter(ALL[0], seed=1).save(folder)
    before = (folder / "weights.safetensors").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        make_segmenter(ALL[0], seed=2).save(folder)
    assert (folder / "weights.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_errors_are_the_projects_own(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "weights.safetensors")
    (tmp_path / "segmenter.json").write_text("[1, 2]")
    with pytest.raises(DropGenError):
        Segmenter.load(tmp_path)
