from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.config import Training
from dropgen.errors import ResourceError
from dropgen.tuning.resources import shape

nodes = st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 16)}), min_size=1, max_size=4)


@given(nodes, st.integers(1, 4), st.integers(1, 4), st.integers(1, 8))
def test_trials_that_run_at_once_never_ask_for_more_than_any_node_has(
    nodes: list[dict[str, float]], threads: int, workers: int, concurrent: int
) -> None:
    training = Training(threads=threads, workers=workers)
    slots = sum(int(node["CPU"] // threads) for node in nodes)
    if slots < workers:
        with pytest.raises(ResourceError, match=f"ray start --head --num-cpus={threads * workers}"):
            shape(training, concurrent, nodes)
        return
    found = shape(training, concurrent, nodes)
    assert 1 <= found.concurrent <= concurrent
    assert found.concurrent * workers <= slots


def test_a_trial_of_many_threads_does_not_fit_on_many_small_machines() -> None:
    with pytest.raises(ResourceError, match="at most 2 on one machine"):
        shape(Training(threads=4), 1, [{"CPU": 2}, {"CPU": 2}, {"CPU": 2}])


def test_the_leader_of_a_worker_group_takes_no_cpu_from_its_workers() -> None:
    found = shape(Training(workers=2), 2, [{"CPU": 2}])
    assert found.resources["CPU"] == 0
    assert found.resources["memory"] > 0
    assert found.concurrent == 1


@pytest.mark.parametrize(
    ("device", "gpus", "resources"),
    [
        ("auto", 0, {"CPU": 1}),
        ("auto", 1, {"CPU": 1, "GPU": 0.5}),
        ("cuda", 4, {"CPU": 1, "GPU": 1.0}),
        ("cpu", 1, {"CPU": 1}),
    ],
)
def test_trials_share_what_gpus_there_are(device: Any, gpus: int, resources: dict[str, float]) -> None:
    node = {"CPU": 8.0} | ({"GPU": float(gpus)} if gpus else {})
    assert dict(shape(Training(device=device), 2, [node]).resources) == resources


def test_cuda_without_a_gpu_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(ResourceError, match=r"--training\.device=cpu"):
        shape(Training(device="cuda"), 1, [{"CPU": 8}])
