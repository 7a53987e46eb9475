"""Every error a user can meet, one class per kind of remedy.

The message is one sentence: what is wrong, where (case, axis, value) and what to do. The command
line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DropGenError(Exception):
    """Base of all errors that are the input's or the machine's fault, not the program's.

    Attributes:
        document: The verb's JSON document, printed all the same with `--json`, where part of the work was done.
    """

    exit_code = 2
    document: dict[str, Any] | None = None


class ConfigError(DropGenError):
    """A configuration value, key or command-line option is wrong."""


class StudyError(DropGenError):
    """A study cannot be read or one of its cases is broken.

    Attributes:
        problems: One line per problem, each naming case, axis or value.
    """

    def __init__(self, message: str, problems: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join((message, *self.problems)))


class VolumeError(DropGenError):
    """One image or mask file cannot be used."""


class WeightsError(DropGenError):
    """Extractor weights are missing or are not the ones that are needed."""


class StoreError(DropGenError):
    """The feature store does not hold what is asked for, or holds it damaged."""


class CheckpointError(DropGenError):
    """A checkpoint or a Segmenter bundle is unreadable or belongs to something else."""


class DivergenceError(DropGenError):
    """Training produced a loss that is not finite.

    Attributes:
        step: Where; None where an error that crossed a process does not say.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        self.step = step
        super().__init__(message)


class ResourceError(DropGenError):
    """The machine or the cluster lacks disk, memory, processors or a free port."""


class TooLargeError(ResourceError):
    """The volume may be sound, but is more than is taken."""


class RegistryError(DropGenError):
    """The model registry does not hold the model that is asked for."""


class ServiceError(DropGenError):
    """A running segmentation service refused a request or cannot be reached."""


class NothingToAnalyseError(DropGenError):
    """An experiment gives an analysis nothing to look at; the report says so and goes on."""


class ExternalError(DropGenError):
    """Another program that was called to train or predict failed."""


def closest(word: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest known word, or the list of known words."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(names)}"
