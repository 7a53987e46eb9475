"""Ctrl-C and termination end a server in the same way."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, NoReturn


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A signal handler that raises KeyboardInterrupt."""
    raise KeyboardInterrupt


def on_signals(action: Any) -> None:
    """Puts a handler, or `signal.SIG_IGN`, in place for both."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, action)
