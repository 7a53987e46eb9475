from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from dropgen.errors import ExternalError
from dropgen.platform.external.step import Step, run_step


def python(name: str, code: str) -> Step:
    return Step(name, (sys.executable, "-c", code), {"STEP_WORD": "hello"})


def test_a_command_that_succeeded_is_not_run_again(tmp_path: Path) -> None:
    step = python("count", f"open({str(tmp_path / 'runs')!r}, 'a').write('x')")
    first = run_step(step, tmp_path / "logs")
    assert run_step(step, tmp_path / "logs") == first
    assert (tmp_path / "runs").read_text() == "x"


def test_a_failure_is_one_sentence_with_the_log_and_the_step_is_tried_again(tmp_path: Path) -> None:
    flag, logs = tmp_path / "flag", tmp_path / "logs"
    step = python(
        "fail", f"import os, sys; print(os.environ['STEP_WORD']); sys.exit(not os.path.exists({str(flag)!r}))"
    )
    with pytest.raises(ExternalError, match=r"ended with exit code 1; see why in .*fail\.log") as caught:
        run_step(step, logs)
    assert "\n" not in str(caught.value)
    assert not (logs / "fail.json").exists()
    flag.touch()
    run_step(step, logs)
    assert (logs / "fail.log").read_text().split() == ["hello", "hello"]


def test_a_command_that_was_killed_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match="was ended by SIGKILL; see why in"):
        run_step(python("killed", "import os; os.kill(os.getpid(), 9)"), tmp_path)


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExternalError, match=r"/no/such/program cannot be started \(No such file"):
        run_step(Step("none", ("/no/such/program",), {}), tmp_path)


def test_the_log_is_watched_while_the_command_runs(tmp_path: Path) -> None:
    go, seen = tmp_path / "go", []

    def watch(log: Path) -> None:
        seen.append(log.read_text())
        go.touch()

    code = f"import os, time\nprint('begun')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\nprint('done')"
    run_step(python("watched", code), tmp_path / "logs", watch)
    assert len(seen) >= 2
    assert seen[-1].split() == ["begun", "done"]


def test_an_interruption_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    child = "import os, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); subprocess.run([sys.executable, '-c', {child!r}])"

    def interrupt(log: Path) -> None:
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(python("long", code), tmp_path / "logs", interrupt)
    assert gone(int((tmp_path / "child").read_text()))
    assert not (tmp_path / "logs" / "long.json").exists()


def gone(process: int) -> bool:
    for _ in range(100):
        stat = Path(f"/proc/{process}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    os.kill(process, 9)
    return False
