"""Options that several benchmarks take, and the folder that they work in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dropgen.errors import ConfigError, ResourceError


def edges(flag: str, text: str | None) -> tuple[int, ...] | None:
    """The voxels of `64,128`; None where the option was not given."""
    return numbers(flag, text, "voxels", "64,128")


def numbers(flag: str, text: str | None, unit: str, example: str) -> tuple[int, ...] | None:
    """The numbers of `240,240,155`; None where the option was not given."""
    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{flag} = '{text}': write {unit} with commas between them, for example {example}") from None


def stated(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given; the others have their defaults."""
    return {name: value for name, value in given.items() if value is not None}


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A folder under the root, on the disk that is to be measured, gone afterwards."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(prefix="bench-", dir=root)
    except OSError as error:
        raise ResourceError(
            f"nothing can be written under {root}: {error.strerror}; choose a writable folder with --root"
        ) from error
    with temporary:
        yield Path(temporary.name)
