"""``ade demo``: the whole service on a free port, one real run on real data, and where to look further."""

import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import typer

from projections.ndjson_file import end_of
from service.cli import feeds, output
from service.cli.connection import Wrong, reported
from service.cli.http_client import ANSWER_S
from service.cli.options import DETACHED
from service.cli.output import Screen
from service.cli.processes import stop
from service.client import ClientError, Consumer, check, follow_async
from service.files import Files
from service.settings import Settings
from service.work.package import pack
from service.work.process import Child, spawn

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "docs" / "examples" / "penguins"
INPUT = "penguins_raw.csv"
WORKSPACE = "default"
PACE_S = "0.15"
"""What the example waits at each of its progress lines: slow enough to watch, quick enough to wait for."""
READY_S, STOP_S = 60.0, 40.0
WRITTEN_S = 4.0
"""After a kill -9 the next projector waits for the lease of the killed one; nobody should wait for that here."""
POLL_S = 0.05


def demo() -> None:
    """Start everything, run the penguins example, and show what came of it. It needs nothing that runs already."""
    started = time.monotonic()
    with reported():
        if not (EXAMPLE / INPUT).is_file():
            raise Wrong(f"The example is not at {EXAMPLE}: the demo runs from a checkout of the project.")
        try:
            status = anyio.run(_demo, Settings(), started)
        except KeyboardInterrupt:
            Screen(sys.stderr).print("\nStopped; nothing is left running.")
            raise typer.Exit(DETACHED) from None
    feeds.leave(status)


async def _demo(settings: Settings, started: float) -> str:
    screen = Screen()
    screen.print("Starting PostgreSQL, the API, a worker and the projector …")
    async with _service(settings) as http:
        run_id = await _run(http, screen)
        run = await _get(http, f"runs/{run_id}")
        artifacts = (await _get(http, f"runs/{run_id}/artifacts"))["data"]
        logfile = Files.of(settings).logfile(run["workspace_id"], run_id)
        await _written(logfile, run["last_event_id"])
    screen.print()
    _where(screen, settings, run, artifacts, logfile)
    _look_further(screen, settings, run_id)
    screen.print(f"\nThe demo took {output.elapsed(time.monotonic() - started)}.")
    return str(run["status"])


@asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """`ade serve` on a free port of its own, for as long as the block lasts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service.cli", "serve", "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    open_here = {"ADE_AUTH": "off", "ADE_CORS_ORIGINS": ""}  # it listens on loopback, for as long as it shows itself
    child = spawn(command, {**settings.child_env, **open_here})
    try:
        base_url = f"http://127.0.0.1:{port}/api/v1/"
        async with httpx.AsyncClient(base_url=base_url, timeout=ANSWER_S, trust_env=False) as http:
            await _ready(http, child)
            yield http
    finally:
        with anyio.CancelScope(shield=True):
            await stop([child], STOP_S)


async def _ready(http: httpx.AsyncClient, child: Child) -> None:
    """Returns when the service is ready. Raises ClientError when it ends instead, or takes too long."""
    deadline, reason = time.monotonic() + READY_S, "it does not listen"
    while time.monotonic() < deadline:
        with anyio.move_on_after(POLL_S):
            ended = await child.wait()
            raise ClientError(f"`ade serve` ended ({ended.signal or ended.code}); the lines above say why.")
        try:
            answer = await http.get(http.base_url.join("/ready"))
        except httpx.TransportError:
            continue
        if answer.is_success:
            return
        reason = answer.text
    raise ClientError(f"`ade serve` is not ready after {READY_S:.0f} s: {reason}")


async def _run(http: httpx.AsyncClient, screen: Screen) -> str:
    """Registers the example, uploads its input, and follows a run to its end; the run's id."""
    config = await _upload(http, "configs", pack(EXAMPLE), "application/gzip")
    screen.print(f"Config    {config['name']} version {config['version']}, {config['outcome']}")
    document = await _upload(http, "documents", (EXAMPLE / INPUT).read_bytes(), "text/csv", name=INPUT)
    screen.print(f"Document  {document['name']}, {output.size(document['size'])}\n")

    options = {"document_ids": [document["id"]], "engine_args": ["--pace", PACE_S]}
    consumer = Consumer.creating(f"configs/{config['id']}/runs", options, on_pause=feeds.say_pause)
    async for event in follow_async(http, consumer):
        screen.event(event)
    return consumer.stream


async def _upload(http: httpx.AsyncClient, what: str, content: bytes, media_type: str, **params: str) -> Any:
    headers = {"Content-Type": media_type}
    response = await http.post(f"workspaces/{WORKSPACE}/{what}", content=content, headers=headers, params=params)
    check(response)
    return response.json()


async def _get(http: httpx.AsyncClient, path: str) -> Any:
    response = await http.get(path)
    check(response)
    return response.json()


async def _written(logfile: Path, upto: int) -> None:
    """Returns when the projector has written a log file up to an event, or takes too long over it."""
    with anyio.move_on_after(WRITTEN_S):
        while (await anyio.to_thread.run_sync(end_of, logfile)).last_id < upto:  # noqa: ASYNC110 - another process's
            await anyio.sleep(POLL_S)


def _where(screen: Screen, settings: Settings, run: Any, artifacts: Any, logfile: Path) -> None:
    """Where everything lies that the run left."""
    files, workspace = Files.of(settings), run["workspace_id"]
    written = output.size(logfile.stat().st_size) if logfile.exists() else "(soon)"
    rows = [["events.ndjson", written, _near(logfile)]]
    for artifact in artifacts:
        path = files.artifact(workspace, run["id"], artifact["id"])
        rows.append([artifact["name"], output.size(artifact["size"]), _near(path)])
    screen.columns(["WHAT IT LEFT", "SIZE", "WHERE"], rows)


def _look_further(screen: Screen, settings: Settings, run_id: str) -> None:
    """The commands and the URL to look further."""
    ade, logs = _near(Path(sys.executable).parent / "ade"), f"{settings.url}/api/v1/runs/{run_id}/logs"
    rows = [
        ["make serve", f"keeps it running; then open {settings.url}/"],
        [f"{ade} runs show {run_id}", "the run as it is now"],
        [f"curl {logs}", "its lines, as JSON"],
        [f"{ade} db shell", "SQL: SELECT id, status, exit_code FROM runs;"],
    ]
    screen.print()
    screen.columns(["LOOK FURTHER", ""], rows)


def _near(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
