"""Config packages and documents as they come over HTTP: what is taken in, and what strangers try."""

import gzip
import io
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests import engine
from tests.conftest import Server as Postgres
from tests.conftest import Service, reachable_folder, running_service

pytestmark = pytest.mark.usefixtures("tidy")

CONFIGS = f"/workspaces/{engine.WORKSPACE}/configs"
DOCUMENTS = f"/workspaces/{engine.WORKSPACE}/documents"
LIMIT_BYTES = 4096
"""``ADE_DOCUMENT_MAX_BYTES`` and ``ADE_CONFIG_MAX_BYTES`` of the service with small limits."""


def send(http: httpx.Client, content: bytes, media_type: str = "application/gzip", **params: str) -> httpx.Response:
    return http.post(CONFIGS, params=params, content=content, headers={"Content-Type": media_type})


def incoming(service: Service) -> list[str]:
    """What lies among the uploads that are not complete."""
    return [path.name for path in (service.data / "incoming").glob("*")]


# Config packages


def test_a_package_is_the_same_however_it_was_packed(http: httpx.Client) -> None:
    """201 with a new name, 200 and unchanged for the same files as tar or zip, 200 and a version for other files."""
    files = engine.package("packed")
    first = send(http, engine.pack(files))
    assert (first.status_code, first.json()["outcome"], first.json()["version"]) == (201, "created", 1)
    assert first.headers["Location"] == f"/api/v1/configs/{first.json()['id']}"
    with io.BytesIO() as zipped:
        with zipfile.ZipFile(zipped, "w") as box:
            for name, content in reversed(files.items()):
                box.writestr(name, content)
        again = send(http, zipped.getvalue(), "application/zip")
    unstable = ("outcome",)
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")
    assert {k: v for k, v in again.json().items() if k not in unstable} == {
        k: v for k, v in first.json().items() if k not in unstable
    }
    changed = send(http, engine.pack({**files, "extra.txt": "new"}), "application/octet-stream")
    assert (changed.status_code, changed.json()["outcome"], changed.json()["version"]) == (200, "updated", 2)
    shown = engine.told(http.get(f"/configs/{first.json()['id']}"))
    assert shown == {k: v for k, v in changed.json().items() if k not in unstable}
    assert shown["id"] in {entry["id"] for entry in engine.told(http.get(CONFIGS))["data"]}


def test_a_name_can_be_given_and_is_the_packages_own_otherwise(http: httpx.Client) -> None:
    """One package under two names is two configs."""
    content = engine.pack(engine.package("named"))
    own, given = send(http, content).json(), send(http, content, name="An.other_name-1").json()
    assert (own["name"], given["name"]) == ("named", "An.other_name-1")
    assert own["id"] != given["id"]
    assert own["digest"] == given["digest"]


def test_a_workspace_exists_from_its_first_use(http: httpx.Client) -> None:
    """In the list of workspaces, with the moment of that use; what lies in it is found there only."""
    first, then = f"used-{time.time_ns()}", "/workspaces/never-used"
    config = engine.register(http, engine.package("placed"), workspace=first)
    (found,) = (entry for entry in engine.told(http.get("/workspaces"))["data"] if entry["id"] == first)
    assert (found["object"], found["created_at"]) == ("ade.workspace", config["created_at"])
    assert [entry["id"] for entry in engine.told(http.get(f"/workspaces/{first}/configs"))["data"]] == [config["id"]]
    for of in ("configs", "documents", "runs"):
        assert engine.told(http.get(f"{then}/{of}"))["data"] == []


def tar_of(add: Callable[[tarfile.TarFile], None]) -> bytes:
    """A package with something more in it."""
    with io.BytesIO() as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, content in engine.package("crafted").items():
                tar.addfile(_member(name, size=len(content)), io.BytesIO(str(content).encode()))
            add(tar)
        return gzip.compress(packed.getvalue(), 1)


def _member(name: str, *, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, target
    return member


def _bomb(tar: tarfile.TarFile) -> None:
    for number in range(9):
        tar.addfile(_member(f"zeros-{number}", size=2**25), io.BytesIO(bytes(2**25)))


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "bad-archive"),
    "text": (lambda: b"this is no archive", "bad-archive"),
    "a gzip of text": (lambda: gzip.compress(b"this is no tar" * 99), "bad-archive"),
    "half an archive": (lambda: (whole := engine.pack(engine.package("half")))[: len(whole) // 2], "bad-archive"),
    "half a zip": (lambda: b"PK\x03\x04" + bytes(99), "bad-archive"),
    "a path upwards": (lambda: tar_of(lambda t: t.addfile(_member("../out.txt"))), "unsafe-entry"),
    "an absolute path": (lambda: tar_of(lambda t: t.addfile(_member("/etc/out.txt"))), "unsafe-entry"),
    "a link out": (
        lambda: tar_of(lambda t: t.addfile(_member("out", kind=tarfile.SYMTYPE, target="../../etc/passwd"))),
        "unsafe-entry",
    ),
    "an absolute link": (
        lambda: tar_of(lambda t: t.addfile(_member("out", kind=tarfile.LNKTYPE, target="/etc/passwd"))),
        "unsafe-entry",
    ),
    "a device": (lambda: tar_of(lambda t: t.addfile(_member("null", kind=tarfile.CHRTYPE))), "unsafe-entry"),
    "a bomb": (lambda: tar_of(_bomb), "package-too-large"),
    "no pyproject.toml": (lambda: engine.pack({"readme.txt": "hello"}), "bad-manifest"),
    "a pyproject.toml in a folder": (lambda: engine.pack({"inner/pyproject.toml": engine.HEAD}), "bad-manifest"),
    "a pyproject.toml that is no TOML": (lambda: engine.pack({"pyproject.toml": "[project"}), "bad-manifest"),
    "no name": (lambda: engine.pack({"pyproject.toml": engine.HEAD}), "bad-manifest"),
    "a key that is unknown": (lambda: engine.pack(engine.package("odd", ade='engin = ""')), "bad-manifest"),
    "a placeholder that is unknown": (
        lambda: engine.pack(engine.package("odd", ade='engine = ""\ncommand = ["{pyhton}"]')),
        "bad-manifest",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_package_is_refused_with_its_reason(service: Service, http: httpx.Client, what: str) -> None:
    """422 bad-config with the reason; no config comes of it, and nothing of it is left on disk."""
    make, reason = BROKEN[what]
    before = engine.told(http.get("/events/head"))
    answer = send(http, make(), name="broken")
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/bad-config"), answer.text
    assert (answer.json()["reason"], answer.json()["status"]) == (reason, 422)
    assert answer.json()["detail"].endswith(".")
    assert engine.told(http.get("/events/head")) == before
    assert incoming(service) == []


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
def test_another_content_type_is_415(http: httpx.Client, media_type: str) -> None:
    """Bodies are raw archives, never multipart."""
    answer = send(http, engine.pack(engine.package("typed")), media_type)
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/wrong-media-type")


@pytest.mark.parametrize(
    "path", ["/workspaces/UPPER/configs", "/workspaces/-dash/configs", f"/workspaces/{'x' * 64}/configs"]
)
def test_a_workspace_has_a_plain_name(http: httpx.Client, path: str) -> None:
    """400 for anything but lower-case letters, digits and `-`, at most 63."""
    headers = {"Content-Type": "application/gzip"}
    answer = http.post(path, content=engine.pack(engine.package("placed")), headers=headers)
    assert (answer.status_code, answer.json()["parameter"]) == (400, "workspace")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../up", "x" * 101, "ü", "-dash", "nul\0"])
def test_a_config_has_a_plain_name(http: httpx.Client, name: str) -> None:
    """400 for anything but letters, digits, `.`, `_` and `-`, at most 100."""
    answer = send(http, engine.pack(engine.package("named")), name=name)
    assert (answer.status_code, answer.json()["parameter"]) == (400, "name")


# Documents


@pytest.mark.parametrize(
    ("name", "given", "media_type"),
    [
        ("table.csv", "", "text/csv"),
        ("table.csv", "application/octet-stream", "text/csv"),
        ("table.csv", "application/x-www-form-urlencoded", "text/csv"),
        ("table.csv", "text/tab-separated-values; charset=utf-8", "text/tab-separated-values"),
        ("Pingüin 企鹅.unknown-kind", "", "application/octet-stream"),
    ],
)
def test_a_document_is_kept_as_it_came(http: httpx.Client, name: str, given: str, media_type: str) -> None:
    """201 and its hash; content whole, by range, with HEAD; always a download."""
    content = bytes(range(256)) * 4
    answer = http.post(DOCUMENTS, params={"name": name}, content=content, headers={"Content-Type": given})
    document = engine.told(answer)
    assert answer.status_code == 201
    assert (document["name"], document["size"], document["media_type"]) == (name, 1024, media_type)
    shown = http.get(answer.headers["Location"].removeprefix("/api/v1"))
    assert engine.told(shown) == document
    assert document in engine.told(http.get(DOCUMENTS))["data"]
    path = f"/documents/{document['id']}/content"
    whole = http.get(path)
    assert (whole.content, whole.headers["etag"]) == (content, f'"{document["sha256"]}"')
    assert whole.headers["content-disposition"].startswith("attachment")
    assert http.get(path, headers={"Range": "bytes=-4"}).content == content[-4:]
    assert http.get(path, headers={"Range": "bytes=9999-"}).status_code == 416
    assert (http.head(path).headers["content-length"], http.head(path).content) == ("1024", b"")


def test_a_form_is_no_document(http: httpx.Client) -> None:
    """Else the boundaries of the form would be kept as a part of the file."""
    before = engine.told(http.get(DOCUMENTS))["data"]
    answer = http.post(DOCUMENTS, params={"name": "a.csv"}, files={"file": b"1,2"})
    assert (answer.status_code, answer.json()["type"]) == (415, "/problems/wrong-media-type")
    assert engine.told(http.get(DOCUMENTS))["data"] == before


def test_an_empty_document_is_a_document(http: httpx.Client) -> None:
    """No bytes, under the name `document`."""
    document = engine.told(http.post(DOCUMENTS))
    assert (document["name"], document["size"]) == ("document", 0)
    assert http.get(f"/documents/{document['id']}/content").content == b""


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "nul\0", "line\nbreak", "x" * 201, "ü" * 101])
def test_a_document_has_a_plain_file_name(http: httpx.Client, name: str) -> None:
    """400 for what could lead elsewhere, or is longer than a file system takes."""
    answer = http.post(DOCUMENTS, params={"name": name}, content=b"x")
    assert (answer.status_code, answer.json()["parameter"]) == (400, "name")


def test_a_config_by_another_name_is_another_request(http: httpx.Client) -> None:
    """The same package with the same Idempotency-Key: the same config by the same name, else 422. Seen to be 500."""
    package, headers = engine.pack(engine.package("twice")), {"Idempotency-Key": "config-once"}
    headers["Content-Type"] = "application/gzip"

    def register(**name: str) -> httpx.Response:
        return http.post(CONFIGS, params=name, content=package, headers=headers)

    first = engine.told(register(name="once"))
    assert engine.told(register(name="once")) == first
    for other in (register(name="twice"), register()):
        assert other.json()["type"] == "/problems/idempotency-key-reused"


def test_the_same_document_twice_is_stored_once(http: httpx.Client) -> None:
    """With the same Idempotency-Key it is one document, with another body 422; without a key two of one content."""
    key = {"Idempotency-Key": "document-once"}
    first, again = (http.post(DOCUMENTS, content=b"once", headers=key) for _ in range(2))
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert http.post(DOCUMENTS, content=b"other", headers=key).json()["type"] == "/problems/idempotency-key-reused"
    other = http.post(DOCUMENTS, content=b"once").json()
    assert (other["sha256"], other["id"] == first.json()["id"]) == (first.json()["sha256"], False)


@pytest.mark.parametrize("path", [DOCUMENTS, CONFIGS, "/configs/{config}/runs"])
def test_a_client_that_hangs_up_while_it_sends_leaves_nothing(service: Service, http: httpx.Client, path: str) -> None:
    """Half a body: no file, no event, and no traceback, as for every test here."""
    path = f"/api/v1{path.format(config=engine.actor(http))}"
    before = engine.told(http.get("/events/head"))
    address = httpx.URL(service.url)
    with socket.create_connection((address.host, address.port or 80)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/gzip\r\nContent-Length: 999"
        connection.sendall(f"{head}\r\n\r\n{'x' * 500}".encode())
        if "runs" not in path:
            engine.eventually(lambda: incoming(service), "the upload begins")
    engine.eventually(lambda: not incoming(service), "the upload is thrown away")
    assert engine.told(http.get("/events/head")) == before


# Limits


@pytest.fixture(scope="module")
def limited(server: Postgres) -> Iterator[Service]:
    """A service with small limits."""
    url = server.copy()
    limit = str(LIMIT_BYTES)
    limits = {"ADE_DOCUMENT_MAX_BYTES": limit, "ADE_CONFIG_MAX_BYTES": limit}
    with reachable_folder() as data, running_service(url, data, **limits) as running:
        yield running
    server.drop(url)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", [DOCUMENTS, CONFIGS])
def test_a_body_over_the_limit_is_413(limited: Service, path: str, declared: bool) -> None:
    """With a length or without one, and nothing of it is left; one byte less than that is taken."""

    def body(size: int) -> bytes | Iterator[bytes]:
        return bytes(size) if declared else iter([b"\0"] * size)

    with limited.http as http, engine.tidy(limited, http):
        headers = {"Content-Type": "application/gzip"}
        answer = http.post(path, content=body(LIMIT_BYTES + 1), headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
        assert answer.json()["most_bytes"] == LIMIT_BYTES
        assert http.post(path, content=body(LIMIT_BYTES), headers=headers).status_code != 413
        assert incoming(limited) == []


def test_a_json_body_over_the_limit_is_413(http: httpx.Client) -> None:
    """Also one that comes in pieces and never ends: it is cut off at 1 MiB."""
    pieces = (b" " * 65536 for _ in range(17))
    answer = http.post(f"/configs/{engine.actor(http)}/runs", content=pieces)
    assert (answer.status_code, answer.json()["most_bytes"]) == (413, 2**20)
