"""The pages for people, and the description of the API for programs."""

from functools import cache
from pathlib import Path

import anyio.to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from service.api import answers, docs_page
from service.api import openapi as description

CONSOLE = Path(__file__).resolve().parent.parent / "console"
POLICY = {"Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


async def console(_request: Request) -> Response:
    """Open the console: the page that lists runs and follows one."""
    return FileResponse(CONSOLE / "index.html", headers=POLICY)


async def console_script(_request: Request) -> Response:
    """Load the script of the console."""
    return FileResponse(CONSOLE / "console.js", media_type="text/javascript")


async def openapi(request: Request) -> Response:
    """Describe the API for programs: OpenAPI 3.1."""
    return answers.json(await anyio.to_thread.run_sync(_described, request.app))


async def docs(request: Request) -> Response:
    """Describe the API for people."""
    page = await anyio.to_thread.run_sync(_page, request.app)
    return Response(page, media_type="text/html", headers=POLICY)


@cache
def _described(app: Starlette) -> description.Schema:
    """Of the endpoints that the app has; made when it is first asked for."""
    return description.document([route.endpoint.__self__ for route in app.routes])  # type: ignore[attr-defined]


@cache
def _page(app: Starlette) -> str:
    return docs_page.page(_described(app))
