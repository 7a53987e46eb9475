"""The random extractor: its seed and its number of channels are all there is to it."""

from __future__ import annotations

import pytest
import torch

from dropgen.errors import ConfigError
from dropgen.features.extractors import instance_norm
from dropgen.features.extractors.random_conv import RandomConv


def image() -> torch.Tensor:
    return torch.rand(1, 1, 6, 5, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 5])
def test_the_seed_gives_the_same_features_and_another_seed_others(channels: int) -> None:
    one, two, other = (RandomConv(channels, seed)(image()) for seed in (3, 3, 4))
    assert one.shape == (1, channels, 6, 5, 7)
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)


def test_it_is_a_convolution_so_the_norm_makes_it_blind_to_scale_and_shift() -> None:
    extractor = RandomConv(4)
    one, other = (instance_norm(extractor(x)) for x in (image(), 3 * image() + 2))
    assert torch.allclose(one, other, atol=1e-3)


def test_it_takes_a_single_voxel() -> None:
    assert RandomConv(2)(torch.rand(1, 1, 1, 1, 1)).shape == (1, 2, 1, 1, 1)


@pytest.mark.parametrize("options", [{"channels": 0}, {"channels": 1.5}, {"seed": -1}, {"seed": True}])
def test_bad_values_are_refused_with_the_value(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name} = {value!r}"):
        RandomConv(**options)  # type: ignore[arg-type]
