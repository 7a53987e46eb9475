"""DropGen over a method that changes crops: what composes, how it is written, and what it trains on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dropgen.config import Component, Features, Trial
from dropgen.errors import ConfigError
from dropgen.features.extractors import instance_norm
from dropgen.features.extractors.mind import Mind
from dropgen.platform.evaluation.results import group_rows
from dropgen.platform.methods import METHODS, build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.cutout import CutOut
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.gin import Gin
from dropgen.platform.methods.mixup import MixUp
from dropgen.platform.train import Workbench, train_trial, trials_of
from dropgen.platform.training.bench import require_trainable
from dropgen.platform.training.trial import make_batches
from dropgen.platform.training.workers import Workers
from tests_support.tiny import tiny_bench

COMPOSED = [name for name in METHODS if "+" in name]
SINGLE = [name for name in METHODS if "+" not in name]
ALWAYS = [
    Component.of("dropgen+gin"),
    Component.of("dropgen+mixup", **{"mixup.p": 1}),
    Component.of("dropgen+cutout", **{"cutout.p": 1}),
]


def test_gin_mixup_and_cutout_compose_with_the_options_that_they_have_alone() -> None:
    for inner in (Gin(channels=1), MixUp(), CutOut()):
        assert build(Component.of(f"dropgen+{inner.name}")).inner == inner


@pytest.mark.parametrize("outer", SINGLE)
def test_of_all_pairs_exactly_those_under_dropgen_that_say_so_compose_and_others_are_told_why_not(outer: str) -> None:
    for inner in SINGLE:
        name = f"{outer}+{inner}"
        if outer == "dropgen" and METHODS[inner].under_dropgen:
            assert build(Component.of(name)).name == name
            continue
        with pytest.raises(ConfigError) as error:
            build(Component.of(name))
        told = str(error.value)
        assert told.startswith(f"'{name}' is no method: ")
        assert (f"{inner} " if outer == "dropgen" else f"no method goes under {outer}, only under dropgen;") in told
        assert told.endswith(f"these compose: {', '.join(COMPOSED)}")


@pytest.mark.parametrize("name", COMPOSED)
def test_everything_but_the_crop_is_dropgen_s(name: str) -> None:
    method, plain = build(Component.of(name, p=0.5, min_keep=1)), DropGen(p=0.5, min_keep=1)
    assert isinstance(method, DropGen)
    assert method.in_channels(12) == 13
    assert np.array_equal(method.plan(np.random.default_rng(0), 12), plain.plan(np.random.default_rng(0), 12))
    image, features = torch.rand(2, 1, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    assert torch.equal(method.inputs(image, features), plain.inputs(image, features))
    kept = torch.tensor([[True, False, True, True], [False, True, True, True]])
    batch = Batch(image, torch.zeros(2, 1, 4, 4, 4).long(), features, kept)
    network = torch.nn.Conv3d(4, 2, 1)
    assert torch.equal(*(one.loss(network, batch, lambda logits, label: logits.sum()) for one in (method, plain)))


@pytest.mark.parametrize("name", COMPOSED)
def test_the_crop_is_changed_as_the_inner_method_alone_changes_it(name: str) -> None:
    image, label = torch.rand(2, 1, 6, 6, 6), torch.randint(3, (2, 1, 6, 6, 6))
    chance = f"{name.partition('+')[2]}.p"
    method = build(Component.of(name, **({chance: 1} if chance in METHODS[name].options() else {})))
    ours, theirs = (
        one.augment(image, label, 3, [np.random.default_rng(s) for s in (0, 1)]) for one in (method, method.inner)
    )
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[0].shape == image.shape
    assert not torch.equal(ours[0], image)


def test_p_is_dropgen_s_and_the_inner_options_carry_a_prefix() -> None:
    method = build(Component.of("dropgen+mixup", **{"p": 0.5, "mixup.p": 0.25, "mixup.alpha": 2}))
    assert (method.p, method.inner) == (0.5, MixUp(p=0.25, alpha=2))
    assert method == build(Component.of("maskgen+mixup", **{"p": 0.5, "mixup.p": 0.25, "mixup.alpha": 2}))
    assert method.name == "dropgen+mixup"
    assert method.search_space == {"p": (0.0, 0.25, 0.5, 0.75), "mixup.p": (0.25, 0.5, 0.75)}
    assert list(METHODS["dropgen+mixup"].options()) == ["p", "min_keep", "mixup.p", "mixup.alpha", "mixup.per_sample"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dropgen+mixup", {"mixup.q": 1}, "unknown option 'mixup.q' .* did you mean 'mixup.p'"),
        ("dropgen+mixup", {"alpha": 1}, "unknown option 'alpha' .* did you mean 'mixup.alpha'"),
        ("dropgen+mixup", {"cutout.p": 1}, "unknown option 'cutout.p'"),
        ("dropgen+gin", {"gin.channels": 1}, "unknown option 'gin.channels' .* known: min_keep, p"),
        ("dropgen+mixup", {"mixup.p": 2}, "mixup: p = 2 must be"),
        ("dropgen+mixup", {"p": 1}, r"dropgen\+mixup: p = 1 must be"),
    ],
)
def test_wrong_options_are_refused_as_anywhere(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(Component.of(name, **options))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("dropgen+erm", "erm changes nothing"),
        ("dropgen+gin_ipa", "gin_ipa changes the loss"),
        ("dropgen+rep_only", "rep_only reads features itself"),
        ("dropgen+dropgen", "dropgen reads features itself"),
        ("gin+mixup", "no method goes under gin, only under dropgen"),
        ("gin+dropgen", "no method goes under gin, only under dropgen"),
        ("dropgen+gin+mixup", "one method goes under dropgen, not 2"),
    ],
)
def test_what_does_not_compose_is_refused_with_the_reason_and_what_does(name: str, why: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Component.of(name))
    assert str(error.value).startswith(f"'{name}' is no method: {why}")
    assert str(error.value).endswith(f"these compose: {', '.join(name for name in METHODS if '+' in name)}")
    assert "\n" not in str(error.value)


def test_an_unknown_part_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="unknown method 'mixpu' in 'dropgen\\+mixpu'; did you mean 'mixup'"):
        build(Component.of("dropgen+mixpu"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return tiny_bench(tmp_path_factory.mktemp("composed"), training={"steps": 1, "validate_every": 1})


def with_source(bench: Workbench, source: str, *methods: Component) -> Workbench:
    changes = {"features": Features(source=source), "methods": methods}
    return replace(bench, experiment=bench.experiment.model_copy(update=changes))


def batch_of(bench: Workbench, method: Component) -> Batch:
    return make_batches(bench, Trial(method=method, seed=1), build(method), 12, Workers(), "cpu").at(0)


@pytest.mark.parametrize("source", ["stored", "online"])
@pytest.mark.parametrize("name", [*COMPOSED, "mixup", "cutout", "gin"])
def test_stored_features_are_refused_where_the_anatomy_changes(bench: Workbench, name: str, source: str) -> None:
    experiment = with_source(bench, source, Component.of(name)).experiment
    if source == "stored" and METHODS[name].needs_features and METHODS[name].needs_online:
        with pytest.raises(ConfigError, match=f"method dropgen\\+{name[8:]} .* set features.source to 'online'"):
            require_trainable(experiment, bench.study)
    else:
        assert [method.name for method in require_trainable(experiment, bench.study)] == [name]


@pytest.mark.parametrize("method", ALWAYS, ids=lambda method: method.name)
def test_online_features_are_those_of_the_changed_crop(bench: Workbench, method: Component) -> None:
    online = with_source(bench, "online", method)
    batch, plain = batch_of(online, method), batch_of(online, Component.of("dropgen"))
    assert batch.features_bcxyz is not None
    assert torch.equal(batch.features_bcxyz, instance_norm(Mind()(batch.image_bcxyz)))
    assert not torch.equal(batch.image_bcxyz, plain.image_bcxyz)
    assert torch.equal(batch.kept_bc, plain.kept_bc)


def test_gin_leaves_stored_features_alone(bench: Workbench) -> None:
    gin, plain = (batch_of(bench, Component.of(name, p=0)) for name in ("dropgen+gin", "dropgen"))
    assert not torch.equal(gin.image_bcxyz, plain.image_bcxyz)
    assert gin.features_bcxyz is not None
    assert plain.features_bcxyz is not None
    assert torch.equal(gin.features_bcxyz, plain.features_bcxyz)


@pytest.mark.parametrize(
    ("method", "p"),
    [(Component.of("dropgen+mixup", **{"p": 0.5, "mixup.p": 1}), 0.5), (Component.of("mixup", p=1), None)],
)
def test_it_trains_and_only_dropgen_s_p_is_reported_as_p(bench: Workbench, method: Component, p: float | None) -> None:
    online = with_source(bench, "online", method)
    result = train_trial(online, trials_of(online.experiment)[0])
    assert (result["method"], result["p"], result["steps"]) == (method.name, p, 1)
    assert result["label"] == f"{method.label} seed=1"


@pytest.mark.parametrize(
    ("method", "options", "name"),
    [
        ("dropgen+gin", {"p": 0.5}, "DropGen + GIN p = 0.5"),
        ("dropgen+mixup", {"p": 0.5, "mixup.p": 0.25}, "DropGen + MixUp p = 0.5, mixup.p = 0.25"),
        ("dropgen+cutout", {}, "DropGen + CutOut"),
        ("gin_ipa", {"weight": 5}, "GIN+IPA weight = 5"),
        ("gin", {}, "GIN"),
        ("mixup", {"p": 0.25}, "MixUp p = 0.25"),
        ("cutout", {}, "CutOut"),
    ],
)
def test_tables_write_the_names_as_people_do(method: str, options: dict[str, Any], name: str) -> None:
    (group,) = group_rows([{"method": method, "p": None, "options": options}])
    assert group.name == name
