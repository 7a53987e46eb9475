"""What a training step takes, known without taking it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dropgen.features.training_cost import Predictor, step_bytes, step_seconds

TINY = Predictor(in_channels=3, classes=2, base=2, downs=1, convs=1, batch=1)


def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    one, two, three = (step_bytes(replace(TINY, batch=batch), (8, 8, 8)) for batch in (1, 2, 3))
    assert three - two == two - one < one


def test_at_least_every_convolution_keeps_its_input() -> None:
    inputs = 0

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor], result: torch.Tensor) -> None:
        nonlocal inputs
        inputs += arguments[0].numel() * 4

    network = TINY.build()
    for layer in network.model:
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(count)
    network(torch.zeros(1, 3, 8, 8, 8))
    assert inputs <= step_bytes(TINY, (8, 8, 8)) < 20 * inputs


def test_a_crop_larger_than_any_memory_can_be_asked_for() -> None:
    assert step_bytes(TINY, (4096, 4096, 4096)) > 10**12


def test_a_long_crop_is_timed_on_a_short_one() -> None:
    assert 0 < step_seconds(TINY, (4096, 8, 8), "cpu") < 60


@pytest.mark.parametrize("downs", [1, 3])
def test_the_timed_crop_is_legal(downs: int) -> None:
    assert step_seconds(replace(TINY, downs=downs), (2 * 2**downs,) * 3, "cpu") > 0
