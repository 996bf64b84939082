"""Selections from the whole log: what passes a filter, all of it, once, at a bounded cost; alone and over the hub."""

import re
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import anyio
import orjson
import psycopg
import pytest

from eventstore import Append, Feed, NewEvent, Part, encode, selection
from eventstore.selection import Selection, select
from eventstore.statements import statements
from projections.events import EventRedacted
from service import hub as hubs
from service import ring as rings
from service.api import streams
from service.api.streams import NDJSON_FRAME, SSE_FRAME, SSE_FRAME_WITHOUT_NAMES, Form, Stream
from service.commands import run_completed
from service.hub import Frame, Hub
from service.keys import ANYBODY
from service.ring import Ring, Source
from tests.conftest import Store, running_hub
from tests.histories import line, run_created, run_started, tell
from tests.test_stream_app import Connection

pytestmark = pytest.mark.anyio

PATIENCE_S = 60
STARTED = Selection(("run.started",), control=True)
ENGINE = Selection(("engine.*",))
SELECTIONS = [
    Selection(),
    STARTED,
    ENGINE,
    Selection(("engine.a_b", "run.log")),
    Selection(("run.completed", "run.created", "run.started"), control=True, stream="run_2"),
    Selection(stream="run_1"),
    Selection(workspaces=("desert",)),
    Selection(workspaces=("antarctica", "nowhere")),
    Selection(("run.log",), workspaces=("antarctica",), stream="run_0"),
    Selection(stream="run_none"),
    Selection(("build.created",), control=True),
]


def telemetry(name: str) -> NewEvent:
    return NewEvent(name, encode({"message": name}), bulk=True)


async def flood(store: Store, stream: str, lines: int) -> None:
    """So many lines of output in one append."""
    await store.appender.append(Append((Part(stream, [line(stream, "x")] * lines, workspace="antarctica"),)))


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    async with running_hub(store) as hub:
        yield hub


async def looked_past(ring: Ring[Any], head: int) -> None:
    """Until the hub has examined the log up to an id."""
    while ring.upto < head:  # noqa: ASYNC110 - where nothing passes it tells nobody, which is the point
        await anyio.sleep(0.001)  # as the line above says


async def mixed(store: Store, chance: Random) -> None:
    """One more append, of anything, to one of three runs."""
    stream = f"run_{chance.randrange(3)}"
    workspace = "desert" if stream == "run_1" else "antarctica"
    event = chance.choice([run_started(), line(stream, "x"), telemetry("engine.a_b"), telemetry("engine.axb")])
    events = [event] * chance.choice([1, 1, 1, 8])
    await store.appender.append(Append((Part(stream, events, workspace=workspace),)))


def passing(wanted: Selection, rows: list[dict[str, Any]]) -> list[int]:
    """The ids of what passes, said once more in Python."""

    def passes(row: dict[str, Any]) -> bool:
        families = [name[:-1] for name in wanted.types or () if name.endswith(".*")]
        return (
            (wanted.types is None or row["type"] in wanted.types or row["type"].startswith(tuple(families)))
            and (wanted.workspaces is None or row["workspace"] in wanted.workspaces)
            and wanted.stream in {None, row["stream"]}
        )

    return [row["id"] for row in rows if passes(row)]


def log_of(store: Store) -> list[dict[str, Any]]:
    with psycopg.connect(store.database.url, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute("SELECT id, stream, workspace, type FROM events ORDER BY id").fetchall()


# What one read does


@pytest.mark.parametrize(("limit", "examined"), [(1000, 10_000), (3, 10_000), (1000, 7), (2, 5)])
async def test_pages_are_what_passes(
    every_store: Store, monkeypatch: pytest.MonkeyPatch, limit: int, examined: int
) -> None:
    """Whatever the filter, and however little one read may return or examine: all of it, once, up to the head."""
    monkeypatch.setattr(selection, "EXAMINED_ROWS", examined)
    chance = Random(7)
    for _ in range(40):
        await mixed(every_store, chance)
    rows = log_of(every_store)
    cursors = dict.fromkeys(SELECTIONS, 0)
    found: dict[Selection, list[int]] = {wanted: [] for wanted in SELECTIONS}
    while any(after < rows[-1]["id"] for after in cursors.values()):
        news = await select(every_store.database, list(cursors.items()), limit=limit)
        assert news.head == rows[-1]["id"]
        for wanted, (page, upto) in zip(SELECTIONS, news.pages, strict=True):
            assert cursors[wanted] < upto or upto == news.head, "it did not move on"
            assert len(page) <= limit
            assert page.more == (upto < news.head)
            found[wanted] += [line.id for line in page]
            cursors[wanted] = upto
    assert found == {wanted: passing(wanted, rows) for wanted in SELECTIONS}
    assert sum(1 for ids in found.values() if ids) >= 7


async def test_a_page_is_bounded_in_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line may lie beyond; the next one begins there."""
    monkeypatch.setattr(selection, "PAGE_BYTES", 1_000)
    await store.appender.append(Append((Part("run_1", [line("run_1", "y" * 600)] * 5, workspace="w"),)))
    ((page, upto),) = (await select(store.database, [(Selection(), 0)])).pages
    assert [line.id for line in page] == [1, 2]
    assert (upto, page.more) == (2, True)


def scans(plan: dict[str, Any]) -> list[tuple[str, float]]:
    """The index and the rows that were looked at, for every scan of `events` in a plan that was executed."""
    below = [found for child in plan.get("Plans", []) for found in scans(child)]
    if plan.get("Relation Name") != "events" or plan["Actual Loops"] == 0:
        return below
    rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    return [*below, (plan.get("Index Name", "none"), rows * plan["Actual Loops"])]


@pytest.mark.parametrize("plans", ["force_generic_plan", "force_custom_plan"])
def test_a_filter_of_control_types_jumps_over_floods(every_url: str, plans: str) -> None:
    """In 200,000 events it looks at the twenty control events, by their index; another at as many rows as it may."""
    order: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in order:
            order.append(found[1])
        return f"${order.index(found[1]) + 1}"

    text = re.sub(r"%\((\w+)\)s", number, statements()["read_selections"])
    values = {
        "controls": "'{t}'",
        "types": "'{run.started}'",
        "workspaces": "'{NULL}'",
        "streams": "'{NULL}'",
        "afters": "'{0}'",
        "examined": "10000",
        "limit": "1000",
        "most_bytes": "1048576",
    }
    with psycopg.connect(every_url, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO events
               SELECT n, 'run_1', n, 'ws', CASE WHEN n % 10000 = 0 THEN 'run.started' ELSE 'run.log' END,
                      n % 10000 <> 0, clock_timestamp(), '{}' FROM generate_series(1, 200000) AS n"""
        )
        connection.execute("ANALYZE events")
        connection.execute(f"SET plan_cache_mode = {plans}".encode())
        connection.execute(f"PREPARE read AS {text}".encode())

        def looked_at(**changed: str) -> list[tuple[str, float]]:
            given = ", ".join((values | changed)[name] for name in order)
            found = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE read ({given})".encode()).fetchone()
            assert found is not None
            return scans(found[0][0]["Plan"])

        head, *control = looked_at()
        assert head == ("events_pkey", 1)
        assert control == [("control_events", 20), ("control_events", 20)]
        assert [rows for _, rows in looked_at(controls="'{f}'", types="'{engine.%}'")] == [1, 10_000]
        assert [rows for _, rows in looked_at(controls="'{f}'", types="'{NULL}'", limit="50")][1] <= 51


# Over the hub


async def test_viewers_see_what_passes_whatever_they_do(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quick ones and slow ones, with rings and pages that overflow: each has every line, once, in order; what is given
    as a cursor leaves nothing behind, whoever comes back with it."""
    monkeypatch.setattr(rings, "RING_BYTES", 1_000)
    monkeypatch.setattr(rings, "RING_BYTES_VIEWER", 0)
    monkeypatch.setattr(hubs, "PAGE", 4)
    monkeypatch.setattr(selection, "EXAMINED_ROWS", 9)
    chance, stop = Random(11), anyio.Event()
    seen: dict[tuple[Selection, int], list[int]] = {}
    bookmarks = comebacks = behind = 0

    async def watch(wanted: Selection, number: int) -> None:
        nonlocal bookmarks, comebacks, behind
        mine, ids, after, end = Random(number), seen.setdefault((wanted, number), []), 0, 0
        while not end or after < end:
            comebacks += 1
            with hub.view(wanted, after) as viewer:
                for _ in range(mine.randrange(1, 12)):
                    if mine.random() < 0.3:
                        ids += [line.id for line in await viewer.page(0.002, mine.randrange(1, 9))]
                    else:
                        for piece in (await viewer.chunk(0.002, NDJSON_FRAME)).splitlines():
                            found = orjson.loads(piece)
                            if found["object"] == "ade.bookmark":
                                bookmarks += 1
                                assert found["id"] == viewer.after
                            else:
                                ids.append(found["id"])
                    behind += viewer.behind
                    if number % 2:
                        await anyio.sleep(mine.random() * 0.02)  # what makes it slow
                after = viewer.after
            if stop.is_set():
                end = await store.log.head()

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for wanted in SELECTIONS:
                for number in range(3):
                    tasks.start_soon(watch, wanted, number)
            for _ in range(150):
                await mixed(store, chance)
            stop.set()
    rows = log_of(store)
    assert seen == {(wanted, number): passing(wanted, rows) for wanted, number in seen}
    assert len(seen) == 3 * len(SELECTIONS)
    assert min(bookmarks, comebacks, behind) > 100
    assert hub._selections.rings == {}, "nobody watches any more"


async def test_equal_filters_are_watched_once_and_a_flood_wakes_nobody(store: Store, hub: Hub) -> None:
    """Their viewers sleep through what does not pass; when something does, the ring has come past the flood."""
    await tell(store, "run_1", run_created())
    with hub.view(STARTED, 0) as first, hub.view(Selection(("run.started",), control=True), 1) as second:
        (ring,) = hub._selections.rings.values()
        assert len(ring.viewers) == 2
        with anyio.fail_after(PATIENCE_S):
            assert [len(await viewer.page(0, 10)) for viewer in (first, second)] == [0, 0]
            turns = ring.turns
            await flood(store, "run_1", 3_000)
            await looked_past(ring, 3_001)
            assert ring.turns == turns
            await tell(store, "run_1", run_started())
            for viewer in (first, second):
                assert [line.id for line in await viewer.page(PATIENCE_S, 10)] == [3_002]


@pytest.mark.parametrize("source", [Selection(), ENGINE, Feed("run_1", None, 1, None)])
async def test_a_ring_that_is_new_begins_at_the_head(store: Store, hub: Hub, source: Source) -> None:
    """However long nobody has watched, and whatever was written meanwhile: it is not read for the ring."""
    await tell(store, "run_1", run_created())
    for _ in range(6):
        await flood(store, "run_1", 2_000)
    await tell(store, "run_1", telemetry("engine.step"))
    with hub.view(source, 12_001) as viewer, anyio.fail_after(PATIENCE_S):
        assert [line.id for line in await viewer.page(0, 10)] == [12_002]
        await tell(store, "run_1", telemetry("engine.step"))
        assert [line.id for line in await viewer.page(PATIENCE_S, 10)] == [12_003]
        assert [ring.floor >= 12_002 for watch in (hub._feeds, hub._selections) for ring in watch.rings.values()] == [
            True
        ]


async def test_a_redaction_empties_the_rings_of_selections(store: Store, hub: Hub) -> None:
    """Who comes later reads the table, where the text is gone."""
    await tell(store, "run_1", run_created())
    with hub.view(Selection(("run.log",)), 1) as viewer, anyio.fail_after(PATIENCE_S):
        assert len(await viewer.page(0, 10)) == 0
        await tell(store, "run_1", line("run_1", "secret"))
        assert len(await viewer.page(PATIENCE_S, 10)) == 1
        (ring,) = hub._selections.rings.values()
        assert ring.floor < 2
        gone = EventRedacted(stream="run_1", event_ids=[2], requested_by="test", reason="a secret").event()
        await tell(store, "system_log", gone)
        await looked_past(ring, 3)
        assert ring.since(0) == []
        assert ring.floor >= 2


# As a response


@pytest.mark.parametrize(
    ("frame", "bookmark", "alive"),
    [
        (NDJSON_FRAME, b'{"object":"ade.bookmark","id":%d}\n', b"\n\n"),
        (SSE_FRAME, b'event: bookmark\ndata: {"head":%d}\nid: %d\n\n', b": alive\n\n"),
        (SSE_FRAME_WITHOUT_NAMES, b'event: bookmark\ndata: {"head":%d}\nid: %d\n\n', b": alive\n\n"),
    ],
)
async def test_a_filtered_stream_moves_on_by_bookmarks(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch, frame: Frame, bookmark: bytes, alive: bytes
) -> None:
    """At once where the first rows do not pass; later in the place of a keep-alive, when the log has grown; a terminal
    event is one like others, and nothing ends but by a drain."""
    monkeypatch.setattr(streams, "LOOK_S", 0.02)
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.05)
    await tell(store, "run_1", run_created())
    await flood(store, "run_1", 500)

    def marked(head: int) -> bytes:
        return bookmark.replace(b"%d", b"%d" % head)

    connection = Connection()
    ended = Selection(("run.completed",), control=True, stream="run_1")
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            app = Stream(hub, ended, 0, Form.SSE, frame, "log_1", ANYBODY)
            tasks.start_soon(app.serve, connection.receive, connection.send)
            await connection.until(marked(501))
            await connection.until(alive, 2)
            await flood(store, "run_2", 700)
            await connection.until(marked(1_201))
            await tell(store, "run_1", run_completed("succeeded", "completed").event())
            await connection.until(b"run.completed")
            await connection.until(alive, connection.body.count(alive) + 2)
            assert not connection.ended
            hub.drain()
    assert connection.ended
    assert connection.body.count(marked(501)) == 1


async def test_a_filtered_stream_that_does_not_follow_ends_at_the_head(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes through all that does not pass, and its last line says how far it came."""
    monkeypatch.setattr(selection, "EXAMINED_ROWS", 100)
    await tell(store, "run_1", run_created())
    await flood(store, "run_1", 450)
    await tell(store, "run_1", telemetry("engine.step"))
    await flood(store, "run_1", 350)
    connection = Connection()
    with anyio.fail_after(PATIENCE_S):
        app = Stream(hub, ENGINE, 0, Form.NDJSON, NDJSON_FRAME, "log_1", ANYBODY, follow=False)
        await app.serve(connection.receive, connection.send)
    found = [orjson.loads(piece) for piece in connection.body.splitlines() if piece]
    assert [one["id"] for one in found if one["object"] == "ade.run.event"] == [452]
    assert found[-1] == {"object": "ade.bookmark", "id": 802}
    assert [one["id"] for one in found] == sorted({one["id"] for one in found})
