"""The page at / in headless Chromium, on the real application and a small real model."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from dropgen.config import Component
from dropgen.features.studies.volume import Volume, volume_from_bytes, write_volume
from dropgen.platform.evaluation.quality import record_classes
from dropgen.platform.segmenter import Segmenter
from dropgen.platform.tracking import register
from dropgen.serving.upload import Caps
from tests_support.dicom import zipped
from tests_support.live import SECONDS, chromium, live, pixels_of, until
from tests_support.segmenters import make_segmenter

TOKEN = "a-token-for-the-tests"
LEFT, RIGHT = (230, 159, 0), (86, 180, 233)  # colours of label values 1 and 2
CASE = "straight.nii.gz"

pytestmark = pytest.mark.slow
expect.set_options(timeout=1000 * SECONDS)


def straight() -> Volume:
    """A volume on axes along the scanner's, so that a slice of the array is a plane on the screen."""
    noise = np.random.default_rng(4).normal(size=(24, 20, 16)).cumsum(axis=0)
    return Volume((100 * noise).astype(np.float32), np.diag([1.25, 1.25, 1.25, 1]))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def root(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`blobs` in two versions; `odd`, whose masks are flagged; `scaled`, which asks for a modality."""
    root = tmp_path_factory.mktemp("page")
    usual = record_classes([segmenter.predict(straight())] * 2, 0.002, segmenter.spec.classes)
    far = usual["right"].model_copy(update={"log_ml": 9.0, "log_sd": 0.01, "present": 9})
    changes = {
        "odd": {"training": {"left": usual["left"], "right": far}},
        "scaled": {"intensity": {"ct": "minmax", "mr": "percentile"}},
        "blobs": {},
    }
    for name, change in changes.items():
        spec = segmenter.spec.model_copy(update=change)
        Segmenter(spec, segmenter.network, segmenter.method, segmenter._extractor).save(root / name / "bundle")
    older = make_segmenter(Component.of("erm"), seed=1, classes=segmenter.spec.classes)
    older.save(root / "older" / "bundle")
    register(root, root / "older" / "bundle", "blobs")
    for name in changes:
        register(root, root / name / "bundle", name)
    write_volume(root / CASE, straight().array, straight().affine)
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    with live(root, "blobs@champion", TOKEN) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page with its token given."""
    with opened(browser, url) as page:
        give_token(page, TOKEN)
        expect(page.get_by_label("Model", exact=True)).to_be_enabled()
        yield page


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    page = browser.new_page()
    page.set_default_timeout(1000 * SECONDS)
    page.goto(url)
    yield page
    page.close()


def give_token(page: Page, token: str) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Use").click()


def segment(page: Page, file: Path) -> None:
    page.get_by_label("Volume", exact=True).set_input_files(file)
    page.get_by_role("button", name="Segment").click()


def expect_mask(page: Page) -> None:
    expect(page.locator("#status")).to_have_text("The mask is ready.")
    expect(page.get_by_role("link", name="Download the mask")).to_be_visible()


def ask(url: str, method: str, path: str, **request: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"} | dict(request.pop("headers", {}))  # type: ignore[call-overload]
    return httpx.request(method, url + path, headers=headers, timeout=SECONDS, trust_env=False, **request)  # type: ignore[arg-type]


def test_mask_is_drawn_over_the_image_class_by_class_and_downloads_as_the_service_made_it(
    page: Page, url: str, root: Path
) -> None:
    requested: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.reload()
    segment(page, root / CASE)
    expect_mask(page)

    answer = ask(url, "POST", "/v1/segment", content=(root / CASE).read_bytes())
    mask_xyz = volume_from_bytes(answer.content).array
    slice_index = int((mask_xyz == 1).sum(axis=(0, 1)).argmax())
    left, right = ((mask_xyz[:, :, slice_index] == value).sum() for value in (1, 2))
    assert left and right, "a mask without its classes proves nothing"

    canvas = page.locator("#canvas")
    page.get_by_label("View").select_option("axial")
    page.get_by_role("slider", name="Axial").fill(str(slice_index + 1))
    page.get_by_label("Opacity").fill("100")
    until(lambda: pixels_of(canvas, LEFT) > 0 and pixels_of(canvas, RIGHT) > 0)
    drawn = pixels_of(canvas, LEFT) / pixels_of(canvas, RIGHT)
    assert drawn == pytest.approx(left / right, rel=0.15)  # the crosshair hides some

    page.get_by_label("left").uncheck()
    until(lambda: pixels_of(canvas, LEFT) == 0)
    assert pixels_of(canvas, RIGHT) > 0
    page.get_by_label("left").check()
    until(lambda: pixels_of(canvas, LEFT) > 0)
    page.get_by_label("Opacity").fill("0")
    until(lambda: pixels_of(canvas, LEFT) + pixels_of(canvas, RIGHT) == 0)

    with page.expect_download() as download:
        page.get_by_role("link", name="Download the mask").click()
    assert download.value.suggested_filename == "straight-mask.nii.gz"
    assert download.value.path().read_bytes() == answer.content

    assert page.locator("#made-model").inner_text() == "blobs@champion"
    assert page.locator("#made-version").inner_text() == "2"
    assert page.locator("#made-use").inner_text() == "research use only"
    assert "nothing" in page.locator("#flags").inner_text()
    assert {other for other in requested if not other.startswith((f"{url}/", "blob:", "data:"))} == set()
    assert complaints == []  # a breach of the Content-Security-Policy would be one


def test_slices_scroll_by_wheel_and_by_keyboard(page: Page, root: Path) -> None:
    page.get_by_label("Volume", exact=True).set_input_files(root / CASE)
    axial = page.get_by_role("slider", name="Axial")
    expect(axial).to_have_value("9")
    axial.press("ArrowRight")
    expect(axial).to_have_value("10")
    expect(page.locator("#here")).to_contain_text(re.compile(r"11\.[23] mm"))  # the centre of slice 10: 9 x 1.25
    page.get_by_label("View").select_option("axial")
    page.locator("#canvas").hover()
    page.mouse.wheel(0, 120)
    expect(axial).not_to_have_value("10")


def test_a_dropped_volume_is_drawn_and_segmented(page: Page, root: Path) -> None:
    content = list((root / CASE).read_bytes())
    page.evaluate(
        """([content, name]) => {
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([new Uint8Array(content)], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        [content, CASE],
    )
    expect(page.get_by_role("slider", name="Axial")).to_be_visible()
    page.get_by_role("button", name="Segment").click()
    expect_mask(page)


def test_a_wrong_token_is_told_and_a_right_one_is_kept_in_the_tab_alone(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        give_token(page, "wrong-token-wrong")
        told = ask(url, "GET", "/v1/models", headers={"Authorization": "Bearer wrong-token-wrong"}).json()["error"]
        expect(page.get_by_role("alert")).to_contain_text(told[1:])
        expect(page.get_by_role("alert")).to_contain_text("Enter the token above")
        give_token(page, TOKEN)
        expect(page.get_by_role("alert")).to_be_hidden()
        page.reload()
        expect(page.get_by_text("The token is accepted")).to_be_visible()
        assert TOKEN not in page.url
        kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, JSON.stringify(sessionStorage)]")
        assert [TOKEN in place for place in kept] == [False, False, True]
        page.get_by_role("button", name="Forget it").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert TOKEN not in page.evaluate("JSON.stringify(sessionStorage)")


def test_without_tokens_none_is_asked_for(browser: Browser, root: Path) -> None:
    with live(root, "blobs@champion", None) as url, opened(browser, url) as page:
        segment(page, root / CASE)
        expect_mask(page)
        expect(page.get_by_label("Token")).to_be_hidden()


def test_an_unreadable_file_is_told_in_the_services_words(page: Page, url: str, tmp_path: Path) -> None:
    (tmp_path / "broken.nii").write_bytes(b"not an image" * 40)
    segment(page, tmp_path / "broken.nii")
    told = ask(url, "POST", "/v1/segment", content=b"not an image" * 40).json()["error"]
    expect(page.get_by_role("alert")).to_contain_text(told[1:])
    expect(page.locator("#empty")).to_contain_text("cannot draw the file")
    expect(page.get_by_role("button", name="Segment")).to_be_enabled()


def test_a_job_gives_the_same_mask(page: Page, url: str, root: Path) -> None:
    page.get_by_label("Volume", exact=True).set_input_files(root / CASE)
    page.get_by_label("Send as a job").check()
    page.get_by_role("button", name="Segment").click()
    expect_mask(page)
    assert page.locator("#made-model").inner_text() == "blobs/2"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the mask").click()
    direct = ask(url, "POST", "/v1/segment", content=(root / CASE).read_bytes())
    assert download.value.path().read_bytes() == direct.content


def test_a_job_is_cancelled_at_the_service_too(browser: Browser, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "mlflow", tmp_path / "mlflow")  # else another test's service would work on the job
    with live(tmp_path, "blobs@champion", None, works=False) as url, opened(browser, url) as page:
        page.get_by_label("Volume", exact=True).set_input_files(root / CASE)
        page.get_by_label("Send as a job").check()
        page.get_by_role("button", name="Segment").click()
        expect(page.locator("#status")).to_have_text("The job waits for its turn.")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#status")).to_have_text("Cancelled.")
        (job,) = (tmp_path / "service" / "jobs").iterdir()
        until(lambda: ask(url, "GET", f"/v1/jobs/{job.name}").json()["state"] == "cancelled")
        expect(page.get_by_role("button", name="Segment")).to_be_enabled()


@pytest.mark.parametrize("limits", [{"answer_seconds": 0.001}, {"caps": Caps(voxels=100)}], ids=["504", "413"])
def test_what_is_too_large_or_slow_at_once_is_sent_as_a_job_by_one_press(
    browser: Browser, root: Path, limits: dict[str, object]
) -> None:
    with live(root, "blobs@champion", None, **limits) as url, opened(browser, url) as page:
        segment(page, root / CASE)
        page.get_by_role("button", name="Send it as a job").click()
        expect_mask(page)
        expect(page.get_by_label("Send as a job")).to_be_checked()


def test_a_full_queue_says_when_to_come_back(browser: Browser, root: Path) -> None:
    with live(root, "blobs@champion", None, queue=1) as url, opened(browser, url) as page:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as halting:  # a body on its way holds the only place
            halting.sendall(f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n0".encode())
            until(lambda: "dropgen_queue_length 1.0" in ask(url, "GET", "/metrics").text)
            segment(page, root / CASE)
            expect(page.get_by_role("alert")).to_contain_text("1 volumes are waiting already")
            expect(page.get_by_role("alert")).to_contain_text("Come back in 30 s")
            expect(page.get_by_role("button", name=re.compile("Try again in"))).to_be_disabled()


def test_a_model_that_needs_a_modality_asks_for_it_and_every_version_can_be_chosen(page: Page, root: Path) -> None:
    offered = page.locator("#model option").evaluate_all("options => options.map((one) => one.value)")
    assert set(offered) == {
        "blobs@champion",
        "blobs/1",
        "blobs/2",
        "odd@champion",
        "odd/1",
        "scaled@champion",
        "scaled/1",
    }
    page.get_by_label("Volume", exact=True).set_input_files(root / CASE)
    page.get_by_label("Model", exact=True).select_option("scaled@champion")
    expect(page.get_by_label("Modality")).to_be_visible()
    expect(page.get_by_role("button", name="Segment")).to_be_disabled()
    page.get_by_label("Modality").select_option("mr")
    page.get_by_role("button", name="Segment").click()
    expect_mask(page)
    page.get_by_label("Model", exact=True).select_option("blobs/1")
    expect(page.get_by_label("Modality")).to_be_hidden()
    page.get_by_role("button", name="Segment").click()
    expect(page.locator("#made-model")).to_have_text("blobs/1")


def test_flags_are_sentences(page: Page, url: str, root: Path) -> None:
    page.get_by_label("Model", exact=True).select_option("odd@champion")
    segment(page, root / CASE)
    expect_mask(page)
    answer = ask(url, "POST", "/v1/segment?model=odd", content=(root / CASE).read_bytes())
    (flag,) = json.loads(answer.headers["X-Dropgen-Flags"])
    assert page.locator("#flags li").all_inner_texts() == [f"Look at this: {flag}."]


def test_the_mask_of_a_dicom_zip_is_shown_alone(page: Page, tmp_path: Path) -> None:
    whole = Volume(np.rint(straight().array), straight().affine)
    (tmp_path / "series.zip").write_bytes(zipped(whole))
    page.get_by_label("Model", exact=True).select_option("scaled@champion")  # its modality is in a tag
    page.get_by_label("Volume", exact=True).set_input_files(tmp_path / "series.zip")
    expect(page.locator("#empty")).to_contain_text("shown alone")
    page.get_by_role("button", name="Segment").click()
    expect_mask(page)
    page.get_by_label("Opacity").fill("100")
    until(lambda: pixels_of(page.locator("#canvas"), LEFT) + pixels_of(page.locator("#canvas"), RIGHT) > 0)
    assert page.locator("#download").get_attribute("download") == "series-mask.nii.gz"
