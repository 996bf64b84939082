"""The log files of all feeds, kept current by one reader of the log that hands each line to the files it belongs to."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from eventstore import Database, Feed, Line, Log, Stretch
from projections.events import TERMINAL
from projections.ndjson_file import FeedFile

logger = logging.getLogger("ade.projector")

OPEN_FILES = 200
PAGE_LINES = 4_000

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
        stretches = await self._log.read_stretches(self._after or 0, limit=PAGE_LINES)
        if not stretches:
            return False
        for stream, pages in self._sort(stretches).items():
            await self._write(stream, pages)
        self._after = stretches[-1].last_id
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

    def _sort(self, stretches: Sequence[Stretch]) -> dict[str, list[Stretch]]:
        """The page by the feeds that its lines belong to."""
        sorted_: dict[str, list[Stretch]] = defaultdict(list)
        for stretch in stretches:
            if not stretch.stream.startswith(("run_", "build_")):
                continue
            for piece in [stretch] if stretch.bulk else stretch.apart():
                sorted_[piece.stream].append(piece)
                for run in self._runs_beside.get(piece.stream, ()):
                    sorted_[run].append(piece)
                if not piece.bulk:
                    self._learn(piece[0])
        return sorted_

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

    async def _write(self, stream: str, pages: Sequence[Stretch]) -> None:
        file = self._files.get(stream)
        if file is not None and not file.untouched:
            self._files.pop(stream).close()
            file = None
        if file is None:
            file = await self._open(stream)
            if file is None:
                return
            try:
                await file.catch_up(self._log, pages[0].first_id - 1)  # what is missing, whoever removed it
            except BaseException:
                file.close()
                raise
            if len(self._files) >= OPEN_FILES:
                self.close()
            self._files[stream] = file
        file.write(pages)
        last = pages[-1]
        if not last.bulk and last.stream == stream and last[-1].type in TERMINAL:
            self._files.pop(stream).close()

    async def _open(self, stream: str) -> FeedFile | None:
        kind = stream.split("_", 1)[0]
        row = await self._database.row(f"feed_of_{kind}", stream=stream)
        if row is None:
            # Nothing of ours writes such a stream. Whoever did must not stop the files of all others.
            if stream not in self._unknown:
                logger.warning("%s has lines but was never created: it gets no log file", stream)
                self._unknown.add(stream)
            return None
        feed = Feed(row["stream"], row["beside"], row["first_id"], row["ended_id"])
        return FeedFile(self._path_of(row["workspace"], stream), feed)
