from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.api import create_api
from dropgen.serving.engine import work_once
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.tokens import Tokens
from tests_support.service import GOOD, build, call, nifti


def test_a_job_gives_the_mask_of_the_request_and_each_leaves_one_audit_line(
    registry: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    models = Models(registry, "blobs@champion", 2**30)
    limits = Limits(2**27)
    api, engine, jobs = create_api(registry, models, Tokens({}), limits)
    volume = oblique_volume(5)
    body = nifti(volume.array, volume.affine)
    direct = call(api, "POST", "/v1/segment", content=body).content
    job = call(api, "POST", "/v1/jobs", content=gzip.compress(body), headers={"Idempotency-Key": "scan-0005"})
    assert job.status_code == 202, job.text
    identity = job.json()["id"]
    again = call(api, "POST", "/v1/jobs", content=body, headers={"Idempotency-Key": "scan-0005"})
    assert again.json()["id"] == identity
    other = nifti(oblique_volume(6).array)
    assert call(api, "POST", "/v1/jobs", content=other, headers={"Idempotency-Key": "scan-0005"}).status_code == 409
    assert call(api, "GET", f"/v1/jobs/{identity}/result").status_code == 409
    assert work_once(engine, jobs, limits.job_caps)
    assert not work_once(engine, jobs, limits.job_caps)
    done = call(api, "GET", f"/v1/jobs/{identity}").json()
    assert (done["state"], done["model"], done["version"], done["use"]) == ("done", "blobs", "1", "research use only")
    assert call(api, "GET", f"/v1/jobs/{identity}/result").content == direct
    lines = [json.loads(line) for line in (registry / "service" / "audit.jsonl").read_text().splitlines()]
    assert [line["output_sha256"] for line in lines].count(done["output_sha256"]) == 2
    assert [line["job"] for line in lines].count(identity) == 1
    assert {line["input_sha256"] for line in lines if line["job"] == identity} == {hashlib.sha256(body).hexdigest()}


def test_a_mask_unlike_those_of_the_training_is_flagged_in_its_answer_and_in_its_job(
    registry: Path, segmenter: Segmenter, oblique_volume: Callable[[int], Volume], tmp_path: Path
) -> None:
    volume = oblique_volume(6)
    usual = record_classes([segmenter.predict(oblique_volume(seed)) for seed in (6, 6)], 0.002, ("b", "left", "right"))
    far = usual["right"].model_copy(update={"log_ml": 9.0, "log_sd": 0.01, "present": 9})
    spec = segmenter.spec.model_copy(update={"training": {"left": usual["left"], "right": far}})
    Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(tmp_path / "bundle")
    register(registry, tmp_path / "bundle", "odd")
    limits = Limits(2**27)
    api, engine, jobs = create_api(registry, Models(registry, "odd@champion", 2**30), Tokens({}), limits)
    body = nifti(volume.array, volume.affine)
    direct = call(api, "POST", "/v1/segment", content=body)
    (flag,) = json.loads(direct.headers["X-Dropgen-Flags"])
    assert flag.startswith("right has ") and " ml, expected " in flag
    path = f"/v1/jobs/{call(api, 'POST', '/v1/jobs', content=body).json()['id']}"
    assert work_once(engine, jobs, limits.job_caps)
    assert call(api, "GET", f"{path}/result").headers["X-Dropgen-Flags"] == direct.headers["X-Dropgen-Flags"]
    findings = call(api, "GET", path).json()["findings"]
    assert findings["flags"] == [flag]
    counts = np.bincount(volume_from_bytes(direct.content).array.astype(int).ravel())
    assert findings["voxels"] == {"left": counts[1], "right": counts[2]}


def test_a_mask_that_was_made_before_a_death_is_neither_made_nor_audited_again(
    registry: Path, oblique_volume: Callable[[int], Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(2**27)
    api, engine, jobs = create_api(registry, Models(registry, "blobs@champion", 2**30), Tokens({}), limits)
    body = nifti(oblique_volume(6).array)
    identity = call(api, "POST", "/v1/jobs", content=body).json()["id"]
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            work_once(engine, jobs, limits.job_caps)
    assert jobs.read(identity, "anyone")["state"] == "running"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "segment", None)
        assert work_once(engine, jobs, limits.job_caps)
    assert jobs.read(identity, "anyone")["state"] == "done"
    assert jobs.read(identity, "anyone")["findings"]["voxels"]
    lines = [json.loads(line)["job"] for line in (registry / "service" / "audit.jsonl").read_text().splitlines()]
    assert lines.count(identity) == 1


def test_a_job_may_name_a_file_of_an_allowed_folder_and_none_elsewhere(registry: Path, tmp_path: Path) -> None:
    allowed, secret = tmp_path / "allowed", tmp_path / "secret.nii"
    allowed.mkdir()
    (allowed / "scan.nii").write_bytes(nifti(GOOD))
    secret.write_bytes(nifti(GOOD))
    (allowed / "link.nii").symlink_to(secret)
    api = build(registry, sources=(allowed,))
    taken = call(api, "POST", "/v1/jobs", params={"source": "scan.nii"})
    assert taken.status_code == 202, taken.text
    assert call(api, "DELETE", f"/v1/jobs/{taken.json()['id']}").json()["state"] == "cancelled"
    for source in ("link.nii", "../secret.nii", str(secret), "file:///etc/passwd", "http://x/y.nii", "no.nii", "a\0b"):
        refused = call(api, "POST", "/v1/jobs", params={"source": source})
        assert refused.status_code == 400, source
        assert "allows" in refused.json()["error"]
    assert call(build(registry), "POST", "/v1/jobs", params={"source": "scan.nii"}).status_code == 400
