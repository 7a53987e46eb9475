"""The page of a folder of masks: what there is to look at first, then every mask with its picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from dropgen.platform.card import RESEARCH_ONLY
from dropgen.serving.ledger import Outcome
from dropgen.serving.models import Model

SUMMARY_FILE = "outcomes.html"
TEMPLATE = Path(__file__).with_name("summary.html.j2")


def write_summary(folder: Path, outcomes: Sequence[Outcome], model: Model, counts: str) -> Path:
    """Writes `outcomes.html`; pictures are those that lie beside the masks, and nothing is loaded from elsewhere.

    Args:
        folder: With the masks.
        outcomes: Of every file; those with something to look at come first.
        model: Made the masks.
        counts: The headline.

    Raises:
        OSError: It cannot be written.
    """
    made = sorted((one for one in outcomes if one.findings), key=lambda one: not (one.findings and one.findings.flags))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text())
    text = page.render(
        counts=counts,
        model=model,
        use=RESEARCH_ONLY,
        classes=model.classes[1:],
        refused=[one for one in outcomes if one.findings is None],
        made=made,
    )
    path, partial = folder / SUMMARY_FILE, folder / f".{SUMMARY_FILE}.{os.getpid()}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path
