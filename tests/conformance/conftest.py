"""Every registered extractor, with weights that nobody trained where its own are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dropgen.config import Component
from dropgen.features.extractors import EXTRACTORS, Extractor, build
from dropgen.features.extractors.anatomix import DEV, VARIANTS, architecture
from tests_support.formulas import set_formula_weights
from tests_support.nninteractive import require_package, write_model

SMALL_DEV = replace(DEV, base=2)
OTHER_OPTIONS = (
    Component.of("mind", dilations=(1, 2)),
    Component.of("anatomix", variant=DEV.name),
    Component.of("nninteractive", normalisation="none"),
    Component.of("random", channels=3, seed=1),
)
COMPONENTS = (*(Component.of(name) for name in EXTRACTORS), *OTHER_OPTIONS)


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for network, name in ((architecture(), "anatomix.pth"), (SMALL_DEV.network(), DEV.file_name)):
        set_formula_weights(network)
        torch.save(network.state_dict(), folder / name)
    return folder


@pytest.fixture(params=COMPONENTS, ids=lambda component: component.label)
def component(request: pytest.FixtureRequest, weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Component:
    """One that `build` finds the weights of."""
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(weights_folder))
    monkeypatch.setitem(VARIANTS, DEV.name, SMALL_DEV)
    if request.param.name == "nninteractive":
        require_package()
        write_model(weights_folder)
    return request.param


@pytest.fixture
def extractor(component: Component) -> Extractor:
    return build(component)
