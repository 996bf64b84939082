"""The reference consumer: every cut of a stream through the parser, and through real connections that break."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.event import encode
from service import client
from service.client import Consumer, Event, HistoryBroken, Lines, ProblemError, Unreachable, follow, follow_async

pytestmark = pytest.mark.anyio

RUN, BUILD = "run_01J0000000000000000000000A", "build_01J0000000000000000000000B"


def line(event_id: int, seq: int, kind: str, of: str = RUN, **payload: object) -> bytes:
    own = of.partition("_")[0]
    envelope = {"id": event_id, "object": f"ade.{own}.event", "type": kind, f"{own}_id": of, "seq": seq}
    return encode({**envelope, "created": 1763612345, "created_at": "2025-11-20T04:19:05.123456Z", **payload})


STREAM = [
    line(4, 1, "run.created", build_id=BUILD),
    line(5, 7, "build.step", BUILD, step="create_venv", status="started"),
    line(8, 2, "run.log", stream="stdout", message="größer \u2028 als 🐧\r\n\x1b[2J"),
    line(9, 8, "build.completed", BUILD, status="active"),
    line(12, 3, "run.completed", status="succeeded"),
]
"""A run's feed beside a build that was under way already: ids with gaps, each stream dense, bytes of many kinds."""


# The parser


def test_every_cut_gives_the_same_lines() -> None:
    """Two pieces, cut at any byte, are the same lines as one piece; a torn end is never handed out."""
    body = b"\n" + b"\n\n".join(STREAM) + b"\n"
    whole = Lines().feed(body)
    assert [found for found in whole if found] == STREAM
    for cut in range(len(body) + 1):
        lines = Lines()
        first = lines.feed(body[:cut])
        assert first == body[:cut].split(b"\n")[:-1]
        assert first + lines.feed(body[cut:]) == whole


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"", b"\n", b"\r", b"\r\n", "\u2028".encode()])))
def test_any_pieces_of_any_bytes(pieces: list[bytes]) -> None:
    """Lines end at LF alone, however the bytes are cut."""
    lines, data = Lines(), b"".join(pieces)
    assert [found for piece in pieces for found in lines.feed(piece)] == data.split(b"\n")[:-1]


def test_a_line_without_an_end_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never ends a line does not fill our memory."""
    monkeypatch.setattr(client, "LINE_MAX_BYTES", 100)
    lines = Lines()
    lines.feed(b"x" * 100)
    with pytest.raises(HistoryBroken, match="more than 100 bytes"):
        lines.feed(b"x")


# What is proven


def taken(consumer: Consumer, lines: Iterable[bytes]) -> list[Event]:
    return list(consumer.take(b"".join(found + b"\n" for found in lines)))


def test_the_whole_stream_is_accepted() -> None:
    consumer = Consumer(RUN)
    events = taken(consumer, STREAM)
    assert [event.line for event in events] == STREAM
    assert events[2]["message"] == "größer \u2028 als 🐧\r\n\x1b[2J"
    assert [event.stream for event in events] == [RUN, BUILD, RUN, BUILD, RUN]
    assert consumer.ended
    assert consumer.after_id == 12


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([STREAM[0], STREAM[4]], "Number 3 of run_.* after number 1"),
        ([STREAM[1], line(6, 9, "build.step", BUILD)], "Number 9 of build_.* after number 7"),
        ([STREAM[2]], "Number 2 of run_.* after number 0"),
        ([STREAM[0], STREAM[0]], "Event 4 came after event 4"),
        ([STREAM[1], STREAM[0]], "Event 4 came after event 5"),
        ([*STREAM, line(13, 4, "run.log")], "Event 13 came after the end"),
        ([b"<html>"], "no event"),
        ([b"[]"], "no event"),
        ([b'{"id":1,"object":"ade.run.event","type":"run.created"}'], "no event"),
        ([b'{"id":1,"object":7}'], "no event"),
    ],
)
def test_a_broken_history_is_refused(lines: list[bytes], why: str) -> None:
    """A gap, a repetition, a step back, something after the end, or what is no event at all."""
    with pytest.raises(HistoryBroken, match=why):
        taken(Consumer(RUN), lines)


def test_a_gap_across_two_connections_is_found() -> None:
    """What was proven holds from one connection to the next."""
    consumer = Consumer(RUN)
    taken(consumer, STREAM[:2])
    consumer.request()
    with pytest.raises(HistoryBroken, match="Number 3"):
        taken(consumer, STREAM[4:])


def test_what_came_before_a_break_is_handed_out() -> None:
    """The events before the gap are good."""
    events = Consumer(RUN).take(STREAM[0] + b"\n" + STREAM[4] + b"\n")
    assert next(events).line == STREAM[0]
    with pytest.raises(HistoryBroken):
        next(events)


def test_a_cursor_in_the_middle_takes_any_first_number() -> None:
    """Who begins late cannot know what number comes first, and proves from there on."""
    assert [event.id for event in taken(Consumer(RUN, 5), STREAM[2:])] == [8, 9, 12]


def test_another_streams_end_is_not_the_end() -> None:
    consumer = Consumer(RUN)
    taken(consumer, STREAM[:4])
    assert not consumer.ended
    own = Consumer(BUILD, 4)
    taken(own, [STREAM[1], STREAM[3]])
    assert own.ended


def test_pauses_grow_and_obey_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is longer than the one before, up to a limit; one event makes them short again."""
    monkeypatch.setattr(client, "jitter", lambda _low, high: high)
    told: list[float] = []
    consumer = Consumer(RUN, on_pause=lambda _failure, wait_s: told.append(wait_s))
    cut = Unreachable("http://here", "cut")
    assert [consumer.pause(cut) for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    taken(consumer, STREAM[:1])
    assert consumer.pause(cut) == 0.2
    assert consumer.pause(ProblemError({"status": 503}, retry_after_s=7)) == 7
    assert told[-2:] == [0.2, 7]


# Real connections


class Torn:
    """A server of one feed, as bytes on a socket. ``cuts``: after how many bytes each connection ends; then whole ones.

    ``framing``: chunked, where the client can tell that something is missing, or none, where the end of the connection
    is the end of the answer. ``reset``: connections end by a reset, which may eat what was sent.
    """

    def __init__(self, cuts: Iterable[int] = (), *, framing: str = "chunked", reset: bool = False) -> None:
        self.cuts, self.framing, self.reset = iter(cuts), framing, reset
        self.lines: list[bytes] = STREAM
        self.answers: list[bytes] = []
        """Given instead of the feed, first of all."""
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        """Of every request for the feed: its method, its parameters, its headers."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        url, headers = urlsplit(target), dict(field.lower().split(": ", 1) for field in head[1:] if field)
        await reader.readexactly(int(headers.get("content-length", "0")))
        if url.path == f"/api/v1/runs/{RUN}":
            writer.write(answer(b"200 OK", {"finished": 1, "last_event_id": STREAM_ENDS}))
        else:
            params = {name: values[0] for name, values in parse_qs(url.query).items()}
            self.asked.append((method, params, headers))
            whole = self.answers.pop(0) if self.answers else self.feed(int(params.get("after_id", "0")))
            cut = next(self.cuts, None)
            writer.write(whole[:cut])
            if cut is not None and self.reset:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()

    def feed(self, after_id: int) -> bytes:
        """The whole answer, after a cursor."""
        body = [b"\n", *(found + b"\n" for found in self.lines if orjson.loads(found)["id"] > after_id)]
        head = b"HTTP/1.1 200 OK\r\nADE-Log-Id: log_1\r\n"
        if self.framing == "none":
            return head + b"Connection: close\r\n\r\n" + b"".join(body)
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in body)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


STREAM_ENDS = 12


def answer(status: bytes, document: object, *headers: bytes) -> bytes:
    body = orjson.dumps(document)
    fields = [b"HTTP/1.1 " + status, b"Connection: close", b"Content-Length: %d" % len(body), *headers, b"", body]
    return b"\r\n".join(fields)


def problem(slug: str, status: int, **facts: object) -> dict[str, object]:
    return {"type": f"/problems/{slug}", "title": slug, "status": status, "detail": f"It is {slug}.", **facts}


@asynccontextmanager
async def served(torn: Torn) -> AsyncIterator[httpx.AsyncClient]:
    server = await asyncio.start_server(torn, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1/", trust_env=False) as http:
        yield http


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance says 0 each time, so no connection waits for the one before it."""
    monkeypatch.setattr(client, "jitter", lambda _low, _high: 0)


async def collect(http: httpx.AsyncClient, consumer: Consumer) -> list[bytes]:
    return [event.line async for event in follow_async(http, consumer)]


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(("framing", "reset"), [("chunked", False), ("none", False), ("none", True)])
async def test_a_connection_that_ends_at_any_byte(framing: str, reset: bool) -> None:
    """I3: wherever the answer is torn, head included, the events are those of the whole one, each once."""
    torn = Torn(framing=framing, reset=reset)
    async with served(torn) as http:
        for cut in range(0, len(torn.feed(0)), 5 if reset else 1):
            torn.cuts = iter([cut])
            assert await collect(http, Consumer(RUN)) == STREAM


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 1200), max_size=12), st.sampled_from(["chunked", "none"]), st.booleans())
def test_many_connections_that_end(cuts: list[int], framing: str, reset: bool) -> None:
    """I3: the same with one broken connection after the other."""

    async def main() -> None:
        torn = Torn(cuts, framing=framing, reset=reset)
        async with served(torn) as http:
            assert await collect(http, Consumer(RUN)) == STREAM
        cursors = [int(params["after_id"]) for _, params, _ in torn.asked]
        assert cursors == sorted(cursors)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(client, "jitter", lambda _low, _high: 0)
        asyncio.run(main())


@pytest.mark.usefixtures("no_pauses")
async def test_the_synchronous_one_does_the_same() -> None:
    """`follow` and `follow_async` are one algorithm."""
    cuts = range(0, 1000, 37)
    torn = Torn(cuts)

    def collect_here() -> list[bytes]:
        with httpx.Client(base_url=http.base_url, trust_env=False) as own:
            return [event.line for event in follow(own, Consumer(RUN))]

    async with served(torn) as http:
        assert await anyio.to_thread.run_sync(collect_here) == STREAM
    assert len(torn.asked) > 10


async def test_it_ends_where_the_end_lies_behind_the_cursor() -> None:
    """A stream without events and a snapshot that has ended are the end, not a reason to come back for ever."""
    torn = Torn()
    async with served(torn) as http:
        with anyio.fail_after(60):
            assert await collect(http, Consumer(RUN, STREAM_ENDS)) == []
    assert len(torn.asked) == 1


@pytest.mark.usefixtures("no_pauses")
async def test_a_bookmark_moves_the_cursor() -> None:
    """After a bookmark the next connection begins there."""
    torn = Torn()
    bookmark = b'{"object":"ade.bookmark","id":7}'
    torn.lines = [*STREAM[:2], bookmark]
    whole = torn.feed(0)
    torn.lines, torn.answers = STREAM, [whole]
    async with served(torn) as http:
        assert await collect(http, Consumer(RUN)) == STREAM
    assert [params["after_id"] for _, params, _ in torn.asked] == ["0", "7"]


@pytest.mark.usefixtures("no_pauses")
async def test_the_log_is_named_once_it_is_known() -> None:
    """A cursor of one log is never used on another: the service is told which one it is from."""
    torn = Torn([300])
    refusal = problem("other-log", 409, log_id="log_2")
    async with served(torn) as http:
        events = follow_async(http, Consumer(RUN))
        seen = [(await anext(events)).id]
        torn.answers = [answer(b"409 Conflict", refusal)]
        with pytest.raises(client.OtherLog) as refused:
            seen += [event.id async for event in events]
    assert seen == [4]
    assert refused.value.problem == refusal
    assert [params.get("log_id") for _, params, _ in torn.asked] == [None, "log_1"]


@pytest.mark.parametrize(
    ("status", "slug", "kind"),
    [
        (b"404 Not Found", "not-found", client.NotFound),
        (b"409 Conflict", "cursor-ahead", client.CursorAhead),
        (b"410 Gone", "cursor-gone", client.CursorGone),
        (b"400 Bad Request", "malformed", ProblemError),
    ],
)
async def test_a_refusal_is_an_error_with_its_document(status: bytes, slug: str, kind: type[ProblemError]) -> None:
    """What waiting cannot change is raised at once, as the kind that it is, with the whole problem document."""
    torn, document = Torn(), problem(slug, int(status[:3]), head=3)
    torn.answers = [answer(status, document)]
    async with served(torn) as http:
        with pytest.raises(ProblemError) as refused:
            await collect(http, Consumer(RUN, 99))
    assert type(refused.value) is kind
    assert refused.value.problem == document


@pytest.mark.usefixtures("no_pauses")
async def test_what_passes_is_waited_for() -> None:
    """429 and 5xx are pauses, also where a proxy says so without a problem document."""
    torn = Torn()
    torn.answers = [
        answer(b"503 Service Unavailable", problem("unavailable", 503), b"Retry-After: 0"),
        answer(b"429 Too Many Requests", problem("too-many", 429), b"Retry-After: 0"),
        b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n<html>sorry</html>",
    ]
    told: list[str] = []
    async with served(torn) as http:
        consumer = Consumer(RUN, on_pause=lambda failure, _wait_s: told.append(str(failure)))
        assert await collect(http, consumer) == STREAM
    assert [why.split(",")[0] for why in told] == [
        "It is unavailable.",
        "It is too-many.",
        "The answer was 502 Bad Gateway",
    ]


@pytest.mark.usefixtures("no_pauses")
async def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there for long enough is an error that says so."""
    monkeypatch.setattr(client, "PATIENCE_S", 0)
    with socket.socket() as taken_port:
        taken_port.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken_port.getsockname()[1]}/api/v1/"
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            with pytest.raises(Unreachable, match="No connection to http://127"):
                await collect(http, Consumer(RUN))


@pytest.mark.usefixtures("no_pauses")
async def test_a_creation_is_asked_for_again_with_its_key() -> None:
    """Until the first line is there the same request goes out; from then on the feed is read by cursor."""
    in_first = Torn().feed(0).index(STREAM[0]) + 20
    torn = Torn([0, in_first, in_first + len(STREAM[0])])
    async with served(torn) as http:
        consumer = Consumer.creating("configs/config_1/runs", {"dry_run": True})
        assert await collect(http, consumer) == STREAM
    assert consumer.stream == RUN
    posts = [headers["idempotency-key"] for method, _, headers in torn.asked if method == "POST"]
    gets = [params["after_id"] for method, params, _ in torn.asked if method == "GET"]
    assert len(posts) == 3
    assert len(set(posts)) == 1
    assert gets == ["4"]
