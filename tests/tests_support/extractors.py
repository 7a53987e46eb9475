"""What an extractor holds, for tests that it never changes."""

from __future__ import annotations

from torch import Tensor, nn

from dropgen.features.extractors import Extractor


def state_of(extractor: Extractor) -> dict[str, Tensor]:
    """Copies of every tensor that it holds, in networks or beside them."""
    held = vars(extractor)
    networks = {name: value.state_dict() for name, value in held.items() if isinstance(value, nn.Module)}
    inside = {f"{name}.{key}": tensor for name, state in networks.items() for key, tensor in state.items()}
    beside = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    return {name: tensor.clone() for name, tensor in (inside | beside).items()}
