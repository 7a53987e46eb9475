"""The service's interface on a port of this machine, and a Chromium that looks at it."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Locator, sync_playwright

from dropgen.serving.api import create_api
from dropgen.serving.engine import work
from dropgen.serving.limits import Limits
from dropgen.serving.models import Models
from dropgen.serving.tokens import Tokens

SECONDS = 60  # most that anything on a page may take: the processors may be busy with other tests
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def live(root: Path, default: str, token: str | None, works: bool = True, **limits: Any) -> Iterator[str]:
    """Serves the application by uvicorn; gives its address. `works`: whether anybody works on jobs."""
    tokens = Tokens.of({"owner": token} if token else {})
    settled = Limits(**{"max_memory": 2**28} | limits)
    api, engine, jobs = create_api(root, Models(root, default, 2**30), tokens, settled)
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=0, log_level="warning"))
    stop = threading.Event()
    threads = [threading.Thread(target=server.run)]
    if works:
        threads.append(threading.Thread(target=work, args=(engine, jobs, settled.job_caps, stop)))
    for thread in threads:
        thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        stop.set()
        server.should_exit = True
        for thread in threads:
            thread.join(SECONDS)


def until(holds: Callable[[], bool]) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.05)


def pixels_of(element: Locator, rgb: tuple[int, int, int]) -> int:
    """How many pixels of an element, as it is drawn, have a colour."""
    drawn = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"), dtype=int)
    return int((abs(drawn - rgb).max(axis=-1) <= 3).sum())
