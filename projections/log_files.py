"""The log files of all feeds, kept current by one reader of the log that hands each line to the files it belongs to."""

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import orjson

from eventstore import Database, Line, Log, Page
from projections.events import TERMINAL
from projections.feeds import feed_of
from projections.ndjson_file import FeedFile

logger = logging.getLogger("ade.projector")

OPEN_FILES = 200
PAGE_LINES = 4_000

_MOVES = {"run.created", "run.completed", "build.completed"}
"""After these a run has a build beside it, or has none any more."""

PathOf = Callable[[str, str], Path]


class LogFiles:
    """Writes every line to the file of its stream and, for a build, to the files of the runs that wait for it.

    The checkpoint moves after the files are written, so lines may come twice after a crash; a file skips those it has.
    """

    def __init__(self, database: Database, log: Log, path_of: PathOf) -> None:
        self._database = database
        self._log = log
        self._path_of = path_of
        self._after: int | None = None
        self._files: dict[str, FeedFile] = {}
        self._runs_beside: dict[str, set[str]] = defaultdict(set)
        self._build_beside: dict[str, str] = {}
        self._unknown: set[str] = set()

    async def step(self) -> bool:
        """One page of the log; whether there was anything."""
        if self._after is None:
            await self._begin()
        page = await self._log.read(self._after or 0, limit=PAGE_LINES)
        if not page:
            return False
        for stream, (part, ends) in self._sort(page).items():
            await self._write(stream, part, ends=ends)
        self._after = page.last_id
        await self._database.rows("checkpoint", projection="log_files", id=self._after)
        return True

    def close(self) -> None:
        """Closes every open file."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    async def _begin(self) -> None:
        row = await self._database.row("checkpoint_of", projection="log_files")
        self._after = row["id"] if row else 0
        for row in await self._database.rows("runs_beside_builds", after=self._after):
            self._runs_beside[row["build_id"]].add(row["id"])
            self._build_beside[row["id"]] = row["build_id"]

    def _sort(self, page: Page) -> dict[str, tuple[Page, bool]]:
        """The page by the feeds that its lines belong to, and whether these end with it."""
        if page.output_of is not None:
            return dict.fromkeys(self._feeds_of(page.output_of), (page, False))
        parts: dict[str, list[Line]] = defaultdict(list)
        ended, stream, its_parts = set(), "", []
        for line in page.each():
            if line.stream != stream:
                stream = line.stream
                its_parts = [parts[feed] for feed in self._feeds_of(stream)]
            for part in its_parts:
                part.append(line)
            if line.type in _MOVES:
                self._learn(line)
                stream = ""
            if line.type in TERMINAL:
                ended.add(line.stream)
        return {feed: (Page.of(part), feed in ended) for feed, part in parts.items()}

    def _feeds_of(self, stream: str) -> list[str]:
        if not stream.startswith(("run_", "build_")):
            return []
        return [stream, *self._runs_beside.get(stream, ())]

    def _learn(self, line: Line) -> None:
        """From here on a run has a build beside it, or none any more."""
        if line.type == "run.created":
            build_id = orjson.loads(line.line)["build_id"]
            if build_id is not None:
                self._runs_beside[build_id].add(line.stream)
                self._build_beside[line.stream] = build_id
        elif line.type == "run.completed":
            self._part(line.stream)
        elif line.type == "build.completed":
            for run in list(self._runs_beside.get(line.stream, ())):
                self._part(run)

    def _part(self, run: str) -> None:
        """The run has no build beside it any more."""
        build_id = self._build_beside.pop(run, None)
        if build_id is not None:
            self._runs_beside[build_id].discard(run)
            if not self._runs_beside[build_id]:
                del self._runs_beside[build_id]

    async def _write(self, stream: str, page: Page, *, ends: bool) -> None:
        file = self._files.get(stream)
        if file is not None and not file.untouched:
            self._files.pop(stream).close()
            file = None
        if file is None:
            file = await self._open(stream)
            if file is None:
                return
            try:
                await file.catch_up(self._log, page.first_id - 1)  # what is missing, whoever removed it
            except BaseException:
                file.close()
                raise
            if len(self._files) >= OPEN_FILES:
                self.close()
            self._files[stream] = file
        file.write(page)
        if ends:
            self._files.pop(stream).close()

    async def _open(self, stream: str) -> FeedFile | None:
        found = await feed_of(self._database, stream)
        if found is None:
            # Nothing of ours writes such a stream. Whoever did must not stop the files of all others.
            if stream not in self._unknown:
                logger.warning("%s has lines but was never created: it gets no log file", stream)
                self._unknown.add(stream)
            return None
        return FeedFile(self._path_of(found.workspace, stream), found.feed)
