"""From history to live: what is appended in between is given once; and who reads slowly loses nothing.

Each is seen to go wrong with viewers that are not cursors (``tests/naive/viewers.py``), by the same check.
"""

from collections.abc import AsyncIterator

import anyio
import pytest

from eventstore import Feed, Line, Page
from service.api.streams import NDJSON_FRAME
from service.hub import Hub, Viewer
from service.ring import Ring
from tests.checker import History, Reading, first, readings
from tests.conftest import Store, running_hub
from tests.histories import line, run_created, tell
from tests.naive.viewers import Channel, HistoryThenLive, LiveThenHistory

pytestmark = pytest.mark.anyio

RUN = "run_1"
FEED = Feed(RUN, None, 1, None)
PATIENCE_S = 60


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    """A hub over a log in which a run was created."""
    await tell(store, RUN, run_created(), line(RUN, "before"))
    async with running_hub(store) as hub:
        yield hub


async def say(store: Store, channel: Channel, *messages: str) -> None:
    """Lines of the run, in the log and then on the channel, as a service publishes what it has committed."""
    landed = await tell(store, RUN, *[line(RUN, message) for message in messages])
    channel.publish(await store.log.read_feed(FEED, landed.first_id - 1))


async def wrong(store: Store, lines: list[Line]) -> list[str]:
    """What the checker says of somebody who was given these lines."""
    given = [told.line for told in lines]
    return first(readings(await History.read(store.database), [Reading("a viewer", RUN, 0, given, complete=True)]))


@pytest.mark.parametrize("variant", [HistoryThenLive, LiveThenHistory])
async def test_a_switch_from_history_to_live_loses_or_doubles(
    store: Store, hub: Hub, variant: type[HistoryThenLive]
) -> None:
    """The naive variants: one line comes between the two steps, and one after them."""
    channel = Channel()
    viewer = variant(store.log, FEED, channel)
    await viewer.begin()
    await say(store, channel, "between")
    await viewer.go_on()
    await say(store, channel, "after")
    assert len(await wrong(store, viewer.read())) == 1


@pytest.mark.parametrize("places", range(4))
async def test_a_cursor_needs_no_switch(store: Store, hub: Hub, places: int) -> None:
    """Whether a line comes before the viewer, before its first read, before its second, or as it waits: it is given."""
    channel = Channel()
    lines: list[Line] = []

    async def read(viewer: Viewer, count: int) -> None:
        with anyio.fail_after(PATIENCE_S):
            while len(lines) < count:
                lines.extend(await viewer.page(PATIENCE_S, 1000))

    if places == 0:
        await say(store, channel, "between")
    with hub.view(FEED, 0) as viewer:
        if places == 1:
            await say(store, channel, "between")
        await read(viewer, 2)
        if places == 2:
            await say(store, channel, "between")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, viewer, 4)
            await anyio.wait_all_tasks_blocked()
            if places == 3:
                await say(store, channel, "between")
            await say(store, channel, "after")
    assert await wrong(store, lines) == []


MANY = 50
QUEUE = 10


async def test_a_queue_for_each_viewer_loses_what_does_not_fit(store: Store, hub: Hub) -> None:
    """The naive variant: a viewer that does not read for a while has a hole in its history."""
    channel = Channel()
    slow = channel.listen(QUEUE)
    before = await store.log.read_feed(FEED, 0)
    for n in range(MANY):
        await say(store, channel, f"{n}")
    assert len(await wrong(store, [*before, *slow])) == 1


async def test_a_slow_viewer_loses_nothing(store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cursor falls behind a ring as short as that queue, and it reads the table until it is back."""
    monkeypatch.setattr("service.ring.RING_BYTES", QUEUE * 100)
    monkeypatch.setattr("service.ring.RING_BYTES_VIEWER", 0)
    channel = Channel()
    with hub.view(FEED, 0) as slow, hub.view(FEED, 0) as quick:
        lines, seen = list(await slow.page(PATIENCE_S, 1000)), list(await quick.page(PATIENCE_S, 1000))
        with anyio.fail_after(PATIENCE_S):
            for n in range(MANY):
                await say(store, channel, f"{n}")
                seen += await quick.page(PATIENCE_S, 1000)
            while len(lines) < MANY + 2:
                lines += await slow.page(PATIENCE_S, 7)
    assert await wrong(store, seen) == []
    assert await wrong(store, lines) == []


def test_who_stands_within_a_page_is_given_the_rest_of_it() -> None:
    """What the ring keeps ready is for those who stand at its beginning."""
    lines = [b'{"id":%d,"object":"ade.run.event","type":"run.log","run_id":"run_1","seq":1}\n' % n for n in range(1, 7)]
    ring = Ring(FEED, 0)
    ring.extend(Page(3, 3, ndjson=b"".join(lines[:3])), 3)
    ring.extend(Page(3, 6, ndjson=b"".join(lines[3:])), 6)
    for after in (0, 1, 3, 2, 0, 5, 6):
        assert ring.chunk(after, NDJSON_FRAME.page) == (b"".join(lines[after:]), 6 if after < 6 else None)
