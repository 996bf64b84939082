"""What watching costs: so much for each viewer and each feed, and no more for those who do not read."""

import gc
import hashlib
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import anyio
import pytest

from eventstore import Feed
from eventstore.log import PAGE_BYTES
from service.api.streams import NDJSON_FRAME
from service.hub import Hub, Viewer
from service.ring import Ring
from tests.checker import History
from tests.conftest import Store, open_store, running_hub
from tests.histories import line, run_created, tell
from tests.naive.viewers import Channel

pytestmark = pytest.mark.anyio

RUN = "run_1"
FEED = Feed(RUN, None, 1, None)
PATIENCE_S = 60
WARM, VIEWERS = 100, 1_000
VIEWER_BYTES = 8_000
"""Of a viewer that waits, with the task in which it does."""
FEED_BYTES = 15_000
"""Of a feed that is watched, with its one viewer."""
MESSAGE = "x" * 400
FLOOD = 100
"""Appends of a hundred lines: 6 MB."""
FLOOD_BYTES = 2 * 2**20
"""What a flood may take at any time: a ring of ``RING_BYTES``, and the pages that are in somebody's hands."""


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def size() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
async def store(fresh_url: str) -> AsyncIterator[Store]:
    """In a database of its own: in one that others have emptied, a thousand reads walk over what they left."""
    async for opened in open_store(fresh_url):
        yield opened


@pytest.fixture
async def hub(store: Store) -> AsyncIterator[Hub]:
    """A hub over a log in which a run was created."""
    await tell(store, RUN, run_created())
    async with running_hub(store) as hub:
        yield hub


async def cost(hub: Hub, feeds: list[Feed]) -> float:
    """The bytes that a viewer of each of these takes while it waits for what is next."""
    waiting = 0

    async def watch(feed: Feed) -> None:
        nonlocal waiting
        with hub.view(feed, 1) as viewer:
            await viewer.chunk(0, NDJSON_FRAME)
            waiting += 1
            await viewer.chunk(3600, NDJSON_FRAME)

    async def settle(feeds: list[Feed]) -> int:
        nonlocal waiting
        async with anyio.create_task_group() as tasks:
            waiting = 0
            for feed in feeds:
                tasks.start_soon(watch, feed)
            with anyio.fail_after(PATIENCE_S):
                while waiting < len(feeds):  # noqa: ASYNC110 - they tell by what they have done
                    await anyio.sleep(0.01)
            await anyio.wait_all_tasks_blocked()
            now = size()
            tasks.cancel_scope.cancel()
        return now

    few, many = await settle(feeds[:WARM]), await settle(feeds)
    with anyio.fail_after(PATIENCE_S):
        while left():  # noqa: ASYNC110 - a look may still have rings in its hands
            await anyio.sleep(0.01)
    return (many - few) / (len(feeds) - WARM)


def left() -> int:
    """Viewers and rings that are still there."""
    gc.collect()
    return sum(isinstance(one, Viewer | Ring) for one in gc.get_objects())


async def test_a_viewer_that_waits_is_a_cursor(hub: Hub, traced: None) -> None:
    """A thousand of one feed take a few kilobytes each, and leave nothing behind."""
    assert await cost(hub, [FEED] * VIEWERS) < VIEWER_BYTES


async def test_a_feed_that_is_watched_and_quiet_takes_little(hub: Hub, traced: None) -> None:
    """A thousand feeds of one viewer each."""
    assert await cost(hub, [Feed(f"run_{n}", f"build_{n}", 1, None) for n in range(VIEWERS)]) < FEED_BYTES


async def flood(store: Store) -> AsyncIterator[int]:
    """How much was written so far, in lines."""
    for n in range(FLOOD):
        await tell(store, RUN, *[line(RUN, f"{n}.{m} {MESSAGE}") for m in range(100)])
        yield 100 * (n + 1)


class Watcher:
    """A viewer, and the digest of all that it was given."""

    def __init__(self, viewer: Viewer) -> None:
        self.lines = 0
        self.digest = hashlib.sha256()
        self._viewer = viewer

    async def read(self, upto: int) -> None:
        """Until it has so many lines; it waits for those that are not there yet."""
        with anyio.fail_after(PATIENCE_S):
            while self.lines < upto:
                chunk = await self._viewer.chunk(PATIENCE_S, NDJSON_FRAME)
                self.lines += chunk.count(b"\n")
                self.digest.update(chunk)


async def test_who_does_not_read_takes_no_memory_and_nothing_from_those_who_do(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood goes through the hub: quick viewers have each line of it at once, slow ones nothing yet, and then all."""
    monkeypatch.setattr("service.ring.RING_BYTES", 2**16)
    with ExitStack() as closing:
        slow, quick = ([Watcher(closing.enter_context(hub.view(FEED, 0))) for _ in range(10)] for _ in range(2))
        for watcher in (*slow, *quick):
            await watcher.read(1)
        tracemalloc.start()
        before = size()
        async for lines in flood(store):
            for watcher in quick:
                await watcher.read(1 + lines)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert {watcher.lines for watcher in slow} == {1}
        assert peak - before < FLOOD_BYTES
        for watcher in slow:
            await watcher.read(1 + lines)
    whole = b"".join(event.line + b"\n" for event in (await History.read(store.database)).events)
    assert {watcher.digest.digest() for watcher in (*slow, *quick)} == {hashlib.sha256(whole).digest()}


async def test_what_viewers_at_many_places_are_given_is_not_kept(
    store: Store, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stopped at another line of a ring, and reads on when the feed is quiet: that takes no more than the ring."""
    monkeypatch.setattr("service.ring.RING_BYTES", 2**17)
    with ExitStack() as closing:
        viewers = [Watcher(closing.enter_context(hub.view(FEED, 0))) for _ in range(100)]
        for watcher in viewers:
            await watcher.read(1)
        for place, watcher in enumerate(viewers, 1):
            await tell(store, RUN, *[line(RUN, "y" * 400)] * 2)
            await watcher.read(1 + 2 * place)
        tracemalloc.start()
        before = size()
        for watcher in viewers:
            await watcher.read(1 + 2 * len(viewers))
        held = size() - before
        tracemalloc.stop()
    assert held < 4 * 2**17


async def test_a_page_of_long_lines_is_short(store: Store, hub: Hub) -> None:
    """What a viewer is given at once is bounded in bytes, not in lines alone; in the end it has them all."""
    for _ in range(8):
        await tell(store, RUN, *[line(RUN, "z" * 2**16)] * 8)
    chunks: list[bytes] = []
    with hub.view(FEED, 0) as viewer, anyio.fail_after(PATIENCE_S):
        while sum(chunk.count(b"\n") for chunk in chunks) < 1 + 64:
            chunks.append(await viewer.chunk(PATIENCE_S, NDJSON_FRAME))
    assert max(map(len, chunks)) <= PAGE_BYTES + 2 * 2**16
    assert b"".join(chunks) == b"".join(event.line + b"\n" for event in (await History.read(store.database)).events)


async def test_a_queue_for_each_viewer_takes_what_nobody_reads(store: Store, hub: Hub) -> None:
    """The naive variant: twenty who do not read hold the whole flood, however much it is."""
    channel = Channel()
    queues = [channel.listen() for _ in range(20)]
    tracemalloc.start()
    before, seen = size(), 1
    async for _ in flood(store):
        page = await store.log.read_feed(FEED, seen)
        channel.publish(page)
        seen += len(page)
    held = size() - before
    tracemalloc.stop()
    assert {len(queue) for queue in queues} == {FLOOD * 100}
    assert held > 2 * FLOOD_BYTES
