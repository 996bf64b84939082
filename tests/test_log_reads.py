"""What comes out of the log: lines, pages, feeds and control events."""

import io
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import orjson
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eventstore import NEW, Append, Database, Feed, Line, Log, NewEvent, Part, encode, log
from eventstore.errors import StoreBug
from tests.conftest import Server, Store, open_store

pytestmark = pytest.mark.anyio

# Every character that some reader takes for the end of a line, and those that JSON must escape.
CHARACTERS = st.one_of(
    st.characters(codec="utf-8"), st.sampled_from('\0\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"\\u0\ufffd')
)
TEXTS = st.text(CHARACTERS, max_size=20)
PAYLOADS = st.dictionaries(
    TEXTS,
    st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False),
            TEXTS,
        ),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
        max_leaves=8,
    ),
    max_size=4,
)
in_the_database = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # one database serves all examples, each in streams of its own

READERS: dict[str, Callable[[bytes], list[str] | list[bytes]]] = {
    "str.splitlines": lambda text: text.decode().splitlines(),
    "bytes.splitlines": bytes.splitlines,
    "a text file": lambda text: list(io.TextIOWrapper(io.BytesIO(text), "utf-8")),
    "a binary file": lambda text: list(io.BytesIO(text)),
    "Java, .NET and Perl": lambda text: re.split("\r\n|[\n\v\f\r\x85\u2028\u2029]", text.decode())[:-1],
    "JavaScript": lambda text: re.split("\r\n|[\n\r\u2028\u2029]", text.decode())[:-1],
}


def without_nul(value: object) -> object:
    """What is written for a payload: PostgreSQL knows no NUL."""
    return json.loads(json.dumps(value, ensure_ascii=True).replace("\\\\", "\\u005c").replace("\\u0000", "\\ufffd"))


async def read_all(log: Log, after: int = 0, limit: int = 1000) -> list[Line]:
    """The whole log after a cursor, page by page."""
    lines: list[Line] = []
    while page := await log.read(lines[-1].id if lines else after, limit=limit):
        assert len(page) <= limit
        lines += page
    return lines


async def read_all_of(log: Log, feed: Feed, after: int = 0, limit: int = 1000) -> list[Line]:
    """A whole feed after a cursor, page by page."""
    lines: list[Line] = []
    while page := await log.read_feed(feed, lines[-1].id if lines else after, limit=limit):
        assert len(page) <= limit
        lines += page
    return lines


# Encoding


@pytest.mark.parametrize("reader", READERS)
@given(payload=PAYLOADS)
@example(payload={"a": "\x85\u2028\u2029", "\u2028": "\\\x85"})
def test_a_payload_is_one_line_for_every_reader(reader: str, payload: dict[str, object]) -> None:
    """Whatever the strings hold, nobody who reads lines finds two."""
    assert len(READERS[reader](encode(payload) + b"\n")) == 1


@given(payload=PAYLOADS)
@example(payload={"a": "\\u0000", "b": "\0", "c": ["\\\0\x85"], "\0": {"\0": "\\u2028\u2028"}})
def test_a_payload_comes_back_as_it_was_but_for_nul(payload: dict[str, object]) -> None:
    """Escaping changes no meaning; a NUL, which PostgreSQL refuses, becomes U+FFFD, in keys and deep down too."""
    assert orjson.loads(encode(payload)) == without_nul(payload)


# Lines


@in_the_database
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=20))
async def test_control_event_comes_back_as_it_was_written(store: Store, payloads: list[dict[str, object]]) -> None:
    """A fold sees the payload that was appended, whatever characters it holds."""
    head = await store.log.head()
    stream = f"job_{head}"
    await store.appender.append(
        Append((Part(stream, [NewEvent("job.noted", encode(payload)) for payload in payloads], "ws", NEW),))
    )
    events = await store.log.control_events(stream)
    assert [event.data for event in events] == [without_nul(payload) for payload in payloads]
    assert [(event.id, event.seq) for event in events] == [(head + n, n) for n in range(1, len(payloads) + 1)]


@in_the_database
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=20), bulk=st.booleans())
async def test_a_line_is_json_with_its_fields_in_order(
    store: Store, payloads: list[dict[str, object]], bulk: bool
) -> None:
    """The envelope first, in the order of the contract, then the payload's own fields in theirs; one line each."""
    head = await store.log.head()
    stream = f"job_{head}"
    new = [NewEvent("job.noted", encode(payload), bulk=bulk) for payload in payloads]
    await store.appender.append(Append((Part(stream, new, "ws", NEW),)))
    lines = await store.log.read(head)
    for seq, (line, payload) in enumerate(zip(lines, payloads, strict=True), 1):
        fields = json.loads(line.line, object_pairs_hook=list)
        assert fields[:5] == [
            ("id", head + seq),
            ("object", "ade.job.event"),
            ("type", "job.noted"),
            ("job_id", stream),
            ("seq", seq),
        ]
        own = list(orjson.loads(encode(payload)))
        assert [name for name, _ in fields[5:]] == ["created", "created_at", *own]
        assert line.line.endswith(encode(payload)[1:])
        assert len(line.line.decode().splitlines()) == 1
        assert (line.id, line.stream, line.type) == (head + seq, stream, "job.noted")


async def test_an_empty_payload_leaves_no_comma(store: Store) -> None:
    """A line without own fields ends after the envelope."""
    await store.appender.append(Append((Part("job_1", [NewEvent("job.noted", b"{}")], "ws"),)))
    [line] = await store.log.read(0)
    assert list(json.loads(line.line)) == ["id", "object", "type", "job_id", "seq", "created", "created_at"]


@pytest.mark.parametrize(
    ("moment", "times"),
    [
        ("2025-11-20 04:19:05.123456+00", '"created":1763612345,"created_at":"2025-11-20T04:19:05.123456Z"'),
        ("2025-11-20 04:19:05.999999+00", '"created":1763612345,"created_at":"2025-11-20T04:19:05.999999Z"'),
        ("2025-11-20 04:19:05+00", '"created":1763612345,"created_at":"2025-11-20T04:19:05.000000Z"'),
        ("2025-12-31 22:00:00-02", '"created":1767225600,"created_at":"2026-01-01T00:00:00.000000Z"'),
    ],
)
def test_times_are_utc_with_microseconds(url: str, moment: str, times: str) -> None:
    """The seconds are cut, not rounded, and the session's own time zone and date style are of no matter."""
    with psycopg.connect(
        url, options="-c TimeZone=Asia/Kolkata -c DateStyle=German -c IntervalStyle=sql_standard"
    ) as there:
        assert there.execute("SELECT event_times_v1(%s)", [moment]).fetchone() == (times,)


async def test_a_line_tells_the_time_at_which_it_was_recorded(store: Store) -> None:
    """All events of one batch share their moment, which is the database's."""
    with psycopg.connect(store.database.url, autocommit=True) as connection:
        clock = "SELECT clock_timestamp()"
        before = connection.execute(clock).fetchone()
        await store.appender.append(Append((Part("job_1", [NewEvent("job.noted", b"{}")] * 2, "ws"),)))
        after = connection.execute(clock).fetchone()
    assert before is not None
    assert after is not None
    told = [json.loads(line.line) for line in await store.log.read(0)]
    moments = {datetime.fromisoformat(line["created_at"]) for line in told}
    assert len(moments) == 1
    assert before[0] <= moments.pop() <= after[0]
    assert datetime.fromtimestamp(told[0]["created"], UTC) == datetime.fromisoformat(told[0]["created_at"]).replace(
        microsecond=0
    )


# Pages and feeds


LINE = NewEvent("job.line", encode({"message": "…"}), bulk=True)
NOTED = NewEvent("job.noted", b"{}")
ENDED = NewEvent("job.ended", b"{}", ends=True)


opened = asynccontextmanager(open_store)


async def tell(url: str) -> None:
    """A run with a build beside it, and what went on around them."""
    async with opened(url) as store:
        for stream, events in (
            ("build_1", (NOTED, LINE, LINE)),  # 1-3: before the run was created
            ("run_2", (NOTED,)),  # 4: another run
            ("run_1", (NOTED, LINE)),  # 5-6: created
            ("build_1", (LINE, NOTED)),  # 7-8
            ("run_2", (LINE, LINE)),  # 9-10
            ("run_1", (LINE, LINE, LINE)),  # 11-13
            ("build_1", (ENDED,)),  # 14
            ("run_1", (LINE, NOTED, ENDED)),  # 15-17: ended
            ("build_2", (NOTED, LINE)),  # 18-19
            ("run_2", (LINE, ENDED)),  # 20-21
        ):
            await store.appender.append(Append((Part(stream, events, "ws"),)))


@pytest.fixture(scope="module")
def url_of_story(every_server: Server) -> Iterator[str]:
    """A database for all tests that only read it."""
    url = every_server.copy()
    anyio.run(tell, url)
    yield url
    every_server.drop(url)


@pytest.fixture
async def story(url_of_story: str) -> AsyncIterator[Log]:
    async with Database(url_of_story) as database:
        yield Log(database)


RUN = Feed("run_1", "build_1", 5, 17)


async def test_a_feed_has_both_streams_between_the_ends_of_the_first(story: Log) -> None:
    """What happened to the build before the run was created belongs to others; so does what lies after the end."""
    lines = await story.read_feed(RUN, 0)
    assert [line.id for line in lines] == [5, 6, 7, 8, 11, 12, 13, 14, 15, 16, 17]
    assert {line.stream for line in lines} == {"run_1", "build_1"}


async def test_a_feed_ends_with_its_first_stream(story: Log) -> None:
    """A build that goes on after the run has ended says nothing more to the run's viewers."""
    lines = await story.read_feed(Feed("run_1", "run_2", 5, 17), 0)
    assert [line.id for line in lines] == [5, 6, 9, 10, 11, 12, 13, 15, 16, 17]


async def test_a_feed_without_an_end_goes_on(story: Log) -> None:
    """The feed of what still runs has everything up to the head."""
    lines = await story.read_feed(Feed("build_2", "run_2", 18, None), 0)
    assert [line.id for line in lines] == [18, 19, 20, 21]


async def test_a_feed_may_be_one_stream(story: Log) -> None:
    """The feed of a build is its stream."""
    lines = await story.read_feed(Feed("build_1", None, 1, 14), 0)
    assert [line.id for line in lines] == [1, 2, 3, 7, 8, 14]


async def test_a_read_goes_no_further_than_it_is_told(story: Log) -> None:
    """`upto` bounds both kinds of read, beside what bounds the feed itself."""
    assert [line.id for line in await story.read(15, upto=18)] == [16, 17, 18]
    assert [line.id for line in await story.read_feed(RUN, 6, upto=11)] == [7, 8, 11]
    assert [line.id for line in await story.read_feed(RUN, 16, upto=20)] == [17]
    assert [event.id for event in await story.control_events("run_1", "build_1", upto=8)] == [1, 5, 8]


async def test_pages_of_any_size_are_the_whole(story: Log) -> None:
    """Cut anywhere and read on from the last id, a log and a feed are the same lines, as bytes and one by one."""
    whole, feed = list(await story.read(0)), list(await story.read_feed(RUN, 0))
    assert [line.id for line in whole] == list(range(1, 22))
    for limit in range(1, 23):
        assert await read_all(story, limit=limit) == whole
        assert await read_all_of(story, RUN, limit=limit) == feed
    for after in range(23):
        assert list(await story.read(after)) == whole[after:]
        assert list(await story.read_feed(RUN, after)) == [line for line in feed if line.id > after]


async def test_feeds_are_read_together_as_each_alone(story: Log) -> None:
    """From wherever they are read: also where only the second stream has moved. Seen to fail without that, and with a
    look that begins one event too late."""
    feeds = [RUN, Feed("run_1", "run_2", 5, 17), Feed("build_2", "run_2", 18, None), Feed("build_1", None, 1, 14)]
    for after in range(22):
        found = await story.read_feeds([(feed, after) for feed in feeds])
        assert [list(page) for page in found.pages] == [list(await story.read_feed(feed, after)) for feed in feeds]


async def test_a_feed_that_is_far_behind_is_read_too(store: Store) -> None:
    """Its stream is not among those that moved of late. Seen to fail where only these are looked up."""
    for stream, events in (("run_1", [NOTED]), ("run_2", [LINE] * 50)):
        await store.appender.append(Append((Part(stream, events, "ws"),)))
    [page] = (await store.log.read_feeds([(Feed("run_1", None, 1, None), 0)])).pages
    assert [line.id for line in page] == [1]


@pytest.mark.parametrize("size", [1, 15, 40])
async def test_pages_end_at_their_bytes_too(story: Log, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """A page of long lines is a short one, so that a reader's memory is bounded; what is left out comes next."""
    whole, feed = list(await story.read(0)), list(await story.read_feed(RUN, 0))
    monkeypatch.setattr(log, "PAGE_BYTES", size)
    first = await story.read(0)
    assert first.more
    assert len(first) < len(whole)
    assert await read_all(story) == whole
    assert await read_all_of(story, RUN) == feed
    found = await story.read_feeds([(RUN, 0), (RUN, feed[-2].id), (RUN, 17)])
    assert [page.more for page in found.pages] == [True, False, False]
    assert [line for page in found.pages[1:] for line in page] == feed[-1:]


async def test_a_page_ends_at_its_bytes_though_a_segment_is_uneven(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One append of many short lines and some very long ones: the average says that all fit."""
    monkeypatch.setattr(log, "PAGE_BYTES", 10_000)
    long = NewEvent("run.log", encode({"m": "x" * 9_000}), bulk=True)
    await store.appender.append(Append((Part("run_1", [*[LINE] * 900, *[long] * 9], "ws"),)))
    feed = Feed("run_1", None, 1, None)
    page = await store.log.read_feed(feed, 890)
    assert (page.last_id, page.more) == (902, True)
    [found] = (await store.log.read_feeds([(feed, 902)])).pages
    assert (found.last_id, found.more) == (904, True)
    assert len(await read_all_of(store.log, feed)) == 909


async def test_a_stream_whose_segments_are_gone_is_an_error(store: Store, url: str) -> None:
    """Not the end of the feed, and nothing to ask for again and again."""
    await store.appender.append(Append((Part("run_1", [NOTED, LINE], "ws"),)))
    await store.appender.append(Append((Part("run_1", [LINE], "ws"),)))
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE segments SET first_id = 9, last_id = 9 WHERE last_id = 3")
        connection.execute("DELETE FROM segments WHERE last_id = 2")
    with pytest.raises(StoreBug, match="no segment leads"):
        await store.log.read_feed(Feed("run_1", None, 1, None), 0)


async def test_a_page_says_whose_output_it_is(story: Log) -> None:
    """Where all its lines are output of one stream: then nobody has to look at them."""
    spans = {(9, 10): "run_2", (11, 13): "run_1", (10, 11): None, (14, 14): None, (15, 17): None, (22, 22): None}
    assert {(first, last): (await story.read(first - 1, upto=last)).output_of for first, last in spans} == spans


async def test_a_feed_has_the_same_bytes_as_the_log(story: Log) -> None:
    """A line is made in one place, so it is the same wherever it is read."""
    of_log = {line.id: line for line in await story.read(0)}
    for line in await story.read_feed(RUN, 0):
        assert line == of_log[line.id]


async def test_control_events_are_what_folds_need(story: Log) -> None:
    """No line is loaded, and two streams come in the order of the log."""
    events = await story.control_events("run_1", "build_1")
    assert [(event.id, event.stream, event.seq, event.type) for event in events] == [
        (1, "build_1", 1, "job.noted"),
        (5, "run_1", 1, "job.noted"),
        (8, "build_1", 5, "job.noted"),
        (14, "build_1", 6, "job.ended"),
        (16, "run_1", 7, "job.noted"),
        (17, "run_1", 8, "job.ended"),
    ]


async def test_a_log_says_which_one_it_is_and_how_far_it_has_come(store: Store) -> None:
    """Its id stays, and its head is 0 as long as it is empty."""
    empty = await store.log.identity()
    assert (empty.head, empty.oldest, await store.log.head(), len(await store.log.read(0))) == (0, 0, 0, 0)
    await store.appender.append(Append((Part("job_1", [NOTED, LINE], "ws"),)))
    identity = await store.log.identity()
    assert (identity.head, identity.oldest, await store.log.head()) == (2, 1, 2)
    assert identity.log_id == empty.log_id
    assert re.fullmatch("log_[0-9a-f]{32}", identity.log_id)
