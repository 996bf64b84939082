"""What a deployment's settings decide about engines: which one, with which secrets, within which limits."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from uv import find_uv_bin

from tests import engine
from tests.conftest import ROOT, Server, Service, free_port, reachable_folder, running_service

pytestmark = pytest.mark.usefixtures("tidy")

ENGINE = engine.ENGINES / "ade_engine"
WHEEL = "ade_engine-1.4.0-py3-none-any.whl"
SECRET = "pygoscelis-31415926"
LIMITS = {
    "ADE_LINE_MAX_BYTES": "100000",
    "ADE_LOG_MAX_BYTES": str(2**20),
    "ADE_WORKER_CPU_SECONDS": "1",
    "ADE_WORKER_FSIZE_MB": "1",
    "ADE_WORKER_MEM_MB": "256",
}


class QuietIndex(SimpleHTTPRequestHandler):
    """A package index: the listing of a folder is all that it takes (PEP 503)."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def index(folder: Path) -> Iterator[str]:
    """Serves a folder of folders of wheels."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietIndex, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def api_node(service: Service, **settings: str) -> Iterator[Service]:
    """One more API process of a deployment, with settings of its own: the API decides which engine a build gets."""
    port = free_port()
    env = {**service.env, "ADE_PORT": str(port), **settings}
    with service.log.open("ab") as out:
        command = [sys.executable, "-m", "service.cli", "api"]
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        node = replace(service, url=f"http://127.0.0.1:{port}", env=env, process=process)
        node.wait_until_ready()
        yield node
    finally:
        process.terminate()
        process.wait(engine.PATIENCE_S)


@pytest.fixture(scope="module")
def nodes(server: Server) -> Iterator[dict[str, Service]]:
    """A deployment, and its API nodes by the kind of their ADE_ENGINE_SPEC."""
    url = server.copy()
    with ExitStack() as stack:
        data = stack.enter_context(reachable_folder())
        shelf = data / "index" / "ade-engine"
        build = [find_uv_bin(), "build", "--wheel", "--quiet", "--out-dir", str(shelf), str(ENGINE)]
        subprocess.run(build, check=True, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"], "HOME": str(data)})
        settings = {
            **LIMITS,
            "ADE_SECRET_TOKEN": SECRET,
            "ADE_ENGINE_SPEC": "ade-engine==1.4.0",
            "UV_DEFAULT_INDEX": stack.enter_context(index(data / "index")),
            **dict.fromkeys(("UV_OFFLINE", "UV_NO_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"), ""),
        }
        named = stack.enter_context(running_service(url, data, **settings))
        folder = stack.enter_context(api_node(named, ADE_ENGINE_SPEC=str(ENGINE)))
        wheel = stack.enter_context(api_node(named, ADE_ENGINE_SPEC=f"ade-engine @ {(shelf / WHEEL).as_uri()}"))
        yield {"name": named, "folder": folder, "wheel": wheel}
    server.drop(url)


@pytest.fixture(scope="module")
def service(nodes: dict[str, Service]) -> Service:
    return nodes["name"]


@pytest.fixture(scope="module")
def config(http: httpx.Client) -> str:
    """An engine that does what its argument says, and gets the secret."""
    files = engine.files_of(engine.ENGINES / "actor")
    project = bytes(files["pyproject.toml"]).decode()  # type: ignore[arg-type]  # they were read as bytes
    config_id: str = engine.register(http, {**files, "pyproject.toml": f'{project}secrets = ["TOKEN"]\n'})["id"]
    return config_id


@pytest.mark.parametrize("kind", ["folder", "wheel", "name"])
def test_the_engine_of_a_config_that_names_none(nodes: dict[str, Service], kind: str) -> None:
    """A local folder, a wheel, a name of an index: installed beside the config, run by the default command line.

    Its NDJSON on stderr becomes engine.* events and shows in /logs; its last report is summary and result.
    """
    with nodes[kind].http as http:
        config_id = engine.register(http, engine.files_of(engine.ENGINES / "plain"), name=f"plain-{kind}")["id"]
        documents = f"/workspaces/{engine.WORKSPACE}/documents"
        document = engine.told(http.post(documents, params={"name": "in.txt"}, content=b"adelie\ngentoo\n"))["id"]
        run, events = engine.run(http, config_id, document_ids=[document])
        assert run["error_message"] is None
        assert (run["status"], run["summary"], run["result"]) == ("succeeded", "All changed", {"characters": 14})
        told = [event for event in events if event["type"].startswith("engine.")]
        assert [event["type"] for event in told] == ["engine.run.started", "engine.file.read", "engine.run.completed"]
        for event in told:
            assert (event["engine_run_id"], event["stream"], event["level"]) == (run["id"], "stderr", "info")
            assert event.keys() >= {"event_id", "engine_timestamp", "message", "data"}
        logs = engine.told(http.get(f"/runs/{run['id']}/logs"))["entries"]
        assert [entry["message"] for entry in logs] == ["Starting", "Read in.txt", "All changed"]
        (output,) = engine.told(http.get(f"/runs/{run['id']}/artifacts"))["data"]
        assert http.get(f"/artifacts/{output['id']}/content").content == b"ADELIE\nGENTOO\n"
        build = engine.told(http.get(f"/builds/{run['build_id']}"))
        assert {package["name"]: package["version"] for package in build["packages"]}["ade-engine"] == "1.4.0"
        validated, _ = engine.run(http, config_id, validate_only=True)
        assert (validated["status"], validated["build_id"]) == ("succeeded", run["build_id"])
        assert http.post(f"/configs/{config_id}/runs").json()["type"] == "/problems/needs-input"


# Secrets


def test_a_secret_reaches_the_engine_and_nobody_else(service: Service, http: httpx.Client, config: str) -> None:
    """Masked in lines, telemetry, result, summary, error and artifact names; numbers and JSON stay what they were."""
    script = (
        f"print(os.environ['TOKEN'] == {SECRET[::-1]!r}[::-1], os.environ['TOKEN'])\n"
        "token = os.environ['TOKEN']\n"
        "tell(event='engine.run.completed', message=token, data={token: [token]})\n"
        "(output / token).write_text('')\nsys.exit('I know ' + token)"
    )
    run, events = engine.run(http, config, script)
    assert next(filter(engine.is_type("run.log"), events))["message"] == "True ***"
    assert run["result"] == {"***": ["***"]}
    assert run["error_message"].endswith("I know ***")
    assert next(filter(engine.is_type("run.artifact"), events))["name"] == "***"
    for place in ("events", "logs", "logfile", "artifacts"):
        assert SECRET not in http.get(f"/runs/{run['id']}/{place}").text
    assert SECRET not in http.get(f"/runs/{run['id']}").text
    assert SECRET not in service.log.read_text()


def test_an_engine_gets_nothing_else_of_the_environment(http: httpx.Client, config: str) -> None:
    """Neither the service's settings, nor index addresses, nor variables that nobody listed."""
    _, events = engine.run(http, config, "print(*sorted(os.environ))")
    given = next(filter(engine.is_type("run.log"), events))["message"].split()
    expected = {
        *("ADE_RUN_ID", "HOME", "LANG", "PATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "TOKEN", "TRACEPARENT", "TZ")
    }
    assert set(given) - {"LC_CTYPE"} == expected  # which Python may set for itself


def test_a_secret_that_is_not_set_is_a_failed_run(http: httpx.Client) -> None:
    """With its variable's name in error_message, and no engine."""
    files = engine.package("secretive", "print('I ran')", ade='engine = ""\nsecrets = ["NEVER_SET"]')
    run, events = engine.run(http, engine.register(http, files)["id"])
    assert run["status"] == "failed"
    assert "ADE_SECRET_NEVER_SET" in run["error_message"]
    assert not list(filter(engine.is_type("run.log"), events))


# Limits


def test_a_line_over_the_limit_is_cut_and_counted(http: httpx.Client, config: str) -> None:
    """Parts of 64 KiB up to ADE_LINE_MAX_BYTES; the last one counts what is missing; the next line is whole."""
    _, events = engine.run(http, config, "print('x' * 150_000); print('next')")
    *parts, following = filter(engine.is_type("run.log"), events)
    assert "".join(part["message"] for part in parts) == "x" * 100_000
    assert [(part["part"], part.get("truncated")) for part in parts] == [(1, None), (2, 50_000)]
    assert (following["message"], "truncated" in following) == ("next", False)


def test_output_over_the_limit_is_not_kept_and_counted(http: httpx.Client, config: str) -> None:
    """Above ADE_LOG_MAX_BYTES run.log_gap says how many lines and bytes are missing; the beginning was kept."""
    run, events = engine.run(http, config, "for n in range(30_000): print('%099d' % n)")
    kept = [event["message"] for event in events if event["type"] == "run.log"]
    (gap,) = filter(engine.is_type("run.log_gap"), events)
    assert (run["status"], run["lines"], run["bytes"]) == ("succeeded", 30_000, 3_000_000)
    assert kept == [f"{n:099}" for n in range(len(kept))]
    assert len(kept) + gap["lines"] == 30_000
    assert gap["bytes"] == gap["lines"] * 99
    assert 2**20 - 2**19 < len(kept) * 100 <= 2**20


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("while True: pass", "CPU time"),
        ("with open(output / 'large', 'wb') as f:\n  while True: f.write(bytes(2**16))", "file size"),
    ],
)
def test_an_engine_that_uses_up_its_limit_is_ended(http: httpx.Client, config: str, script: str, what: str) -> None:
    """`failed`, `resource_limit`, and which one."""
    run, _ = engine.run(http, config, f"signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n{script}")
    assert (run["status"], run["stop_reason"]) == ("failed", "resource_limit")
    assert what in run["error_message"]


def test_memory_has_its_limit(http: httpx.Client, config: str) -> None:
    """More than ADE_WORKER_MEM_MB is refused to the engine, which says so; in a control group that ends it."""
    run, _ = engine.run(http, config, "bytearray(2**29)")
    why = {"failed": "MemoryError", "resource_limit": "memory (ADE_WORKER_MEM_MB)"}
    assert run["status"] == "failed"
    assert why[run["stop_reason"]] in run["error_message"]
