"""Leases: who may write a stream, and how the log fences those who may not any more."""

import anyio
import pytest

from eventstore import Append, Appended, Lease, Leases, NewEvent, Part, encode
from eventstore.errors import Conflict, Fenced
from tests.conftest import Store

pytestmark = pytest.mark.anyio

OPENED = NewEvent("job.opened", b"{}")
ENDED = NewEvent("job.ended", b"{}", ends=True)
LINE = NewEvent("job.line", encode({"message": "…"}), bulk=True)


def under(token: int, position: int | None, *events: NewEvent) -> Append:
    """An append to job_1 under its lease."""
    return Append((Part("job_1", events, token=token, position=position),))


async def opened(store: Store) -> Leases:
    """The leases of a holder called me, and the stream job_1, whose first event is 1."""
    await store.appender.append(Append((Part("job_1", (OPENED,), "ws"),)))
    return Leases(store.database, "me", 60)


async def taken(leases: Leases, stream: str = "job_1") -> Lease:
    """A lease that is free to take."""
    lease = await leases.take(stream)
    assert lease is not None
    return lease


async def test_whoever_lost_the_lease_is_fenced(every_store: Store) -> None:
    """After another took it, nothing lands under the old token; under the new one it does."""
    me = await opened(every_store)
    old = await taken(Leases(every_store.database, "old", 0))
    new = await taken(me)
    assert new.token > old.token
    for token in (old.token, new.token + 1):
        with pytest.raises(Fenced) as refused:
            await every_store.appender.append(under(token, None, LINE))
        assert refused.value.stream == "job_1"
    assert await every_store.appender.append(under(new.token, None, LINE)) == Appended(2, 2)


async def test_an_expired_lease_that_nobody_took_still_writes(store: Store) -> None:
    """The fence is the token, not the time: nobody else can have written."""
    await opened(store)
    lease = await taken(Leases(store.database, "late", 0))
    assert await store.appender.append(under(lease.token, 0, LINE)) == Appended(2, 2)


async def test_a_token_is_good_for_its_own_stream_only(store: Store) -> None:
    """A stream whose lease was never taken fences whoever names one."""
    lease = await taken(await opened(store), "job_2")
    with pytest.raises(Fenced):
        await store.appender.append(under(lease.token, None, LINE))


async def test_the_same_position_again_is_a_repetition(store: Store) -> None:
    """What landed under this token is not written twice: in the same batch, later, and after the end."""
    token = (await taken(await opened(store))).token
    again = under(token, 0, LINE, LINE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.appender.append, again)
        tasks.start_soon(store.appender.append, again)
    assert await store.log.head() == 3
    assert await store.appender.append(under(token, 2, LINE)) == Appended(4, 4)
    assert (await store.appender.append(again)).duplicate
    await store.appender.append(under(token, None, ENDED))
    assert (await store.appender.append(again)).duplicate
    assert await store.log.head() == 5


async def test_a_gap_in_the_positions_is_a_conflict(store: Store) -> None:
    """Lines before which others are missing would be out of order for ever."""
    token = (await taken(await opened(store))).token
    with pytest.raises(Conflict):
        await store.appender.append(under(token, 1, LINE))
    assert await store.appender.append(under(token, 0, LINE)) == Appended(2, 2)


async def test_every_token_counts_from_the_beginning(store: Store) -> None:
    """A new holder knows nothing of what the one before it had written."""
    me = await opened(store)
    old = await taken(Leases(store.database, "old", 0))
    await store.appender.append(under(old.token, 0, LINE, LINE))
    new = await taken(me)
    assert await store.appender.append(under(new.token, 0, LINE)) == Appended(4, 4)


async def test_a_live_lease_cannot_be_taken(store: Store) -> None:
    """Not by another, and not by its own holder, whose other half may be at work."""
    me = await opened(store)
    lease = await taken(me)
    assert (lease.stream, lease.holder) == ("job_1", "me")
    assert await Leases(store.database, "other", 60).take("job_1") is None
    assert await me.take("job_1") is None


async def test_a_dropped_lease_is_free_at_once_under_a_greater_token(store: Store) -> None:
    """Whoever follows does not wait for the time to run out, and the one before it is fenced."""
    me = await opened(store)
    dropped = await taken(me)
    await me.drop(dropped)
    following = await taken(Leases(store.database, "other", 60))
    assert following.token > dropped.token
    with pytest.raises(Fenced):
        await store.appender.append(under(dropped.token, 0, LINE))


async def test_a_lost_lease_cannot_be_dropped(store: Store) -> None:
    """A late drop does not free what another holds by now."""
    me = await opened(store)
    lost = await taken(Leases(store.database, "late", 0))
    await taken(me)
    await Leases(store.database, "late", 0).drop(lost)
    assert await Leases(store.database, "third", 60).take("job_1") is None


async def test_a_renewal_keeps_what_is_held_and_names_what_was_lost(store: Store) -> None:
    """An expired lease that nobody took is renewed; one that another took is not."""
    me, late = await opened(store), Leases(store.database, "late", 0)
    held = {stream: await taken(late, stream) for stream in ("job_1", "job_2")}
    await taken(me, "job_2")
    assert await Leases(store.database, "late", 60).renew(held) == {"job_2"}
    assert await me.take("job_1") is None, "the renewed lease did not live on"


async def test_an_ended_stream_has_no_lease(store: Store) -> None:
    """Nobody may write there any more, so nothing is kept, and nobody can take it again."""
    me = await opened(store)
    lease = await taken(me)
    await store.appender.append(under(lease.token, None, ENDED))
    await me.drop(lease)
    assert await me.renew({"job_1": lease}) == {"job_1"}
    assert await me.take("job_1") is None
