"""Training methods: what every one offers, and the registry that builds them by name."""

from __future__ import annotations

from dropgen.config import INTENSITY, Component
from dropgen.errors import ConfigError, closest
from dropgen.features.studies.intensity import require_rule
from dropgen.platform.methods.any_p import DropGenAnyP
from dropgen.platform.methods.compose import refusal, under_dropgen
from dropgen.platform.methods.cutout import CutOut
from dropgen.platform.methods.dropgen import DropGen
from dropgen.platform.methods.dsbn import Dsbn
from dropgen.platform.methods.erm import Erm
from dropgen.platform.methods.finetune import FinetuneDecoder, FinetuneExtractor, FinetuneScratch
from dropgen.platform.methods.gin import Gin
from dropgen.platform.methods.gin_ipa import GinIpa
from dropgen.platform.methods.layer_dropout import LayerDropout
from dropgen.platform.methods.method import Criterion, Method
from dropgen.platform.methods.mixstyle import MixStyle
from dropgen.platform.methods.mixup import MixUp
from dropgen.platform.methods.rep_only import RepOnly
from dropgen.platform.methods.rsc import Rsc
from dropgen.platform.methods.squeeze_excite import SqueezeExcite
from dropgen.platform.methods.structured_dropout import StructuredDropout

__all__ = ["ALIASES", "METHODS", "Criterion", "Method", "build"]

SINGLE: tuple[type[Method], ...] = (
    Erm, RepOnly, DropGen, Gin, GinIpa, MixUp, CutOut, LayerDropout, MixStyle, Rsc, Dsbn,
    DropGenAnyP, StructuredDropout, SqueezeExcite, FinetuneExtractor, FinetuneDecoder, FinetuneScratch
)  # fmt: skip
COMPOSED = tuple(under_dropgen(method) for method in SINGLE if method.under_dropgen)
METHODS: dict[str, type[Method]] = {method.name: method for method in (*SINGLE, *COMPOSED)}
ALIASES = {"maskgen": "dropgen"}


def build(component: Component) -> Method:
    """Builds a method by name; `dropgen+<name>` puts one method under DropGen.

    The option `intensity`, which every method takes, says how its volumes are prepared and is none of its business.

    Raises:
        ConfigError: Unknown name or option, methods that do not compose, or a value out of range.
    """
    name = "+".join(ALIASES.get(part, part) for part in component.name.split("+"))
    if name not in METHODS:
        unknown = f"unknown method '{component.name}'{closest(component.name, METHODS)}"
        raise ConfigError(refusal(name, METHODS) if "+" in name else unknown)
    if (rule := component.options.get(INTENSITY)) is not None:
        require_rule(rule)
    known = METHODS[name].options()
    for key in component.hyperparameters:
        if key not in known:
            hint = closest(key, known) if known else "; it has none"
            raise ConfigError(f"unknown option '{key}' of method '{name}'{hint}")
    return METHODS[name].of(component.hyperparameters)
