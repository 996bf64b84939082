"""``events.ndjson``: a projection whose table is a file, one for each run and each build.

A file holds the lines of its feed, from the first on and in order, and nothing else. So every byte has one place where
it belongs, and is written there, never at what happens to be the end: a torn last line is written over, and a second
writer (a projector that was stopped and lost its lease meanwhile) writes the same bytes to the same places. Whoever
reads takes the file up to its last whole line, and the log from there.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import orjson

from eventstore import Feed, Log, Page

_BLOCK = 64 * 1024


@dataclass(frozen=True, slots=True)
class End:
    """Where the last whole line of a file ends (``size``, bytes), and the id of its event; 0 and 0 for none."""

    size: int
    last_id: int


def end_of(path: Path) -> End:
    """The end of a file that somebody may be writing; nothing where there is no file of ours."""
    try:
        opened = path.open("rb")
    except FileNotFoundError:
        return End(0, 0)
    with opened:
        stop = _line_end_before(opened.fileno(), os.fstat(opened.fileno()).st_size)
        if stop == 0:
            return End(0, 0)
        start = _line_end_before(opened.fileno(), stop - 1)
        opened.seek(start)
        try:
            return End(stop, int(orjson.loads(opened.read(stop - start))["id"]))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return End(0, 0)  # somebody else wrote here: it is made again from the log


def _line_end_before(descriptor: int, size: int) -> int:
    """The offset after the last line feed within the first ``size`` bytes."""
    while size > 0:
        start = max(0, size - _BLOCK)
        found = os.pread(descriptor, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


class FeedFile:
    """The file of one feed, open for writing."""

    def __init__(self, path: Path, feed: Feed) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.feed = feed
        end = end_of(path)
        self.last_id = max(end.last_id, feed.first_id - 1)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if end.size == 0:
            os.ftruncate(self._file, 0)  # what is there, if anything, is not ours
        self._size = end.size

    @property
    def untouched(self) -> bool:
        """Whether it is as it was left: another writer, or a person, may have changed or removed it."""
        now = os.fstat(self._file)
        return now.st_size == self._size and now.st_nlink > 0

    async def catch_up(self, log: Log, upto: int) -> None:
        """Writes what the feed has after the file's end, up to an id."""
        while page := await log.read_feed(self.feed, self.last_id, upto=upto):
            self.write(page)
        self.last_id = max(self.last_id, upto)

    def write(self, page: Page) -> None:
        """Adds the lines that the file does not have yet."""
        if page.last_id <= self.last_id:
            return
        data, written = page.since(self.last_id).ndjson, 0
        while written < len(data):  # a disk that fills takes a part, and then says what is wrong
            written += os.pwrite(self._file, memoryview(data)[written:], self._size + written)
        self._size += written
        self.last_id = page.last_id

    def close(self) -> None:
        os.close(self._file)
