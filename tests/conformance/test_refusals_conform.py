"""Whatever a configuration file may hold: every option of every registered part refuses nonsense, by name and value.

Nonsense is told by the default: no option takes it, whatever it means. Ends of ranges are in the tests of each part.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from dropgen.config import Component
from dropgen.errors import ConfigError
from dropgen.features import extractors
from dropgen.platform import adaptation, methods
from dropgen.platform.catalogue import Entry, catalogue
from dropgen.platform.external import EXTERNALS

EVER = (-1, -0.5, math.nan, math.inf, -math.inf, [], [[0]], {}, {"a": 1}, (0,))
BUILD = {"adaptation": adaptation.build, "extractor": extractors.build}


def nonsense(default: object) -> list[Any]:
    """Values that an option with this default cannot have."""
    found: list[Any] = list(EVER)
    if not isinstance(default, bool):
        found += [True, False]
    if default is not None:  # None stands for a text or a number that may be left out
        found += [None, "nonsense", ""]
    return found


def cases() -> list[tuple[Entry, str]]:
    return [(entry, option) for entry in catalogue() for option in entry.hyperparameters]


@pytest.mark.parametrize(("entry", "option"), cases(), ids=lambda value: getattr(value, "name", value))
def test_nonsense_is_refused_at_construction_in_a_sentence_that_names_the_value(
    entry: Entry, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)  # an option is looked at before weights are looked for
    build = EXTERNALS[entry.name].build if entry.kind == "external" else BUILD.get(entry.kind, methods.build)
    inner, _, key = option.rpartition(".")  # an option of the method under DropGen is that method's to refuse
    for value in nonsense(entry.hyperparameters[option]):
        with pytest.raises(ConfigError) as caught:
            build(Component.of(entry.name, **{option: value}))
        assert str(caught.value).startswith(f"{inner or entry.name}: {key} = {value!r} ")
        assert "\n" not in str(caught.value)


def test_an_unknown_option_is_named_with_what_there_is() -> None:
    for entry in catalogue():
        build = EXTERNALS[entry.name].build if entry.kind == "external" else BUILD.get(entry.kind, methods.build)
        with pytest.raises(ConfigError, match="unknown option 'nonsense' of .*" + entry.name.replace("+", r"\+")):
            build(Component.of(entry.name, nonsense=1))
