"""The scans of an input for a model of several channels: files of one case become the channels of one scan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dropgen.errors import ConfigError
from dropgen.serving.cases import SUFFIXES, Cases, Scan, require_distinct
from dropgen.serving.ledger import Outcome

NUMBERED = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


def with_channels(cases: Cases, channels: Sequence[str], source: Path) -> Cases:
    """Cases as a model takes them.

    For a model of one channel every file stays a scan. For one of several, files of a folder are named as nnU-Net names
    them, `case_0000.nii.gz`, `case_0001.nii.gz`, in the order of the model's channels; a manifest names a column
    `image_<channel>` for each, in any order. What is no such case, as a DICOM series is none, is left out or fails with
    its reason.

    Args:
        cases: From `find_cases`.
        channels: Names of the model's channels; none where it has one.
        source: Where the cases are from.

    Raises:
        ConfigError: A manifest names other channels than the model's, or nothing is left to segment.
    """
    named = {scan.channels for scan in cases.scans if not scan.series}
    if not channels:
        for other in named - {()}:
            raise ConfigError(f"{source} names the channels {', '.join(other)} and the model takes one; name 'image'")
        return cases
    wanted = f"{len(channels)} channels, {', '.join(channels)}"
    given = next(iter(named), ())
    if given:
        if sorted(given) != sorted(channels):
            raise ConfigError(f"{source} names the channels {', '.join(given)} and the model takes {wanted}")
        places = [given.index(name) for name in channels]
        ordered = (replace(scan, paths=tuple(scan.paths[place] for place in places)) for scan in cases.scans)
        return replace(cases, scans=tuple(ordered))
    files: dict[str, dict[int, Scan]] = {}
    others = list(cases.others)
    for scan in cases.scans:
        match = None if scan.series else NUMBERED.fullmatch(_stem(scan.paths[0]))
        if match is None or int(match["channel"]) >= len(channels):
            reason = f"a case is {_stem(scan.paths[0])}_0000 to _{len(channels) - 1:04d}"
            if scan.series:
                reason = "a DICOM series is one of them; convert them to NIfTI"
            others.append(Outcome(scan.case, scan.file, "failed", f"the model takes {wanted}: {reason}"))
        else:
            files.setdefault(match["case"], {})[int(match["channel"])] = scan
    scans = []
    for case, found in files.items():
        first = found[min(found)]
        if missing := [name for place, name in enumerate(channels) if place not in found]:
            reason = f"channel {missing[0]} is missing; the model takes {wanted}"
            others.append(Outcome(case, first.file, "failed", reason))
        else:
            paths = tuple(found[place].paths[0] for place in range(len(channels)))
            scans.append(replace(first, case=case, paths=paths, channels=tuple(channels)))
    if not scans:
        raise ConfigError(f"{source} holds no image of {wanted}; {others[0].file}: {others[0].reason}")
    require_distinct(scans, source)
    return Cases(tuple(scans), tuple(others))


def _stem(path: Path) -> str:
    """A file's name without its ending."""
    ending = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)]
