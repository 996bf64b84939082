"""The log file of a run, as a download: its bytes while it grows, by range, zipped, and whatever lies on the disk."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from tests import engine
from tests.conftest import Service

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    with service.http as client:
        client.headers["Accept-Encoding"] = "identity"
        yield client


@pytest.fixture(scope="module")
def run(http: httpx.Client) -> engine.Json:
    """A run that has ended."""
    return engine.run(http, engine.actor(http), "for n in range(500): print(n, 'Adélie')")[0]


@pytest.fixture(scope="module")
def content(http: httpx.Client, run: engine.Json) -> bytes:
    """The NDJSON stream of that run."""
    return b"".join(line + b"\n" for line in engine.feed(http, run["id"]))


@pytest.fixture(scope="module")
def path(run: engine.Json) -> str:
    return f"/runs/{run['id']}/logfile"


def on_disk(service: Service, run: engine.Json, content: bytes) -> Path:
    """The file that the projector has written."""
    file = service.data / "runs" / engine.WORKSPACE / str(run["id"]) / "events.ndjson"
    engine.eventually(lambda: file.exists() and file.stat().st_size == len(content), "the log file is written")
    return file


def test_the_file_is_the_stream(http: httpx.Client, run: engine.Json, path: str, content: bytes) -> None:
    """The same bytes, as a download, with a length, an ETag, and the same for HEAD without them."""
    whole = http.get(path)
    assert whole.content == content
    assert whole.headers["content-length"] == str(len(content))
    assert whole.headers["content-type"] == "application/x-ndjson"
    assert whole.headers["content-disposition"] == f'attachment; filename="{run["id"]}.ndjson"'
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["x-content-type-options"] == "nosniff"
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "content-type"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100-", 100, None),
        ("bytes=777-70000", 777, 70001),
        ("bytes=100-99999999", 100, None),
        ("bytes=-1", -1, None),
        ("bytes=-5000", -5000, None),
        ("bytes=-99999999", 0, None),
    ],
)
def test_a_range_is_that_part(
    http: httpx.Client, path: str, content: bytes, asked: str, start: int, stop: int | None
) -> None:
    """First bytes, middle, rest, the last N; a HEAD says as much without the bytes."""
    wanted = content[start:stop]
    first = content.index(wanted) if start >= 0 else len(content) + start
    part = http.get(path, headers={"Range": asked})
    assert (part.status_code, part.content) == (206, wanted)
    assert part.headers["content-range"] == f"bytes {first}-{first + len(wanted) - 1}/{len(content)}"
    assert part.headers["content-length"] == str(len(wanted))
    head = http.head(path, headers={"Range": asked})
    assert (head.headers.get("content-range"), head.content) == (part.headers["content-range"], b"")


@pytest.mark.parametrize("asked", ["bytes=0-1,5-6", "lines=0-1", "bytes=-", "bytes=x-", "bytes", "bytes=9-5"])
def test_a_range_that_is_not_understood_is_ignored(http: httpx.Client, path: str, content: bytes, asked: str) -> None:
    """The whole is a right answer to several ranges, other units, and what is no range."""
    answer = http.get(path, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, content)


@pytest.mark.parametrize("known", ["{etag}", "W/{etag}", '"other", {etag}', "*"])
def test_who_has_it_is_told_so(http: httpx.Client, path: str, content: bytes, known: str) -> None:
    """304 without the bytes, also to who has them zipped; 200 to who has others."""
    etag = http.head(path, headers={"Accept-Encoding": "identity"}).headers["etag"]
    again = http.get(path, headers={"If-None-Match": known.format(etag=etag)})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert http.get(path, headers={"If-None-Match": '"other"'}).content == content


@pytest.mark.parametrize("asked", ["bytes={size}-", "bytes=99999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_416(http: httpx.Client, path: str, content: bytes, asked: str) -> None:
    """With the size that there is."""
    answer = http.get(path, headers={"Range": asked.format(size=len(content))})
    assert (answer.status_code, answer.json()["type"]) == (416, "/problems/range-not-satisfiable")
    assert answer.json()["size"] == len(content)
    assert answer.headers["content-range"] == f"bytes */{len(content)}"


def test_gzip_is_for_those_who_accept_it(http: httpx.Client, path: str, content: bytes) -> None:
    """The same content, smaller; never of a range; never for who refuses it."""
    zipped = http.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in zipped.headers["vary"].lower()
    assert zipped.content == content
    assert zipped.num_bytes_downloaded < len(content) / 4
    part = http.get(path, headers={"Accept-Encoding": "gzip", "Range": "bytes=5-9"})
    assert ("content-encoding" in part.headers, part.content) == (False, content[5:10])
    refused = http.get(path, headers={"Accept-Encoding": "gzip;q=0, identity"})
    assert ("content-encoding" in refused.headers, refused.content) == (False, content)


def test_a_growing_file_keeps_its_beginning(service: Service, http: httpx.Client) -> None:
    """A download that broke off goes on with the ETag that it began with, while the run writes: If-Range holds."""
    with engine.gate(service) as gate:
        script = f"print('before'); wait_for({str(gate)!r}); print('after')"
        started = engine.start(http, engine.actor(http), script)
        engine.wait_for_event(http, started["id"], engine.says("before"))
        path = f"/runs/{started['id']}/logfile"
        early = http.get(path)
        half = len(early.content) // 2
        assert orjson.loads(early.content.splitlines()[-1])["message"] == "before"
        gate.touch()
        content = b"".join(line + b"\n" for line in engine.feed(http, started["id"]))
    assert content.startswith(early.content)
    assert len(content) > len(early.content)
    going_on = {"Range": f"bytes={half}-", "If-Range": early.headers["etag"]}
    rest = http.get(path, headers=going_on)
    assert (rest.status_code, early.content[:half] + rest.content) == (206, content)
    assert rest.headers["etag"] != early.headers["etag"]
    now = http.get(path).headers["etag"]
    other_run = now.replace(started["id"], "run_01")
    ahead = now.replace(now.strip('"').split("-")[1], str(10**12))
    for etag in (other_run, ahead, '"other"', f"W/{now}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = http.get(path, headers={"Range": "bytes=5-", "If-Range": etag})
        assert (answer.status_code, answer.content) == (200, content), etag


@pytest.mark.parametrize("damage", ["absent", "empty", "a part", "a torn line", "one byte short"])
def test_the_bytes_do_not_depend_on_the_disk(
    service: Service, http: httpx.Client, run: engine.Json, path: str, content: bytes, damage: str
) -> None:
    """The file absent, or cut anywhere: the log gives the rest, whole and by range."""
    file = on_disk(service, run, content)
    middle = content.index(b"\n", len(content) // 2) + 1
    kept = {"empty": 0, "a part": middle, "a torn line": middle + 40, "one byte short": len(content) - 1}
    try:
        if damage == "absent":
            file.unlink()
        else:
            file.write_bytes(content[: kept[damage]])
        assert http.get(path).content == content
        assert http.head(path).headers["content-length"] == str(len(content))
        for start, stop in ((0, 10), (middle - 100, middle + 100), (len(content) - 10, len(content))):
            part = http.get(path, headers={"Range": f"bytes={start}-{stop - 1}"})
            assert (part.status_code, part.content) == (206, content[start:stop])
        assert zlib.crc32(http.get(path, headers={"Accept-Encoding": "gzip"}).content) == zlib.crc32(content)
    finally:
        file.write_bytes(content)


def test_a_file_that_is_damaged_while_it_grows_is_made_whole(service: Service, http: httpx.Client) -> None:
    """Removed, or cut within a line: with its next lines the projector writes what is missing, and nothing twice."""
    for kept in (None, 333):
        with engine.gate(service) as gate:
            script = f"print('before'); wait_for({str(gate)!r}); print('after')"
            run = engine.start(http, engine.actor(http), script)
            engine.wait_for_event(http, run["id"], engine.says("before"))
            file = on_disk(service, run, http.get(f"/runs/{run['id']}/logfile").content)
            if kept is None:
                file.unlink()
            else:
                file.write_bytes(file.read_bytes()[:kept])
            gate.touch()
            content = b"".join(line + b"\n" for line in engine.feed(http, run["id"]))
        assert on_disk(service, run, content).read_bytes() == content


def test_a_build_has_a_log_file_too(http: httpx.Client, run: engine.Json) -> None:
    """The lines of the build's own feed."""
    content = b"".join(line + b"\n" for line in engine.feed(http, run["build_id"]))
    answer = http.get(f"/builds/{run['build_id']}/logfile")
    assert answer.content == content
    assert orjson.loads(content.splitlines()[0])["type"] == "build.created"
