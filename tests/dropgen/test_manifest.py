from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropgen.errors import ResourceError, StudyError
from dropgen.manifest import Manifest, digest, file_digest, read_json, write_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
def test_a_digest_depends_on_the_values_and_not_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert digest({**value, "one more": 1}) != digest({**value, "one more": 2})


def test_a_file_digest_changes_with_one_byte(tmp_path: Path) -> None:
    file = tmp_path / "volume.nii"
    file.write_bytes(b"abc")
    before = file_digest(file)
    file.write_bytes(b"abd")
    assert file_digest(file) != before


def test_damaged_or_missing_json_reads_as_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    assert read_json(tmp_path / "half.json") is None
    assert read_json(tmp_path / "none.json") is None


def finished(path: Path, output: Path) -> None:
    with Manifest(path, "run", {"steps": 1}).running() as manifest:
        manifest.finish_stage("train", "key-1", 2.5, [output], {"dice": 0.5})


def test_a_stage_is_skipped_when_its_key_is_on_record_and_its_outputs_exist(tmp_path: Path) -> None:
    output = tmp_path / "weights"
    output.touch()
    finished(tmp_path / "manifest.json", output)
    again = Manifest(tmp_path / "manifest.json", "run", {"steps": 1})
    entry = again.stage("train", "key-1")
    assert entry is not None
    assert entry["result"] == {"dice": 0.5}
    assert entry["seconds"] == 2.5


def test_a_stage_runs_again_when_key_or_outputs_changed(tmp_path: Path) -> None:
    output = tmp_path / "weights"
    output.touch()
    finished(tmp_path / "manifest.json", output)
    again = Manifest(tmp_path / "manifest.json", "run", {"steps": 1})
    assert again.stage("train", "key-2") is None
    assert again.stage("evaluate", "key-1") is None
    output.unlink()
    assert again.stage("train", "key-1") is None


def test_a_manifest_says_how_the_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    with pytest.raises(ZeroDivisionError), Manifest(path, "run", {}).running():
        assert json.loads(path.read_text())["exit"] == "running"
        raise ZeroDivisionError("by hand")
    assert json.loads(path.read_text())["exit"] == "ZeroDivisionError: by hand"
    with Manifest(path, "run", {}).running():
        pass
    record = json.loads(path.read_text())
    assert record["exit"] == "finished"
    assert record["peak_rss_mb"] > 0
    assert record["versions"]["torch"].startswith("2.13")
    assert {"verb", "config", "config_hash", "commit", "command", "started", "seconds", "stages"} <= set(record)


WRITER = """
import sys
from pathlib import Path
from dropgen.manifest import write_json
values = list(range(20000))
while True:
    for first in (1, 2):
        write_json(Path(sys.argv[1]), {"first": first, "values": values})
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"first": 0, "values": list(range(20000))})
    for moment in (0.0, 0.013, 0.029):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        start = path.stat().st_ino
        while path.stat().st_ino == start:  # until the first replacement shows that it is at work
            time.sleep(0.001)
        time.sleep(moment)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        record = json.loads(path.read_text())
        assert record["first"] in (1, 2)
        assert record["values"] == list(range(20000))


def test_a_manifest_that_cannot_be_written_is_one_sentence_and_hides_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = Manifest(tmp_path / "file" / "manifest.json", "precompute", {})
    with pytest.raises(ResourceError, match=r"cannot write .*manifest\.json: .*--root"), blocked.running():
        pytest.fail("the work must not begin")
    later = Manifest(tmp_path / "folder" / "manifest.json", "precompute", {})
    with pytest.raises(StudyError, match="the cause"), later.running():
        (tmp_path / "folder" / "manifest.json").unlink()
        (tmp_path / "folder").rmdir()
        (tmp_path / "folder").write_text("in the way")
        raise StudyError("the cause")
