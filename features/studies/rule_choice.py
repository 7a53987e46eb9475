"""Which intensity rule suits a study, with the reason in words."""

from __future__ import annotations

from dropgen.features.studies.fingerprint import UNNAMED, Intensities

AIR = -900.0  # HU; no other unit has values so far below 0 in every volume
STRETCHED = 2.0  # extremes that make the range so many times wider leave the tissues half of the unit scale, or less


def choose_rule(modality: str, values: Intensities) -> tuple[str, str]:
    """A rule of `intensity.RULES` for one modality, and why.

    Args:
        modality: As the study names it.
        values: Of its training cases.
    """
    if modality.casefold() == "ct":
        return "hu", "the modality is CT"
    if modality == UNNAMED and values.low <= AIR:
        return "hu", f"values go down to {values.low:g}, as air does in Hounsfield units"
    if values.stretch > STRETCHED:
        return "percentile", f"extremes make the range {values.stretch:.1f} times as wide as 99% of the voxels need"
    return "minmax", f"extremes make the range only {values.stretch:.1f} times as wide as 99% of the voxels need"
