from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dropgen.config import Component
from dropgen.features.studies.prepare import Grid, prepare
from dropgen.features.studies.volume import Volume
from dropgen.platform.adaptation import build
from dropgen.platform.adaptation.adapted import AdaptedSegmenter
from dropgen.platform.evaluation.inference import native_mask
from dropgen.platform.evaluation.live import peak_bytes
from dropgen.platform.evaluation.memory import MemoryPlan, plan_memory
from dropgen.platform.segmenter import Segmenter
from tests_support.segmenters import make_segmenter

SIXTEEN = ("background", *(f"class {index}" for index in range(1, 16)))


def plan_of(segmenter: Segmenter, shape: tuple[int, int, int], maps: int = 0) -> MemoryPlan:
    blank = Volume(np.broadcast_to(np.float32(0), shape), np.eye(4))
    return plan_memory(segmenter, Grid.of(blank, segmenter.spec.preparation), maps)


def test_what_is_alive_at_once_is_counted_and_what_is_freed_or_shared_is_not() -> None:
    kept: list[torch.Tensor] = []

    def work() -> None:
        kept.append(torch.zeros(1000))
        for _ in range(5):
            torch.ones(500).add_(1)[:10].view(-1)

    assert peak_bytes(work) == 4 * 1500
    assert peak_bytes(lambda: kept[0].mul_(2)) in (0, 4000)  # what was there before is counted only when it is touched


def measured(work: Callable[[], object]) -> int:
    """The most bytes of arrays and tensors together; an upper bound, because the two peaks need not coincide."""
    gc.collect()
    tracemalloc.start()
    tensors = peak_bytes(work)
    _, arrays = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return tensors + arrays


@pytest.mark.parametrize("name", ["erm", "dropgen", "dsbn"])
def test_the_windows_of_a_volume_take_what_was_planned(name: str) -> None:
    segmenter = make_segmenter(Component.of(name), classes=SIXTEEN)
    volume = Volume(np.random.default_rng(0).random((70, 40, 44), np.float32), np.eye(4))
    prepared = prepare([volume], segmenter.spec.preparation)
    planned = plan_of(segmenter, volume.array.shape).stages["windows"]
    found = volume.array.nbytes + prepared.unit.nbytes
    found += measured(lambda: segmenter.over_slabs(prepared, None, lambda slabs: native_mask(slabs, prepared.grid)))
    assert 0.25 * planned < found < 1.1 * planned  # MIND is planned as what its largest tile takes, and this is less


def test_classes_cost_one_windows_depth_of_planes_and_not_the_volume() -> None:
    short, long = (
        plan_of(make_segmenter(Component.of("erm"), classes=SIXTEEN), (edge, 100, 100)) for edge in (200, 400)
    )
    voxels = 200 * 100 * 100
    # The image in its file's and the prepared voxels, and the mask: no class enters what a longer volume takes.
    assert long.stages["windows"] - short.stages["windows"] == (4 + 4 + 1) * voxels


def test_a_test_time_method_holds_the_scores_of_the_volume_and_learns_from_windows() -> None:
    erm, rep_only = make_segmenter(Component.of("erm")), make_segmenter(Component.of("rep_only"))
    shape, classes = (64, 64, 64), 3
    for name, copies, stable in (("tent", 1, None), ("sfb", 3.5, rep_only), ("alpha", 4, rep_only)):
        plan = plan_of(AdaptedSegmenter(build(Component.of(name)), erm, stable), shape)
        plain = plan_of(stable or erm, shape)
        assert plan.stages["windows"] - plain.stages["windows"] >= 4 * copies * classes * 64**3
    before = [parameter.grad for parameter in erm.network.parameters()]
    assert erm.learning_bytes > 2 * erm.window_bytes  # a backward pass keeps what the forward pass made
    assert all(grad is None for grad in before)
    assert all(parameter.grad is None for parameter in erm.network.parameters())


def test_the_measured_window_grows_with_its_voxels_and_leaves_the_network_as_it_was() -> None:
    segmenter = make_segmenter(Component.of("dropgen", p=0.5), feature_scope="window")
    segmenter.network.train()
    state = {key: value.clone() for key, value in segmenter.network.state_dict().items()}
    small = segmenter.window_bytes
    wider = segmenter.spec.model_copy(update={"crop": (32, 32, 16)})
    large = Segmenter(wider, segmenter.network, segmenter.method, segmenter._extractor).window_bytes
    assert large == pytest.approx(4 * small, rel=1e-6)
    assert segmenter.network.training
    assert all(torch.equal(value, state[key]) for key, value in segmenter.network.state_dict().items())
