"""Which feed a run or a build has."""

from typing import NamedTuple

from eventstore import Database, Feed


class FeedFound(NamedTuple):
    """A feed, the workspace that it is of, and the newest id that it may hold."""

    feed: Feed
    workspace: str
    last_id: int


async def feed_of(database: Database, stream: str) -> FeedFound | None:
    """The feed of a run or a build; None where there is no such thing."""
    kind = stream.partition("_")[0]
    row = await database.row(f"feed_of_{kind}", stream=stream) if kind in {"run", "build"} else None
    if row is None:
        return None
    feed = Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"])
    return FeedFound(feed, row["workspace"], row["last_id"])
