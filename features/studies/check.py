"""Everything that can be wrong with a study, found before any work: one line per problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dropgen.errors import StudyError, VolumeError
from dropgen.features.studies.geometry import grid_difference
from dropgen.features.studies.prepare import Grid, require_one_grid
from dropgen.features.studies.study import Case, Study, structure_problems
from dropgen.features.studies.volume import Volume, read_mask, read_volume


def check_study(study: Study, on_case: Callable[[Case], None] | None = None) -> list[str]:
    """Opens every image and label of a study.

    Args:
        study: Possibly broken, as `read_study` gives it.
        on_case: Called after each case, for a progress bar.

    Returns:
        All problems, each naming case, axis or value; empty for a sound study.
    """
    problems = structure_problems(study)
    for case in study.cases:
        problems += [f"case {case.id}: {line}" for line in _volume_problems(case, study)]
        if on_case:
            on_case(case)
    return problems


def require_sound(study: Study, on_case: Callable[[Case], None] | None = None) -> None:
    """Checks a study and refuses a broken one.

    Raises:
        StudyError: With all problems.
    """
    if problems := check_study(study, on_case):
        found = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {len(study.cases)} cases"
        raise StudyError(f"study {study.name} is not sound, {found}:", problems)


def _volume_problems(case: Case, study: Study) -> list[str]:
    """What is wrong inside a case's files; files that do not exist are the structure's problem."""
    problems = []
    image = mask = None
    channels = {}
    for name, path in zip(study.channels or ("",), case.images, strict=True):
        try:
            if path.is_file():
                channels[f"{name} ({path})"] = read_volume(path)
        except VolumeError as error:
            problems.append(f"{f'channel {name}: ' if name else ''}{error}")
    try:
        if channels:
            image = next(iter(channels.values()))
            Grid.of(image, study.preparation)
            require_one_grid(tuple(channels.values()), tuple(channels))
    except VolumeError as error:
        problems.append(str(error))
    try:
        if case.label is not None and case.label.is_file():
            mask = read_mask(case.label)
            problems += _unknown_values(mask, study)
    except VolumeError as error:
        problems.append(str(error))
    if image and mask and (difference := grid_difference(mask, image.array.shape, image.affine)):
        problems.append(f"label is not on the image's grid: {difference}")
    return problems


def _unknown_values(mask: Volume, study: Study) -> list[str]:
    values, counts = np.unique(mask.array, return_counts=True)
    last = study.labelling.last
    return [
        f"label value {value} (voxels: {count}) is unknown; classes are 0..{last} ({', '.join(study.classes)})"
        for value, count in zip(values, counts, strict=True)
        if not 0 <= value <= study.labelling.highest
    ]
