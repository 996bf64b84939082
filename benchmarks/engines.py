"""A config that is its own engine, for runs that flood, tick or wait; and a client for such runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from benchmarks.bench import Bench, Broken
from benchmarks.serving import Service, running
from benchmarks.writing import MESSAGE, WORKSPACE
from service.work.package import pack

ENGINE = f"""
import signal, sys, time
what, count = sys.argv[1], int(sys.argv[2])
if what == "flood":  # as fast as it can: a thousand lines a write, made once
    block = "".join({MESSAGE!r} % number + "\\n" for number in range(1000)).encode()
    for _ in range(count // 1000):
        sys.stdout.buffer.write(block)
elif what == "tick":
    for _ in range(count):
        print(f"{{time.monotonic_ns():019d}}", flush=True)
        time.sleep(0.01)
elif what == "wait":  # until it is stopped; then it says when that was
    def stop(*_):
        print(f"{{time.monotonic_ns():019d}}", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("ready", flush=True)
    while True:
        signal.pause()
"""
PYPROJECT = """
[build-system]
requires = ["uv_build>=0.9,<1"]
build-backend = "uv_build"
[project]
name = "bench-engine"
version = "1.0.0"
dependencies = [{requirements}]
[tool.uv.build-backend]
module-root = ""
[tool.ade]
engine = ""
command = ["{{python}}", "-m", "bench_engine"]
"""


def write_engine(folder: Path) -> Path:
    """The program alone, for those who run it without the service."""
    path = folder / "bench_engine.py"
    path.write_text(ENGINE)
    return path


def _package(home: Path, requirements: Sequence[str]) -> bytes:
    """The config as it is uploaded."""
    (home / "bench_engine").mkdir(parents=True)
    named = ", ".join(f'"{requirement}"' for requirement in requirements)
    (home / "pyproject.toml").write_text(PYPROJECT.format(requirements=named))
    (home / "bench_engine" / "__init__.py").write_text("")
    (home / "bench_engine" / "__main__.py").write_text(ENGINE)
    return pack(home)


class Client:
    """A client of one config."""

    def __init__(self, http: httpx.Client, config: str) -> None:
        self._http, self.config = http, config

    def start(self, *args: str, **options: Any) -> str:
        """A new run; its id."""
        body = {"options": {"engine_args": args, **options}}
        return str(self._http.post(f"/configs/{self.config}/runs", json=body).raise_for_status().json()["id"])

    @contextmanager
    def stream(
        self, *args: str, accept: str = "application/x-ndjson", **options: Any
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """A new run's events as they come, each with ``at``, when that was."""
        body = {"stream": True, "options": {"engine_args": args, **options}}
        headers = {"Accept": accept}
        with self._http.stream("POST", f"/configs/{self.config}/runs", json=body, headers=headers) as response:
            if response.status_code != 200:
                raise Broken(response.read().decode())
            yield _events(response)

    def get(self, path: str) -> dict[str, Any]:
        """What is at a path."""
        found: dict[str, Any] = self._http.get(path).raise_for_status().json()
        return found

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """What a POST answers."""
        found: dict[str, Any] = self._http.post(path, json=body or {}).raise_for_status().json()
        return found

    def ended(self, run: str, timeout_s: float = 900) -> dict[str, Any]:
        """A run that has succeeded, when it has."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = self.get(f"/runs/{run}")
            if found["finished_at"] is not None:
                if found["status"] != "succeeded":
                    raise Broken(f"{run}: {found['error_message'] or found['status']}")
                return found
            time.sleep(0.02)
        raise Broken(f"{run} has not ended after {timeout_s:.0f} s")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for text in response.iter_lines():
        text = text.removeprefix("data: ")
        if text.startswith("{"):
            yield {**orjson.loads(text), "at": time.monotonic()}


@dataclass(frozen=True)
class Deployment:
    """The whole service with one config in it."""

    url: str
    data: Path
    service: Service
    client: Client


@contextmanager
def deployed(bench: Bench, requirements: Sequence[str] = (), **settings: str) -> Iterator[Deployment]:
    """``ade serve`` on a database of its own, with the engine above as a config that nobody has built yet."""
    with (
        bench.database() as url,
        bench.room() as data,
        bench.room() as source,
        running("serve", url, data, **settings) as service,
        httpx.Client(base_url=service.url, timeout=900) as http,
    ):
        headers = {"Content-Type": "application/gzip"}
        content = _package(source, requirements)
        answer = http.post(f"/workspaces/{WORKSPACE}/configs?name=bench", content=content, headers=headers)
        yield Deployment(url, data, service, Client(http, answer.raise_for_status().json()["id"]))


def stamp_s(event: dict[str, Any]) -> float:
    """The moment that a line of the engine carries, on the clock of all processes."""
    return int(event["message"]) / 1e9
