from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dropgen.__main__ import main
from dropgen.errors import StudyError
from dropgen.features.studies.check import check_study, require_sound
from dropgen.features.studies.study import read_study
from dropgen.features.studies.volume import write_mask, write_volume

SHAPE = (5, 6, 7)


def problems(tiny) -> list[str]:
    return check_study(read_study(tiny.write(), tiny.path))


def test_a_sound_study_has_no_problems(tiny) -> None:
    seen: list[str] = []
    study = read_study(tiny.write(), tiny.path)
    assert check_study(study, lambda case: seen.append(case.id)) == []
    assert seen == ["one", "two", "three"]
    require_sound(study)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def not_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"DICM" * 500))


def four_dimensional(path: Path) -> None:
    write_volume(path, np.zeros((5, 6, 7, 2), np.float32), np.eye(4))


def with_nan(path: Path) -> None:
    array = np.zeros(SHAPE, np.float32)
    array[4, 0, 2] = np.nan
    write_volume(path, array, np.eye(4))


def too_coarse(path: Path) -> None:
    write_volume(path, np.zeros(SHAPE, np.float32), np.diag([9e4, 9e4, 9e4, 1]))


@pytest.mark.parametrize(
    ("breaks", "word"),
    [
        (truncated, "damaged or truncated"),
        (not_nifti, "not a NIfTI file"),
        (four_dimensional, "4-D with shape [5, 6, 7, 2]"),
        (with_nan, "voxel [4, 0, 2] is nan"),
    ],
)
@pytest.mark.parametrize("part", ["image", "label"])
def test_a_broken_file_is_one_line_with_case_and_value(
    tiny, breaks: Callable[[Path], None], word: str, part: str
) -> None:
    path = getattr(tiny, part)(1)
    breaks(path)
    (line,) = problems(tiny)
    assert line.startswith("case two: ") and str(path) in line and word in line


def test_a_volume_that_cannot_be_prepared_is_named(tiny) -> None:
    too_coarse(tiny.image(2))
    tiny.rows[2]["label"] = ""
    (line,) = problems(tiny)
    assert line.startswith("case three: spacing [1.0, 1.0, 1.0] mm makes shape")


def test_unknown_label_values_are_named_with_their_voxels(tiny) -> None:
    mask = np.zeros(SHAPE)
    mask[0, 0, :3], mask[1, 1, 1] = 7, 2
    write_mask(tiny.label(0), mask, np.eye(4))
    assert problems(tiny) == [
        "case one: label value 2 (voxels: 1) is unknown; classes are 0..1 (background, organ)",
        "case one: label value 7 (voxels: 3) is unknown; classes are 0..1 (background, organ)",
    ]


def test_a_negative_label_value_is_unknown(tiny) -> None:
    write_volume(tiny.label(0), np.full(SHAPE, -1, np.int16), np.eye(4))
    assert "label value -1 (voxels: 210) is unknown" in problems(tiny)[0]


def test_a_label_off_the_image_grid_is_named_by_axis(tiny) -> None:
    write_mask(tiny.label(0), np.zeros((5, 6, 8)), np.eye(4))
    write_mask(tiny.label(1), np.zeros(SHAPE), np.diag([1, 1, 2, 1]))
    assert problems(tiny) == [
        f"case {case}: label is not on the image's grid: {difference}"
        for case, difference in (
            ("one", "axis z of the label has 8 voxels, of the image 7"),
            ("two", "step of axis z along world z differs by 1 mm between label and image"),
        )
    ]


def test_all_problems_are_collected_before_anything_is_refused(tiny) -> None:
    truncated(tiny.image(0))
    tiny.label(1).unlink()
    with_nan(tiny.image(2))
    tiny.rows[2]["subject"] = "one"
    with pytest.raises(StudyError) as caught:
        require_sound(read_study(tiny.write(), tiny.path))
    assert len(caught.value.problems) == 4
    assert "4 problems in 3 cases" in str(caught.value)


def test_the_verb_prints_one_document_for_a_sound_study(tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "check", str(tiny.write()), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == {
        "study": "tiny", "cases": 3, "problems": [], "splits": {"train": 1, "val": 1, "test": 1},
        "domains": {"a": 1, "b": 2}, "channels": [], "sound": True,
    }  # fmt: skip


def test_the_verb_exits_2_with_one_line_per_problem(tiny, capsys: pytest.CaptureFixture[str]) -> None:
    truncated(tiny.image(0))
    tiny.rows[1]["split"] = "validation"
    assert main(["study", "check", str(tiny.write()), "--json"]) == 2
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    lines = [line for line in captured.err.splitlines() if line.startswith("case ")]
    assert len(lines) == 2 and "validation" in lines[0] and "truncated" in lines[1]
    assert (document["sound"], document["problems"]) == (False, lines)
