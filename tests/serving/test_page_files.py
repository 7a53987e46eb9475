"""What the page at / is made of: files that anybody may have, and a library that is as published."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI

from dropgen.serving.page import FOLDER
from dropgen.serving.tokens import Tokens
from tests_support.service import build, call

OURS = sorted(path for path in FOLDER.iterdir() if path.is_file())
LIBRARY = FOLDER / "vendor" / "niivue.js"


@pytest.fixture(scope="module")
def api(registry: Path) -> FastAPI:
    return build(registry, Tokens.of({"anna": "a" * 20}))


@pytest.mark.parametrize("path", ["/", *(f"/viewer/{path.relative_to(FOLDER)}" for path in [*OURS, LIBRARY])])
def test_every_file_comes_without_a_token_under_a_strict_policy(api: FastAPI, path: str) -> None:
    answer = call(api, "GET", path)
    assert answer.status_code == 200
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert "script-src" not in policy and "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = call(api, "GET", path, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == (200 if path == "/" else 304)


@pytest.mark.parametrize(
    "path", ["/viewer/../page.py", "/viewer/%2e%2e/page.py", "/viewer/..%2fpage.py", "/viewer//etc/passwd", "/viewer/"]
)
def test_nothing_else_comes(api: FastAPI, path: str) -> None:
    assert call(api, "GET", path).status_code in (401, 404)


def test_nothing_of_ours_names_another_site_or_stands_inline() -> None:
    for path in OURS:
        text = path.read_text()
        addresses = set(re.findall(r"https?://[^\s\"'<>`)]+", text)) - {
            "http://www.w3.org/2000/svg",
            "http://127.0.0.1",
        }
        assert addresses == set(), path.name
    page = (FOLDER / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page)


def test_every_file_that_the_page_names_is_there() -> None:
    page = (FOLDER / "index.html").read_text()
    for name in re.findall(r"(?:src|href)=\"viewer/([^\"]+)\"", page):
        assert (FOLDER / name).is_file()
    for path in FOLDER.glob("*.js"):
        for name in re.findall(r"from \"\./([^\"]+)\"", path.read_text()):
            assert (FOLDER / name).is_file(), f"{path.name} imports {name}"


def test_every_id_that_a_script_looks_for_is_in_the_page() -> None:
    known = set(re.findall(r"\bid=\"([^\"]+)\"", (FOLDER / "index.html").read_text()))
    for path in FOLDER.glob("*.js"):
        assert set(re.findall(r"\bfind\(\"([^\"]+)\"\)", path.read_text())) <= known, path.name


def test_the_library_is_the_one_that_its_readme_names() -> None:
    told = (LIBRARY.parent / "README.md").read_text()
    assert f"`{hashlib.sha256(LIBRARY.read_bytes()).hexdigest()}`" in told
    assert f"{LIBRARY.stat().st_size} bytes" in told
    assert "Copyright (c) 2021, Niivue" in (LIBRARY.parent / "LICENSES.txt").read_text()
