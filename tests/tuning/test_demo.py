"""What the demo says of its own table."""

from __future__ import annotations

from typing import Any

from dropgen.tuning.demo import contrast_sentence


def row(method: str, p: float | None, selected: bool, source: float, **targets: float) -> dict[str, Any]:
    return {
        "method": method, "p": p, "options": {}, "seed": 1, "val_dice": 0.5, "selected": selected,
        "source_dice": source, "target_dice": targets,
    }  # fmt: skip


def test_the_sentence_tells_gains_under_contrast_and_costs_elsewhere_over_the_seeds() -> None:
    rows = [
        row("erm", None, False, 0.90, inverted=0.10, remapped=0.20, noisy=0.80, biased=0.5),
        row("erm", None, False, 0.92, inverted=0.30, remapped=0.20, noisy=0.80, biased=0.5),
        row("dropgen", 0.5, True, 0.88, inverted=0.80, remapped=0.60, noisy=0.60, biased=0.6),
        row("dropgen", 0.0, False, 0.99, inverted=0.99, remapped=0.99, noisy=0.99, biased=0.99),
    ]
    said = contrast_sentence(rows)
    assert "DropGen p = 0.5 gains +50.0 Dice points on the mean of inverted and remapped" in said
    assert "-3.0 on the source, -20.0 on noisy, +10.0 on biased" in said


def test_without_erm_the_sentence_claims_nothing() -> None:
    only = [row("dropgen", 0.5, True, 0.88, inverted=0.80, remapped=0.60, noisy=0.60, biased=0.6)]
    assert contrast_sentence(only) == "DropGen p = 0.5 was not compared with ERM here."
