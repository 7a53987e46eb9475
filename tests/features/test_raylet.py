"""How long Ray's node may take to start: as long as its process lives."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import services

from dropgen.errors import ResourceError
from dropgen.features import raylet
from dropgen.features.raylet import while_it_lives


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something that is called raylet, and lives."""
    name = shutil.copy(str(shutil.which("sleep")), tmp_path / "raylet")
    with subprocess.Popen([name, "60"]) as started:
        yield started
        started.kill()


def test_a_node_that_comes_late_is_waited_for_and_that_is_said(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(raylet, "TELL_SECONDS", 0)
    monkeypatch.setattr(raylet, "POLL_SECONDS", 0)
    asked = []

    def get_node(address: str, node: str) -> dict[str, str]:
        asked.append((address, node))
        if len(asked) < 5:
            raise RuntimeError("no such node")
        return {"node": node}

    monkeypatch.setattr(services, "get_node", get_node)
    with while_it_lives():
        assert services.get_node("here", "n") == {"node": "n"}
    assert asked == [("here", "n")] * 5
    assert services.get_node is get_node
    assert capsys.readouterr().err.count("Ray's own processes are starting for") == 4


def test_a_node_that_died_is_told_at_once(process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(address: str, node: str) -> None:
        process.kill()
        raise RuntimeError("no such node")

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.setattr(raylet, "POLL_SECONDS", 0)
    with while_it_lives(), pytest.raises(ResourceError, match=r"Ray's node died while it started.*raylet\.out says"):
        services.get_node("here", "n")
