from __future__ import annotations

import pytest

from dropgen import errors


def test_every_error_is_the_inputs_fault_and_exits_with_2() -> None:
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert len(classes) > 5
    assert all(issubclass(item, errors.DropGenError) and item.exit_code == 2 for item in classes)


def test_a_study_error_shows_one_problem_per_line() -> None:
    error = errors.StudyError("study heart has 2 problems", ["case a: axis 2", "case b: label 9"])
    assert str(error).splitlines() == ["study heart has 2 problems", "case a: axis 2", "case b: label 9"]


@pytest.mark.parametrize(("word", "answer"), [("stepz", "; did you mean 'steps'?"), ("zzzz", "; known: batch, steps")])
def test_the_closest_word_is_named_or_all_of_them(word: str, answer: str) -> None:
    assert errors.closest(word, ["steps", "batch"]) == answer
