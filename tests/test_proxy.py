"""nginx in front: with what it does by itself, and with the configuration that the docs recommend."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests import engine
from tests.conftest import ROOT, Service, free_port
from tests.test_docs import blocks

UNPACKED = ROOT / ".venv" / "nginx" / "usr" / "sbin" / "nginx"
"""Where .ci/run puts it."""
PLAIN = "server { listen 80; location / { proxy_pass http://127.0.0.1:8000; } }"
RECOMMENDED = blocks(ROOT / "docs" / "deploy.md", "nginx")[0]
CONFIGURATION = """
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_proxied any;
    gzip_types application/json application/x-ndjson text/event-stream;
    {server}
}}
"""
TURNS = 3


@pytest.fixture(scope="module", params=[PLAIN, RECOMMENDED], ids=["as it is", "as recommended"])
def proxied(
    request: pytest.FixtureRequest, service: Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of nginx in front of the service, with gzip on for all that we send."""
    program = shutil.which("nginx") or (str(UNPACKED) if UNPACKED.exists() else None)
    if program is None:
        pytest.skip("LOUD: there is no nginx here: streams are not tested behind it (apt-get install nginx)")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    server = request.param.replace("listen 80;", f"listen 127.0.0.1:{port};")
    server = server.replace("127.0.0.1:8000", service.url.removeprefix("http://"))
    assert server.count(service.url.removeprefix("http://")) == 1
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(CONFIGURATION.format(folder=folder, user=user, server=server))
    running = subprocess.Popen([program, "-p", folder, "-c", "nginx.conf", "-e", folder / "error.log"])
    url = f"http://127.0.0.1:{port}"
    try:
        engine.eventually(lambda: answers(url), "nginx answers")
        yield url
        assert "[error]" not in (folder / "error.log").read_text()
    finally:
        running.terminate()
        running.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.ConnectError:
        return False


@pytest.fixture
def client(proxied: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{proxied}/api/v1", timeout=60) as behind:
        yield behind


@pytest.mark.parametrize("accept", [engine.NDJSON, engine.SSE])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_lines_come_one_by_one(
    client: httpx.Client, http: httpx.Client, service: Service, accept: str, encoding: str
) -> None:
    """The engine goes on only when its line has come out of the proxy. Seen to fail without `X-Accel-Buffering`."""
    gates = [service.data / f"turn-{os.urandom(4).hex()}" for _ in range(TURNS)]
    script = "\n".join(f"print('turn {n}'); wait_for({str(gate)!r})" for n, gate in enumerate(gates))
    read: Callable[[bytes], list[bytes]] = engine.sse_lines if accept == engine.SSE else ndjson
    run_id = engine.start(http, engine.actor(http), script)["id"]
    try:
        path = f"/runs/{run_id}/events?stream=true"
        with client.stream("GET", path, headers={"Accept": accept, "Accept-Encoding": encoding}) as response:
            assert response.status_code == 200
            text, turn = b"", 0
            for chunk in engine.bounded(response.iter_bytes()):
                text += chunk
                if turn < TURNS and f'"turn {turn}"'.encode() in text:
                    gates[turn].touch()
                    turn += 1
        assert turn == TURNS
        assert read(text) == engine.feed(http, run_id)
    finally:
        for gate in gates:
            gate.touch()


def ndjson(text: bytes) -> list[bytes]:
    return [line for line in text.split(b"\n") if line]


def test_downloads_are_resumed(client: httpx.Client, http: httpx.Client) -> None:
    """A part of a log file, by its ETag, also to a client that takes gzip; all of it, where the ETag is another."""
    run, _ = engine.run(http, engine.actor(http), "for n in range(500): print('a line', n)")
    path = f"/runs/{run['id']}/logfile"
    plain = {"Accept-Encoding": "identity"}
    whole = client.get(path, headers=plain)
    assert whole.content == http.get(path, headers=plain).content
    head = client.head(path, headers=plain)
    assert (head.headers["ETag"], int(head.headers["Content-Length"])) == (whole.headers["ETag"], len(whole.content))
    for encoding in ("identity", "gzip"):
        part = {"Accept-Encoding": encoding, "Range": "bytes=1000-", "If-Range": whole.headers["ETag"]}
        rest = client.get(path, headers=part)
        assert (rest.status_code, rest.content) == (206, whole.content[1000:])
    again = client.get(path, headers={**plain, "Range": "bytes=1000-", "If-Range": '"another"'})
    assert (again.status_code, again.content) == (200, whole.content)
