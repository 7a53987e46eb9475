from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dropgen.errors import ResourceError
from dropgen.tuning import doctor
from dropgen.tuning.doctor import Finding, examine


def findings(tmp_path: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(tmp_path / "not" / "there" / "yet")}


@pytest.mark.slow
def test_this_machine_is_examined_with_measured_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DROPGEN_WEIGHTS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = findings(tmp_path)
    assert found["python"].ok
    assert found["ray"].ok, found["ray"].found
    assert found["torch"].ok
    assert "needs" in found["torch"].found
    assert found["weights"].ok
    assert "not set" in found["weights"].found
    assert not list(tmp_path.iterdir())


def test_an_empty_weights_folder_and_a_slow_convolution_are_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPGEN_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(doctor, "CONVOLUTION_SECONDS", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = findings(tmp_path)
    assert not found["weights"].ok
    assert not found["3D convolution"].ok
    assert not found["ray"].ok
    with pytest.raises(ResourceError, match="weights") as caught:
        doctor.command(argparse.Namespace(root=tmp_path))
    assert caught.value.document is not None
    assert caught.value.document["ok"] is False
