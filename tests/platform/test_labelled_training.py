"""A study with regions and voxels to ignore from its YAML file to a served mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn

from dropgen.config import Component, Experiment
from dropgen.errors import ConfigError
from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.study import load_study
from dropgen.features.studies.volume import read_mask, read_volume, write_mask
from dropgen.platform.adaptation import build as build_adaptation
from dropgen.platform.adaptation.adapted import require_models
from dropgen.platform.evaluate import evaluate_trial
from dropgen.platform.evaluation.uncertainty import predict_uncertain
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.bench import require_trainable
from tests_support.tiny import fill_store, tiny_experiment

REGIONS = {"labels": {"background": 0, "shape": [1, 2], "tube": 2, "ignore": 3}, "regions_class_order": [1, 2]}
LABELS = {"labels": {"background": 0, "ellipsoid": 1, "tube": 2, "ignore": 3}}


def labelled(root: Path, meaning: dict[str, object], **changes: object) -> Experiment:
    """The tiny experiment whose labels say of their first planes that nobody labelled them."""
    experiment = tiny_experiment(root, **changes)
    path = Path(experiment.study)
    settings = yaml.safe_load(path.read_text())
    settings.pop("classes")
    path.write_text(yaml.safe_dump(settings | meaning, sort_keys=False))
    for case in load_study(experiment.study, root).cases:
        assert case.label is not None
        mask = read_mask(case.label)
        mask.array[:4] = 3
        write_mask(case.label, mask.array, mask.affine)
    return experiment


def trained(root: Path, meaning: dict[str, object]) -> tuple[Workbench, dict[str, object]]:
    experiment = labelled(root, meaning, methods=[{"name": "erm"}])
    fill_store(experiment, root)
    bench = Workbench.open(experiment, root)
    return bench, train_trial(bench, trials_of(experiment)[0])


@pytest.mark.parametrize("meaning", [REGIONS, LABELS], ids=["regions", "classes"])
def test_it_is_trained_scored_and_served_under_its_own_names(meaning: dict[str, object], tmp_path: Path) -> None:
    bench, result = trained(tmp_path, meaning)
    names = [name for name in meaning["labels"] if name not in ("background", "ignore")]
    summary = evaluate_trial(bench, trials_of(bench.experiment)[0])
    assert all(list(classes) == names for classes in summary["classes"].values())
    segmenter = Segmenter.load(Path(str(result["bundle"])))
    assert segmenter.spec.labelling == bench.study.labelling
    head = [module for module in segmenter.network.modules() if isinstance(module, nn.Conv3d)][-1]
    assert head.out_channels == (2 if meaning is REGIONS else 3)
    assert set(segmenter.spec.training) == set(names)
    case = bench.study.split("test")[0]
    image = read_volume(case.image)
    mask = segmenter.predict(image)
    written = read_mask(bench.folder(trials_of(bench.experiment)[0]) / "evaluation" / "masks" / f"{case.id}.nii.gz")
    np.testing.assert_array_equal(mask, written.array)
    assert set(np.unique(mask)) <= {0, 1, 2}
    again, uncertainty = predict_uncertain(segmenter, prepare([image], segmenter.spec.preparation, None))
    np.testing.assert_array_equal(again, mask)
    assert uncertainty.entropy_map.max() <= 100


def test_methods_that_need_one_known_class_a_voxel_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    experiment = labelled(tmp_path, LABELS)
    study = load_study(experiment.study, tmp_path)
    require_trainable(experiment, study)
    for name in ("mixup", "cutout", "rsc", "gin_ipa", "dropgen+mixup"):
        one = experiment.model_copy(update={"methods": (Component.of(name),)})
        one = one.model_copy(update={"features": one.features.model_copy(update={"source": "online"})})
        with pytest.raises(ConfigError, match=rf"method {name.replace('+', '.')} takes every voxel to have one known"):
            require_trainable(one, study)


def test_test_time_methods_are_refused_where_regions_overlap(tmp_path: Path) -> None:
    _, result = trained(tmp_path, REGIONS)
    model = Segmenter.load(Path(str(result["bundle"])))
    with pytest.raises(ConfigError, match="tent takes voxels for one class alone and 'phantom' has regions"):
        require_models(build_adaptation(Component.of("tent")), model, None)


def test_what_labels_mean_is_in_a_trials_key(tmp_path: Path) -> None:
    keys = set()
    for name, meaning in {"one": REGIONS, "two": LABELS}.items():
        experiment = labelled(tmp_path / name, meaning)
        fill_store(experiment, tmp_path / name)
        bench = Workbench.open(experiment, tmp_path / name)
        keys.add(bench.key(trials_of(experiment)[0]))
    assert len(keys) == 2
