"""The page at /: drop a volume, see its mask over the image. Static files alone, which hold nothing secret.

What the page asks of the service goes through the same routes and tokens as everybody's requests.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = "/viewer"  # below it every file of the page
FOLDER = Path(__file__).resolve().with_name("viewer")
POLICY = {
    # NiiVue makes its fonts of data: images. Nothing comes from elsewhere, and no script or style stands in the page.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a newer service has newer files; an unchanged one is answered with 304
}


def add_page(api: FastAPI) -> None:
    """Adds `/` and its files."""

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=POLICY)

    api.mount(FILES, _Files(directory=FOLDER))


class _Files(StaticFiles):
    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers.update(POLICY)
        return answer
