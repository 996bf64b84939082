"""Engines for the tests of the running service: packed, registered, started, and followed to their end."""

import gzip
import io
import re
import secrets
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import orjson

from tests.conftest import Service

ENGINES = Path(__file__).parent / "engines"
WORKSPACE = "tests"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
SLOTS = 2
"""``ADE_MAX_CONCURRENCY``, as it is by default."""
PATIENCE_S = 60
"""How long a test waits for one thing to happen, on a machine that does others too."""

HEAD = """
[build-system]
requires = ["uv_build>=0.9,<1"]
build-backend = "uv_build"

[tool.uv.build-backend]
module-root = ""

[project]
version = "1.0.0"
requires-python = ">=3.11"
"""

Answer = TypeVar("Answer")
Json = dict[str, Any]


def pack(files: Mapping[str, str | bytes]) -> bytes:
    """A package as a gzip-compressed tar."""
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return gzip.compress(packed.getvalue(), 1)


def files_of(folder: Path) -> dict[str, str | bytes]:
    """The files of a package on disk."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def package(name: str, module: str = "", *, ade: str = 'engine = ""', requires: str = "[]") -> dict[str, str | bytes]:
    """A config package of one module, which is its own engine."""
    command = "" if "command" in ade else f'command = ["{{python}}", "-m", "{name}", "{{output_dir}}"]'
    project = f'{HEAD}name = "{name}"\ndependencies = {requires}\n\n[tool.ade]\n{ade}\n{command}\n'
    return {"pyproject.toml": project, f"{name}/__init__.py": "", f"{name}/__main__.py": module}


def register(http: httpx.Client, files: Mapping[str, str | bytes], name: str = "", workspace: str = WORKSPACE) -> Json:
    """The config of this package; registered already, it is the same one again."""
    answer = http.post(
        f"/workspaces/{workspace}/configs",
        params={"name": name} if name else {},
        content=pack(files),
        headers={"Content-Type": "application/gzip"},
    )
    return told(answer)


def actor(http: httpx.Client) -> str:
    """The id of the config whose engine does what its argument says; see ``engines/actor``."""
    config_id: str = register(http, files_of(ENGINES / "actor"))["id"]
    return config_id


def start(http: httpx.Client, config_id: str, script: str = "", **options: Any) -> Json:
    """A new run."""
    if script:
        options["engine_args"] = [script]
    return told(http.post(f"/configs/{config_id}/runs", json={"options": options}))


def run(http: httpx.Client, config_id: str, script: str = "", **options: Any) -> tuple[Json, list[Json]]:
    """A run to its end: its last snapshot, and all events of its feed."""
    run_id = start(http, config_id, script, **options)["id"]
    events = [orjson.loads(line) for line in feed(http, run_id)]
    return told(http.get(f"/runs/{run_id}")), events


def build(http: httpx.Client, config_id: str, **options: Any) -> Json:
    """A build of the config, asked for and followed to its end."""
    path = f"/workspaces/{WORKSPACE}/configs/{config_id}/builds"
    with http.stream("POST", path, json={"stream": True, "options": options}) as response:
        *_, last = filter(None, bounded(response.iter_lines()))
    return told(http.get(f"/builds/{orjson.loads(last)['build_id']}"))


@contextmanager
def gate(service: Service) -> Iterator[Path]:
    """A file that is not there yet: an engine waits with ``wait_for(path)`` until the test makes it, or is over."""
    path = service.data / f"gate-{secrets.token_hex(6)}"
    try:
        yield path
    finally:
        path.touch()


@contextmanager
def occupied(service: Service, http: httpx.Client) -> Iterator[None]:
    """Every slot of the worker is taken: what is created meanwhile stays queued."""
    with gate(service) as path:
        held = [start(http, actor(http), f"print('held'); wait_for({str(path)!r})")["id"] for _ in range(SLOTS)]
        for run_id in held:
            wait_for_event(http, run_id, says("held"))
        yield
    for run_id in held:
        feed(http, run_id)


@contextmanager
def tidy(service: Service, http: httpx.Client) -> Iterator[None]:
    """What happens in the block leaves no traceback in the service's log and ends none of its processes."""
    before = service.log.stat().st_size
    yield
    for run in (run for status in ("queued", "running") for run in listed(http, status)):
        http.post(f"/runs/{run['id']}/cancel")  # or a test that failed would keep the slots from the next one
        feed(http, run["id"])
    said = service.log.read_bytes()[before:].decode()
    assert "Traceback" not in said, said[-6000:]
    assert "starting it again" not in said, said[-6000:]


def listed(http: httpx.Client, status: str) -> list[Json]:
    """The runs that have this status."""
    runs: list[Json] = told(http.get("/runs", params={"status": status}))["data"]
    return runs


def told(response: httpx.Response) -> Json:
    """The document of an answer that is no problem."""
    assert response.is_success, f"{response.request.method} {response.request.url}: {response.text}"
    document: Json = response.json()
    return document


def path_of(stream: str) -> str:
    """The path of a run or of a build."""
    return f"/{stream.partition('_')[0]}s/{stream}"


@contextmanager
def following(http: httpx.Client, stream: str, after: int = 0, accept: str = NDJSON) -> Iterator[httpx.Response]:
    """The open stream of a feed."""
    params: dict[str, str | int] = {"stream": "true", "after_id": after}
    with http.stream("GET", f"{path_of(stream)}/events", params=params, headers={"Accept": accept}) as response:
        assert response.status_code == 200, response.read()
        yield response


def feed(http: httpx.Client, stream: str, after: int = 0) -> list[bytes]:
    """The lines of a feed after a cursor, up to its end."""
    with following(http, stream, after) as response:
        return [line for line in whole_lines(response) if line]


def whole_lines(response: httpx.Response) -> Iterator[bytes]:
    """The lines of an NDJSON stream, cut at LF and nothing else; empty ones are keep-alives."""
    torn = b""
    for chunk in bounded(response.iter_raw()):
        *lines, torn = (torn + chunk).split(b"\n")
        yield from lines
    assert torn == b"", f"the stream ends within a line: {torn[:200]!r}"


def sse(text: bytes) -> tuple[list[tuple[str, bytes, str]], str]:
    """What an EventSource makes of a stream: (type, data, last event id) for each event, and the id to resume from.

    The algorithm of the HTML standard (9.2.6), as it stands there; an event without its blank line is thrown away.
    """
    events, kind, data, id_, last = [], "", b"", "", ""
    *lines, _torn = re.split(b"\r\n|\r|\n", text)
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            last = id_
            if data:
                events.append((kind or "message", data.removesuffix(b"\n"), last))
            kind, data = "", b""
        elif name == b"event":
            kind = value.decode()
        elif name == b"data":
            data += value + b"\n"
        elif name == b"id" and b"\0" not in value:
            id_ = value.decode()
    return events, last


def sse_lines(text: bytes) -> list[bytes]:
    return [data for _, data, _ in sse(text)[0]]


def wait_for_event(http: httpx.Client, stream: str, wanted: Callable[[Json], object]) -> Json:
    """The first event of a feed that is as wanted."""
    with following(http, stream) as response:
        for line in filter(None, whole_lines(response)):
            event: Json = orjson.loads(line)
            if wanted(event):
                return event
    raise AssertionError(f"{stream} has ended without the event that was waited for")


def says(message: str) -> Callable[[Json], bool]:
    """Whether an event is this line of output."""
    return lambda event: event.get("message") == message


def is_type(type_: str) -> Callable[[Json], bool]:
    """Whether an event is of this type."""
    return lambda event: event["type"] == type_


def eventually(look: Callable[[], Answer], what: str) -> Answer:
    """The first true answer."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if answer := look():
            return answer
        time.sleep(0.01)  # what another process does can only be looked at
    raise AssertionError(f"not within {PATIENCE_S} s: {what}")


def bounded(items: Iterator[Answer]) -> Iterator[Answer]:
    """The items of a stream that comes to its end in time."""
    deadline = time.monotonic() + PATIENCE_S
    for item in items:
        yield item
        assert time.monotonic() < deadline, f"the stream did not end within {PATIENCE_S} s"
