"""The log: what an append may do, and what it is told when it may not."""

from dataclasses import asdict

import anyio
import psycopg
import pytest

from eventstore import NEW, Append, Appended, NewEvent, Part, encode
from eventstore.appender import _Waiting
from eventstore.errors import Conflict, Fenced, InvalidEvent, KeyReused
from eventstore.event import STREAM
from tests.conftest import Store

pytestmark = pytest.mark.anyio

OPENED = NewEvent("job.opened", b"{}")
MOVED = NewEvent("job.moved", b"{}")
ENDED = NewEvent("job.ended", b"{}", ends=True)
LINE = NewEvent("job.line", encode({"message": "…"}), bulk=True)


def to(stream: str, *events: NewEvent, expect: int | None = None, key: str | None = None, digest: str = "") -> Append:
    """An append to one stream."""
    return Append((Part(stream, events, "ws", expect),), key, digest)


async def in_one_batch(store: Store, *appends: Append) -> list[Appended | Exception]:
    """The outcomes of appends that are sent together."""
    outcomes: dict[int, Appended | Exception] = {}

    async def land(place: int) -> None:
        try:
            outcomes[place] = await store.appender.append(appends[place])
        except (Conflict, Fenced, KeyReused) as refused:
            outcomes[place] = refused

    async with anyio.create_task_group() as tasks:
        for place in range(len(appends)):
            tasks.start_soon(land, place)
    return [outcomes[place] for place in range(len(appends))]


# Ids


async def test_ids_and_seqs_are_dense_in_the_order_of_appends(every_store: Store) -> None:
    """Each append's answer names its place: ids count the log, seqs count the stream."""
    append = every_store.appender.append
    assert await append(to("job_1", OPENED, LINE)) == Appended(1, 2)
    assert await append(to("job_2", OPENED)) == Appended(3, 3)
    assert await append(to("job_1", LINE, LINE, MOVED)) == Appended(4, 6)
    rows = [(line.id, line.stream, line.type) for line in await every_store.log.read(0)]
    assert rows == [
        (1, "job_1", "job.opened"),
        (2, "job_1", "job.line"),
        (3, "job_2", "job.opened"),
        (4, "job_1", "job.line"),
        (5, "job_1", "job.line"),
        (6, "job_1", "job.moved"),
    ]
    assert [event.seq for event in await every_store.log.control_events("job_1")] == [1, 5]


async def test_a_refused_append_uses_no_id(store: Store) -> None:
    """Ids stay dense over conflicts, fences and reused keys, in the same batch too."""
    outcomes = await in_one_batch(
        store,
        to("job_1", OPENED, key="k"),
        to("job_1", OPENED, expect=NEW),
        to("job_1", MOVED, key="k", digest="other"),
        Append((Part("job_1", (MOVED,), token=7),)),
        to("job_1", MOVED),
    )
    assert [type(outcome) for outcome in outcomes] == [Appended, Conflict, KeyReused, Fenced, Appended]
    assert (outcomes[0], outcomes[-1]) == (Appended(1, 1), Appended(2, 2))
    assert [line.id for line in await store.log.read(0)] == [1, 2]


async def test_streams_of_one_append_land_together(store: Store) -> None:
    """The parts of an append follow each other in the log, in their order."""
    parts = (Part("job_1", (OPENED, LINE), "ws"), Part("job_2", (OPENED,), "ws"))
    assert await store.appender.append(Append(parts)) == Appended(1, 3)
    assert [line.stream for line in await store.log.read(0)] == ["job_1", "job_1", "job_2"]


async def test_one_refused_part_keeps_the_whole_append_out(store: Store) -> None:
    """A later part's conflict leaves nothing of the parts before it: no event, no stream, no key."""
    await store.appender.append(to("job_2", OPENED))
    parts = (Part("job_1", (OPENED,), "ws", NEW), Part("job_2", (OPENED,), "ws", NEW))
    with pytest.raises(Conflict) as refused:
        await store.appender.append(Append(parts, key="k"))
    assert (refused.value.stream, refused.value.last_control_id) == ("job_2", 1)
    assert await store.log.stream("job_1") is None
    assert await store.appender.append(to("job_3", OPENED, key="k")) == Appended(2, 2)


async def test_the_row_of_a_stream_says_where_it_begins_stands_and_ends(store: Store) -> None:
    """`streams` is kept by the append itself, over several appends of one batch."""
    assert await store.log.stream("job_1") is None
    await in_one_batch(store, to("job_0", OPENED), to("job_1", OPENED, LINE), to("job_1", LINE, MOVED, LINE))
    row = await store.log.stream("job_1")
    assert row is not None
    assert asdict(row) == {
        "stream": "job_1",
        "workspace": "ws",
        "first_id": 2,
        "last_id": 6,
        "last_seq": 5,
        "last_control_id": 5,
        "ended_id": None,
    }
    await store.appender.append(to("job_1", LINE, ENDED))
    row = await store.log.stream("job_1")
    assert row is not None
    assert (row.last_id, row.last_control_id, row.ended_id) == (8, 8, 8)


async def test_a_stream_stays_in_its_workspace(store: Store) -> None:
    """The first event decides; what a later append says about it is of no matter."""
    await store.appender.append(Append((Part("job_1", (OPENED,), "first"),)))
    await store.appender.append(Append((Part("job_1", (MOVED,), "second"),)))
    await store.appender.append(Append((Part("job_1", (MOVED,)),)))
    assert {event.workspace for event in await store.log.control_events("job_1")} == {"first"}


async def test_a_new_stream_needs_a_workspace(store: Store) -> None:
    """A stream that is not there cannot lend its workspace, so the append is told that the stream is missing."""
    with pytest.raises(Conflict):
        await store.appender.append(Append((Part("job_1", (OPENED,)),)))


# Expectations


async def test_new_is_met_once(every_store: Store) -> None:
    """Of several that expect a stream not to exist, the first one lands; the others learn what stands there."""
    outcomes = await in_one_batch(every_store, *[to("job_1", OPENED, expect=NEW)] * 3)
    assert [type(outcome) for outcome in outcomes] == [Appended, Conflict, Conflict]
    with pytest.raises(Conflict) as refused:
        await every_store.appender.append(to("job_1", OPENED, expect=NEW))
    assert (refused.value.stream, refused.value.last_control_id) == ("job_1", 1)


async def test_new_is_not_met_by_a_stream_of_lines(store: Store) -> None:
    """A stream without a control event exists nevertheless."""
    await store.appender.append(to("job_1", LINE))
    with pytest.raises(Conflict):
        await store.appender.append(to("job_1", OPENED, expect=NEW))


async def test_the_newest_control_event_is_expected(store: Store) -> None:
    """The exact id lands; an older one, a newer one, and a stream that is not there conflict."""
    await store.appender.append(to("job_1", OPENED, expect=NEW))
    assert await store.appender.append(to("job_1", MOVED, expect=1)) == Appended(2, 2)
    for stream, wrong in (("job_1", 1), ("job_1", 3), ("job_1", NEW), ("job_2", 2)):
        with pytest.raises(Conflict):
            await store.appender.append(to(stream, MOVED, expect=wrong))
    assert await store.appender.append(to("job_1", MOVED, expect=2)) == Appended(3, 3)


async def test_a_conflict_leaves_its_neighbours_alone(store: Store) -> None:
    """Before and after a refused append of the same batch everything lands, of the same stream too."""
    first = await store.appender.append(to("job_1", OPENED))
    outcomes = await in_one_batch(
        store,
        to("job_1", MOVED, expect=first.last_id),
        to("job_1", MOVED, expect=first.last_id),
        to("job_2", OPENED, expect=NEW),
        to("job_1", MOVED, expect=2),
    )
    assert [type(outcome) for outcome in outcomes] == [Appended, Conflict, Appended, Appended]
    with psycopg.connect(store.database.url) as connection:
        transactions = connection.execute("SELECT count(DISTINCT xmin::text) FROM events").fetchone()
    assert transactions == (2,), "the four were not one batch"


async def test_a_flood_of_lines_moves_no_expectation(store: Store) -> None:
    """A decision made before ten thousand lines came lands after them, at the first try."""
    await store.appender.append(to("job_1", OPENED))
    for _ in range(10):
        await store.appender.append(to("job_1", *[LINE] * 1000))
    assert await store.appender.append(to("job_1", MOVED, expect=1)) == Appended(10_002, 10_002)


# Claims


def claiming(config: str, expect: int, stream: str) -> Append:
    """A decision about a new stream that rests on the state of a config."""
    return Append((Part(stream, (OPENED,), "ws", NEW), Part(config, (), "ws", expect)))


async def test_of_two_claims_on_the_same_state_one_lands(store: Store) -> None:
    """A claim writes no event, but it moves the stream: in one batch, and one after the other."""
    await store.appender.append(to("config_1", OPENED))
    outcomes = await in_one_batch(store, claiming("config_1", 1, "job_1"), claiming("config_1", 1, "job_2"))
    assert [type(outcome) for outcome in outcomes] == [Appended, Conflict]
    with pytest.raises(Conflict) as refused:
        await store.appender.append(claiming("config_1", 1, "job_3"))
    assert refused.value.stream == "config_1"
    assert [line.stream for line in await store.log.read(0)] == ["config_1", "job_1"]


async def test_a_claim_moves_its_stream_to_the_last_id_of_the_append(store: Store) -> None:
    """Wherever the claim stands among the parts; the stream's own events and seqs stay as they were."""
    await store.appender.append(to("config_1", OPENED))
    parts = (Part("config_1", (), None, 1), Part("job_1", (OPENED, LINE), "ws"), Part("job_2", (OPENED,), "ws"))
    assert await store.appender.append(Append(parts)) == Appended(2, 4)
    row = await store.log.stream("config_1")
    assert row is not None
    assert (row.last_control_id, row.last_id, row.last_seq) == (4, 1, 1)
    assert isinstance(await store.appender.append(claiming("config_1", 4, "job_3")), Appended)


async def test_a_stream_that_is_not_there_cannot_be_claimed(store: Store) -> None:
    """There is nothing that the claim could move, so a second one would land as well."""
    outcomes = await in_one_batch(store, claiming("config_1", NEW, "job_1"), claiming("config_1", NEW, "job_2"))
    assert len([outcome for outcome in outcomes if isinstance(outcome, Appended)]) <= 1


# Keys


async def test_a_key_gives_the_first_answer_again(every_store: Store) -> None:
    """In the same batch, later, and although the expectation has long been overtaken by the append itself."""
    again = to("job_1", OPENED, LINE, expect=NEW, key="k", digest="d")
    outcomes = await in_one_batch(every_store, again, again)
    assert outcomes == [Appended(1, 2), Appended(1, 2, duplicate=True)]
    await every_store.appender.append(to("job_1", MOVED))
    assert await every_store.appender.append(again) == Appended(1, 2, duplicate=True)
    assert await every_store.log.head() == 3


async def test_a_key_stands_for_one_thing(store: Store) -> None:
    """Another digest under the same key is refused, and changes nothing."""
    await store.appender.append(to("job_1", OPENED, key="k", digest="d"))
    with pytest.raises(KeyReused) as refused:
        await store.appender.append(to("job_2", OPENED, key="k", digest="e"))
    assert refused.value.key == "k"
    assert await store.log.head() == 1


async def test_a_refused_append_keeps_its_key_free(store: Store) -> None:
    """Only what landed is remembered: the same key may try again."""
    with pytest.raises(Conflict):
        await store.appender.append(to("job_1", MOVED, expect=9, key="k"))
    assert await store.appender.append(to("job_1", OPENED, expect=NEW, key="k")) == Appended(1, 1)


# The end


async def test_nothing_follows_a_terminal_event(every_store: Store) -> None:
    """Not a line, not a control event, not a second end, not a claim; in the same batch and later."""
    await every_store.appender.append(to("job_1", OPENED))
    late = (to("job_1", LINE), to("job_1", MOVED, expect=2), to("job_1", ENDED), claiming("job_1", 2, "job_2"))
    outcomes = await in_one_batch(every_store, to("job_1", ENDED), *late)
    assert [type(outcome) for outcome in outcomes] == [Appended] + [Conflict] * 4
    for append in late:
        with pytest.raises(Conflict):
            await every_store.appender.append(append)
    assert await every_store.log.head() == 2


# What cannot be


@pytest.mark.parametrize(
    "append",
    [
        pytest.param(Append(()), id="no part"),
        pytest.param(Append((Part("config_1", (), "ws"),)), id="only a claim"),
        pytest.param(Append((Part("job_1", (LINE,), "ws"), Part("job_1", (LINE,), "ws"))), id="a stream twice"),
        pytest.param(to("Job_1", LINE), id="a stream of no kind"),
        pytest.param(to("job_", LINE), id="a stream without a name"),
        pytest.param(to('job_"', LINE), id="a quote in the stream"),
        pytest.param(to("job_1\n", LINE), id="a line break in the stream"),
        pytest.param(to("job_" + "x" * 65, LINE), id="a long stream"),
        pytest.param(to("job_1", NewEvent("job", b"{}")), id="a type without a dot"),
        pytest.param(to("job_1", NewEvent("job.x\n", b"{}")), id="a line break in the type"),
        pytest.param(to("job_1", NewEvent('job.x","y":"', b"{}", bulk=True)), id="a bulk type that forges a field"),
        pytest.param(to("job_1", NewEvent("job.x", b"[]")), id="a payload that is no object"),
        pytest.param(to("job_1", NewEvent("job.x", b"")), id="no payload"),
        pytest.param(to("job_1", ENDED, LINE), id="a line after the end"),
        pytest.param(Append((Part("job_1", (LINE,), "ws", position=0),)), id="a position under no token"),
    ],
)
def test_what_the_log_must_never_hold_is_invalid(append: Append) -> None:
    """The caller's mistakes are seen before anything is sent."""
    with pytest.raises(InvalidEvent):
        _Waiting(append, patience_s=0)


async def test_a_payload_of_two_lines_is_an_error_and_moves_nothing(store: Store) -> None:
    """Payloads travel as lines: one that is two would push its neighbours to places that are not theirs."""
    broken = NewEvent("job.line", b'{"a":\n1}', bulk=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.appender.append, to("job_1", LINE))
        with pytest.raises(psycopg.errors.RaiseException, match="2 payloads for 1 events"):
            await store.appender.append(to("job_2", broken))
    assert [line.stream for line in await store.log.read(0)] == ["job_1"]


async def test_an_invalid_append_is_refused_at_the_door(store: Store) -> None:
    """It reaches no other caller's batch."""
    with pytest.raises(InvalidEvent):
        await store.appender.append(to("job_1", ENDED, LINE))
    assert await store.log.head() == 0


@pytest.mark.parametrize("stream", ["run_01JD5T0000000000000000000X", "workspace_north-sea", "system_log"])
def test_the_streams_of_the_architecture_have_names_that_pass(stream: str) -> None:
    """The pattern lets in what the words of the house are made of."""
    assert STREAM.match(stream)
