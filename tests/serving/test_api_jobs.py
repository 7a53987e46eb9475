from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread as read_image

from dropgen.features.studies.prepare import prepare
from dropgen.features.studies.volume import Volume, volume_from_bytes
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.evaluation.uncertainty import predict_uncertain
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.api import create_api
from dropgen.serving.engine import Made, work_once
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


def test_how_sure_the_model_is_and_a_picture_are_given_where_they_are_asked_for(
    registry: Path, segmenter: Segmenter, oblique_volume: Callable[[int], Volume]
) -> None:
    limits = Limits(2**27)
    api, engine, jobs = create_api(registry, Models(registry, "blobs@champion", 2**30), Tokens({}), limits)
    volume = oblique_volume(5)
    body = nifti(volume.array, volume.affine)
    labels, expected = predict_uncertain(segmenter, prepare([volume], segmenter.spec.preparation, None))
    assert expected.entropy and expected.disagreement and expected.disagreement_map is not None

    direct = call(api, "POST", "/v1/segment", content=body, params={"uncertainty": "true"})
    assert float(direct.headers["X-Dropgen-Entropy"]) == pytest.approx(expected.entropy, abs=1e-4)
    assert float(direct.headers["X-Dropgen-Disagreement"]) == pytest.approx(expected.disagreement, abs=1e-4)
    plain = call(api, "POST", "/v1/segment", content=body)
    assert plain.content == direct.content
    assert "X-Dropgen-Entropy" not in plain.headers

    key = {"Idempotency-Key": "scan-0077"}
    sent = call(api, "POST", "/v1/jobs", content=body, params={"uncertainty": "true"}, headers=key)
    assert call(api, "POST", "/v1/jobs", content=body, headers=key).status_code == 409
    path = f"/v1/jobs/{sent.json()['id']}"
    assert call(api, "GET", f"{path}/preview").status_code == 409  # not made yet
    assert work_once(engine, jobs, limits.job_caps)
    found = call(api, "GET", path).json()["findings"]
    assert (found["entropy"], found["disagreement"]) == (
        pytest.approx(expected.entropy, abs=1e-4),
        pytest.approx(expected.disagreement, abs=1e-4),
    )
    assert call(api, "GET", f"{path}/result").headers["X-Dropgen-Entropy"] == direct.headers["X-Dropgen-Entropy"]
    for part, array in (("entropy", expected.entropy_map), ("disagreement", expected.disagreement_map)):
        answer = call(api, "GET", f"{path}/{part}")
        assert answer.headers["Content-Type"] == "application/gzip"
        np.testing.assert_array_equal(volume_from_bytes(answer.content).array, array)
        np.testing.assert_allclose(volume_from_bytes(answer.content).affine, volume.affine, atol=1e-5)
    picture = call(api, "GET", f"{path}/preview")
    assert picture.headers["Content-Type"] == "image/png"
    assert read_image(io.BytesIO(picture.content)).shape[1] > 500
    np.testing.assert_array_equal(volume_from_bytes(call(api, "GET", f"{path}/result").content).array, labels)


def test_a_job_that_did_not_ask_has_a_picture_and_no_maps_and_others_see_neither(
    registry: Path, oblique_volume: Callable[[int], Volume]
) -> None:
    limits = Limits(2**27)
    anna, bert = ({"Authorization": f"Bearer {letter * 20}"} for letter in "ab")
    tokens = Tokens({name: hashlib.sha256(20 * name[:1].encode()).hexdigest() for name in ("anna", "bert")})
    api, engine, jobs = create_api(registry, Models(registry, "blobs@champion", 2**30), tokens, limits)
    identity = call(api, "POST", "/v1/jobs", content=nifti(oblique_volume(5).array), headers=anna).json()["id"]
    assert work_once(engine, jobs, limits.job_caps)
    path = f"/v1/jobs/{identity}"
    assert call(api, "GET", f"{path}/preview", headers=anna).status_code == 200
    refused = call(api, "GET", f"{path}/entropy", headers=anna)
    assert refused.status_code == 409
    assert "?uncertainty=true" in refused.json()["error"]
    assert call(api, "GET", f"{path}/preview", headers=bert).status_code == 404
    assert call(api, "GET", f"{path}/volume.nii", headers=anna).status_code == 422


def test_nothing_stands_beside_the_mask_of_a_job_that_was_cancelled_at_its_end(
    registry: Path, oblique_volume: Callable[[int], Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(2**27)
    api, engine, jobs = create_api(registry, Models(registry, "blobs@champion", 2**30), Tokens({}), limits)
    identity = call(api, "POST", "/v1/jobs", content=nifti(oblique_volume(5).array)).json()["id"]
    segment = engine.segment

    def late(*words: Any, **named: Any) -> Made:
        made = segment(*words, **named)
        assert (registry / "service/jobs" / identity / "mask.png").exists()
        jobs.cancel(identity, "anyone")
        return made

    monkeypatch.setattr(engine, "segment", late)
    assert work_once(engine, jobs, limits.job_caps)
    assert jobs.read(identity, "anyone")["state"] == "cancelled"
    assert not list((registry / "service/jobs" / identity).glob("mask*"))


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
