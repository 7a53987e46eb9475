"""DropGen on crops that another method changes first: `dropgen+gin`, `dropgen+mixup`, `dropgen+cutout`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from dropgen.errors import closest
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.method import Method

# DropGen's input has every channel of the image once, so a method that repeats them has no choice.
FIXED = {"channels": 1}


def under_dropgen(method: type[Method]) -> type[Method]:
    """The class of DropGen with `method` under it, named `dropgen+<name>`.

    `p` and `min_keep` are DropGen's options; the inner method's carry its name and a dot, `mixup.p`.
    """
    prefix = f"{method.name}."

    @dataclass(frozen=True)
    class Composition(DropGen):
        """DropGen whose crops pass through the inner method before features are extracted from them.

        Attributes:
            inner: Changes image and label of every crop.
        """

        inner: Method = field(kw_only=True)

        kind: ClassVar[str] = "composition"
        name: ClassVar[str] = f"{DropGen.name}+{method.name}"
        needs_online: ClassVar[bool] = method.needs_online
        one_class: ClassVar[bool] = method.one_class
        search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
            **DropGen.search_space,
            **{prefix + key: values for key, values in method.search_space.items()},
        }
        source: ClassVar[str] = f"{DropGen.source}; {method.source}"

        @classmethod
        def options(cls) -> dict[str, Any]:
            theirs = {prefix + key: value for key, value in method.options().items() if key not in FIXED}
            return DropGen.options() | theirs

        @classmethod
        def of(cls, options: Mapping[str, Any]) -> Self:
            fixed = {key: value for key, value in FIXED.items() if key in method.options()}
            theirs = {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
            ours = {key: value for key, value in options.items() if not key.startswith(prefix)}
            return cls(**ours, inner=method.of(theirs | fixed))

        def augment(
            self, image_bcxyz: Tensor, label_bcxyz: Tensor, classes: int, generators: Sequence[np.random.Generator]
        ) -> tuple[Tensor, Tensor]:
            return self.inner.augment(image_bcxyz, label_bcxyz, classes, generators)

    return Composition


def refusal(name: str, methods: Mapping[str, type[Method]]) -> str:
    """One sentence on why a name with a plus is no method, and what composes.

    Args:
        name: Such as `gin+mixup`.
        methods: All that are registered.
    """
    outer, *inner = name.split("+")
    for part in (outer, *inner):
        if part not in methods:
            return f"unknown method '{part}' in '{name}'{closest(part, [word for word in methods if '+' not in word])}"
    if outer != DropGen.name:
        why = f"no method goes under {outer}, only under {DropGen.name}"
    elif len(inner) > 1:
        why = f"one method goes under {DropGen.name}, not {len(inner)}"
    else:
        why = f"{_deed(methods[inner[0]])}, and what goes under {DropGen.name} changes image and label of a crop alone"
    return f"'{name}' is no method: {why}; these compose: {', '.join(word for word in methods if '+' in word)}"


def _deed(method: type[Method]) -> str:
    if method.needs_features:
        return f"{method.name} reads features itself"
    return f"{method.name} changes {'nothing' if method.acts_on == 'nothing' else f'the {method.acts_on}'}"
