"""Batches: one geometry on image, label and features; masks known before reading; noise on the image only."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dropgen.config import Component
from dropgen.features.extractors import instance_norm
from dropgen.features.extractors.identity import Identity
from dropgen.features.extractors.mind import Mind
from dropgen.features.store.compact import decode, encode
from dropgen.features.symmetry import IDENTITY, SYMMETRIES, AxisSymmetry
from dropgen.features.unet import UNet
from dropgen.platform.methods import build
from dropgen.platform.methods.batch import Batch
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.train import Workbench
from dropgen.platform.training.augment import add_noise, warp
from dropgen.platform.training.batches import Batches, Prefetched
from dropgen.platform.training.losses import dice_ce
from dropgen.platform.training.plan import Sample, SamplePlan
from tests_support.tiny import tiny_bench

CHANNELS = 12


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return tiny_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """Its stored features are the image itself."""
    return tiny_bench(tmp_path_factory.mktemp("plain"), features={"extractor": {"name": "identity"}})


def batches(bench: Workbench, p: float = 0.0, online_share: float = 0, **changes: object) -> Batches:
    method = build(Component.of("dropgen", p=p))
    cases = bench.study.split("train")
    shapes = {case.id: bench.store.volume(bench.index.keys[case.id].volume).shape for case in cases}
    plan = SamplePlan(
        1, shapes, changes.pop("crop", (16, 16, 16)), lambda g: method.draw(g, CHANNELS), True, False, 0.5
    )  # type: ignore[arg-type]
    augmentation = bench.experiment.training.augmentation.model_copy(update={"intensity": False} | changes)
    keys = {case.id: bench.index.keys[case.id] for case in cases}
    return Batches(plan, (0, 1), method, 3, bench.store, keys, Mind(), online_share, augmentation, "cpu")


def moving(maker: Batches) -> Batches:
    """The same, every sample under a symmetry and an affine map."""
    return dataclasses.replace(maker, plan=dataclasses.replace(maker.plan, affine=True, probability=1.0))


@pytest.mark.parametrize("step", range(6))
def test_stored_features_equal_online_ones_when_the_crop_is_the_volume(bench: Workbench, step: int) -> None:
    whole = (20, 20, 20)
    stored = batches(bench, crop=whole).at(step)
    online = batches(bench, crop=whole, online_share=1).at(step)
    assert torch.equal(stored.image_bcxyz, online.image_bcxyz)
    assert stored.features_bcxyz is not None
    assert online.features_bcxyz is not None
    assert torch.allclose(stored.features_bcxyz, online.features_bcxyz, atol=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_where_nothing_is_augmented_stored_features_are_the_online_ones_to_the_last_bit(
    tmp_path: Path, dtype: str
) -> None:
    maker = batches(tiny_bench(tmp_path, features={"dtype": dtype}), crop=(20, 20, 20))
    case = next(iter(maker.keys))
    sample = Sample(case, (0, 0, 0), (20, 20, 20), IDENTITY, None, np.ones(13, bool), 0)
    unit, _, stored = maker.read(sample)
    assert stored is not None
    online = Mind()(unit[None])[0]
    if dtype == "int8":
        coded = [encode(channel.numpy()) for channel in online]
        affine = np.float32([[scale for _, scale, _ in coded], [offset for _, _, offset in coded]])
        online = decode(torch.from_numpy(np.stack([codes for codes, _, _ in coded])), affine)
    assert torch.equal(stored, online.to(getattr(torch, dtype if dtype != "int8" else "float32")).float())


def test_beyond_a_stored_crop_lies_the_extractors_response_to_background(bench: Workbench) -> None:
    maker = batches(bench)
    case = next(iter(maker.keys))
    sample = Sample(case, (2, 2, 2), (16, 16, 16), IDENTITY, 2 * np.eye(3), np.ones(13, bool), 0)
    unit, _, features = maker.read(sample)
    empty = Mind()(torch.zeros(1, 1, 5, 5, 5))[0, :, 2, 2, 2]
    assert features is not None
    assert (unit[0, :3] == 0).all()
    assert torch.allclose(features[:, :3], empty.view(-1, 1, 1, 1).expand(-1, 3, 16, 16), atol=1e-6)
    assert (features[:, 6:10, 6:10, 6:10] < 0.9).any()


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
def test_a_replayed_symmetry_gives_the_features_of_the_turned_volume(bench: Workbench, symmetry: AxisSymmetry) -> None:
    maker = batches(bench)
    case = next(iter(maker.keys))
    sample = Sample(case, (0, 0, 0), (20, 20, 20), symmetry, None, np.ones(13, bool), 0)
    whole = dataclasses.replace(maker, plan=dataclasses.replace(maker.plan, crop=(20, 20, 20)))
    unit = torch.from_numpy(bench.store.volume(maker.keys[case].volume).unit.copy())[None]
    expected = Mind()(symmetry(unit), Mind().fit(unit))[0]
    assert torch.allclose(whole._stored_features(sample), expected, atol=1e-5)


@settings(max_examples=40)
@given(symmetry=st.sampled_from(SYMMETRIES), seed=st.integers(0, 2**32 - 1))
def test_image_label_and_features_move_by_one_symmetry_and_one_affine_map(
    plain: Workbench, symmetry: AxisSymmetry, seed: int
) -> None:
    generator, crop = np.random.default_rng(seed), (16, 14, 12)
    maker = dataclasses.replace(moving(batches(plain, crop=crop)), extractor=Identity())
    size = [crop[symmetry.order.index(axis)] for axis in range(3)]  # what the symmetry turns into the crop
    x, y, z = (int(generator.integers(20 - edge + 1)) for edge in size)
    affine = maker.plan._affine(generator)
    assert affine is not None
    assert not np.allclose(affine, affine.T, atol=0.01)
    case, keys = next(iter(maker.keys.items()))
    sample = Sample(case, (x, y, z), tuple(size), symmetry, affine, np.ones(2, bool), 0)

    unit, _, features = maker.read(sample)
    assert features is not None
    assert torch.allclose(features, unit, atol=1e-5)

    assert keys.label is not None
    if not plain.store.has("features", "label"):
        organs = (plain.store.label(keys.label) > 0)[None].astype(np.float32)
        plain.store.put_features("label", organs, None, {"case": case}, "float32")
    own = dataclasses.replace(maker, keys={case: dataclasses.replace(keys, features="label")})
    _, label, share = own.read(sample)
    assert share is not None
    inside, outside = share > 1 - 1e-4, share < 1e-4  # all eight voxels around agree, so the nearest does
    assert inside.any() and outside.any()
    assert (label[inside] > 0).all()
    assert (label[outside] == 0).all()


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_reading_only_survivors_gives_the_loss_of_dropping_after_reading(bench: Workbench, p: float) -> None:
    maker = moving(batches(bench, p))
    read_all = dataclasses.replace(maker.plan, draw=lambda generator: (maker.plan.draw(generator)[0] | True, 0.0))
    batch, full = (as_double(made.at(3)) for made in (maker, dataclasses.replace(maker, plan=read_all)))
    drawn_bc = torch.from_numpy(np.stack([maker.plan.sample(3, slot).kept for slot in maker.slots]))
    assert torch.equal(batch.kept_bc, drawn_bc)
    assert full.kept_bc.all()
    assert full.features_bcxyz is not None
    u_bcxyz = torch.cat((full.image_bcxyz, full.features_bcxyz), dim=1)
    dropped_bcxyz = u_bcxyz * drawn_bc[:, :, None, None, None] / (1 - p)
    found = loss_and_gradients(lambda network: DropGen(p=p).loss(network, batch, dice_ce()))
    expected = loss_and_gradients(lambda network: dice_ce()(network(dropped_bcxyz), full.label_bcxyz))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def as_double(batch: Batch) -> Batch:
    assert batch.features_bcxyz is not None
    return dataclasses.replace(
        batch, image_bcxyz=batch.image_bcxyz.double(), features_bcxyz=batch.features_bcxyz.double()
    )


def loss_and_gradients(loss_of: Callable[[UNet], Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    network = UNet(1 + CHANNELS, 3, base=4, downs=1).double()
    loss = loss_of(network)
    return [loss.detach(), *torch.autograd.grad(loss, list(network.parameters()))]


@pytest.mark.parametrize("p", [0.0, 0.5, 0.95])
def test_the_norm_of_survivors_alone_is_that_of_all_channels_to_the_last_bit(bench: Workbench, p: float) -> None:
    maker = moving(batches(bench, p))
    for step in range(4):
        read = [maker.read(maker.plan.sample(step, slot))[2] for slot in maker.slots]
        features = maker.at(step).features_bcxyz
        assert features is not None
        assert torch.equal(features, instance_norm(torch.stack([each for each in read if each is not None])))


def test_with_a_share_online_every_sample_is_the_stored_or_the_online_one_by_its_own_seed(bench: Workbench) -> None:
    def of(share: float, slots: tuple[int, ...] = (0, 1)) -> Batches:
        made = moving(batches(bench, 0.5, share, intensity=True, probability=1.0))
        return dataclasses.replace(made, slots=slots)

    chosen = []
    for step in range(12):
        mixed, stored, online = (of(share).at(step) for share in (0.4, 0, 1))
        assert mixed.features_bcxyz is not None and stored.features_bcxyz is not None
        assert online.features_bcxyz is not None
        assert torch.equal(mixed.image_bcxyz, stored.image_bcxyz) and torch.equal(mixed.kept_bc, stored.kept_bc)
        for slot in (0, 1):
            is_stored = torch.equal(mixed.features_bcxyz[slot], stored.features_bcxyz[slot])
            is_online = torch.allclose(mixed.features_bcxyz[slot], online.features_bcxyz[slot], atol=1e-5)
            assert is_stored != is_online
            alone = of(0.4, (slot,)).at(step).features_bcxyz
            assert alone is not None and torch.allclose(alone[0], mixed.features_bcxyz[slot], atol=1e-5)
            chosen.append(is_online)
    assert 3 <= sum(chosen) <= 17  # of 24 at 0.4: 9.6 +- 2.4


def test_samples_online_read_no_stored_features(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batches, "_stored_features", lambda maker, sample: pytest.fail("it read them"))
    assert batches(bench, online_share=1).at(0).features_bcxyz is not None


def test_dropped_channels_are_never_read(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    kind = type(bench.store.features(next(iter(bench.index.keys.values())).features or ""))
    original = kind.read
    monkeypatch.setattr(
        kind, "read", lambda self, channels, box: read.append(len(channels)) or original(self, channels, box)
    )  # type: ignore[func-returns-value]
    maker = batches(bench, p=0.75)
    batch = maker.at(0)
    assert sum(read) == int(batch.kept_bc[:, 1:].sum())


def test_a_constant_field_keeps_its_value_under_an_affine_map() -> None:
    matrix = np.array([[0.9, 0.3, 0], [-0.3, 0.9, 0.1], [0, 0, 1.1]])
    moved = warp(torch.ones(3, 8, 10, 6), matrix, torch.ones(3))
    assert torch.allclose(moved, torch.ones(3, 8, 10, 6))


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 8, 5)])
def test_a_quarter_turn_as_an_affine_map_equals_the_exact_symmetry(shape: tuple[int, int, int]) -> None:
    crop = torch.rand(2, *shape)
    turn = AxisSymmetry((1, 0, 2), (True, False, False))
    matrix = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    assert torch.allclose(warp(crop, matrix, torch.zeros(2)), turn(crop), atol=1e-5)


def test_noise_is_a_function_of_its_seed_and_stays_in_the_unit_scale() -> None:
    unit = torch.rand(1, 16, 16, 16)
    one, two, other = add_noise(unit, 5, 1.0), add_noise(unit, 5, 1.0), add_noise(unit, 6, 1.0)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_intensity_noise_leaves_stored_features_and_labels_alone(bench: Workbench) -> None:
    clean, noisy = batches(bench).at(2), batches(bench, intensity=True, probability=1.0).at(2)
    assert not torch.equal(clean.image_bcxyz, noisy.image_bcxyz)
    assert torch.equal(clean.label_bcxyz, noisy.label_bcxyz)
    assert clean.features_bcxyz is not None
    assert noisy.features_bcxyz is not None
    assert torch.equal(clean.features_bcxyz, noisy.features_bcxyz)


def test_prefetched_batches_come_in_order_and_equal_the_direct_ones(bench: Workbench) -> None:
    maker = batches(bench, p=0.5)
    for step, batch in Prefetched(maker, 2, 6):
        assert torch.equal(batch.image_bcxyz, maker.at(step).image_bcxyz)


def test_waiting_is_the_time_that_batches_were_late_and_no_other(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def slow(maker: Batches, step: int) -> Batch:
        time.sleep(0.1)
        made.append(step)
        return direct(maker, 0)

    direct = Batches.at
    monkeypatch.setattr(Batches, "at", slow)
    late = Prefetched(batches(bench), 0, 4)
    list(late)
    assert late.waited >= 0.35

    made.clear()
    early = Prefetched(batches(bench), 0, 4)
    ahead = iter(early)
    next(ahead)
    waited = early.waited
    while len(made) < 4:
        time.sleep(0.01)
    time.sleep(0.3)
    list(ahead)
    assert early.waited - waited < 0.15


def test_an_error_while_loading_reaches_the_training_loop(bench: Workbench) -> None:
    broken = dataclasses.replace(batches(bench), keys={})
    with pytest.raises(KeyError):
        list(Prefetched(broken, 0, 2))
