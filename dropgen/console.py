"""What a person sees: lines on the terminal and progress bars, always on the right stream.

With `--json` stdout holds one JSON document and everything else goes to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

_documents: TextIO | None = None


@contextmanager
def json_mode(on: bool) -> Iterator[None]:
    """Keeps stdout for documents while on; what anything else prints, Ray's own notices too, goes to stderr."""
    global _documents
    if not on:
        yield
        return
    _documents = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _documents = None


def document(value: object, indent: int | None = 2) -> None:
    """Prints one JSON document in JSON mode, else nothing.

    Args:
        value: Plain values.
        indent: None for a document on one line.
    """
    if _documents is not None:
        print(json.dumps(value, indent=indent, default=str), file=_documents, flush=True)


def say(text: str = "") -> None:
    """Prints one line for a person."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Prints one warning on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def progress(unit: str) -> Iterator[Progress]:
    """A progress bar on stderr with count, rate per second and time left.

    Args:
        unit: What is counted, for example "volumes".
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.2f} {unit}/s" if speed else f"- {unit}/s", style="cyan")

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=4) as bars:
        yield bars
