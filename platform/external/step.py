"""One command of another program: its output in a log, its success on record, so that it is not run again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dropgen.errors import ExternalError
from dropgen.manifest import read_json, write_json

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Step:
    """One command line.

    Attributes:
        name: Names its log and its record.
        environment: What is set beside the environment of this process.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]

    @property
    def shell(self) -> str:
        """The line that does the same in a shell."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.command])


def run_step(step: Step, logs: Path, watch: Callable[[Path], None] = lambda log: None) -> float:
    """Runs a command to its end, or not at all where it has succeeded before.

    Args:
        step: The command.
        logs: Folder of `<name>.log`, to which another attempt is added, and of `<name>.json`, written on success.
        watch: Called with the log every half second and once at the end.

    Returns:
        Seconds that the successful attempt took.

    Raises:
        ExternalError: The command cannot be started or fails; names the log.
    """
    record, log = logs / f"{step.name}.json", logs / f"{step.name}.log"
    if done := read_json(record):
        return float(done["seconds"])
    logs.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                step.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # its workers end with it
            )
        except OSError as error:
            raise ExternalError(f"{step.command[0]} cannot be started ({error.strerror}); install it again") from None
        try:
            _wait(process, lambda: watch(log))
        except BaseException:
            _end(process)
            raise
    if code := process.returncode:
        how = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        raise ExternalError(
            f"{Path(step.command[0]).name} {how}; see why in {log}, remove the cause and start again: what was done "
            "before this step is kept"
        )
    watch(log)
    seconds = round(time.perf_counter() - began, 2)
    write_json(record, {"command": step.command, "seconds": seconds})
    return seconds


def _wait(process: subprocess.Popen[bytes], watch: Callable[[], None]) -> None:
    while True:
        try:
            process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            watch()
        else:
            return


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command that is still running, with everything that it started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, kind)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue
