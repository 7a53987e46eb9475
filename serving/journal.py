"""What is written down: an audit log of every mask, and a service's log of every request without a patient in it.

Both are lines of JSON. A line is one `write` to a file opened for appending, so those of several replicas do not mix.
No file name, header text or query of a request gets here: they can hold a patient's name.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

AUDIT_FILE = "audit.jsonl"


class Journal:
    """One file of JSON lines that only grows.

    Args:
        path: The file.
        durable: Whether a line is on disk before `add` returns.
    """

    def __init__(self, path: Path, durable: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._durable = durable

    def add(self, **fields: Any) -> None:
        """Adds one line, with the time in UTC before it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": now, **fields}, separators=(",", ":")) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line.encode())
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def holds(self, **fields: Any) -> bool:
        """Whether some line has all these values."""
        try:
            with self._path.open() as lines:
                return any(fields.items() <= json.loads(line).items() for line in lines)
        except FileNotFoundError:
            return False
