"""What an engine works in and leaves: a scratch folder of its own, an environment, artifacts, a result."""

import errno
import hashlib
import mimetypes
import os
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from service.work.execution import Ended
from service.work.leftovers import RUN_MARK
from service.work.lines import clean
from service.work.process import Account

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
RESULT: Final = "result.json"
RESULT_MAX_BYTES: Final = 1 * 2**20
ARTIFACTS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Scratch:
    """The working folder of a run: ``inputs/<n>/<name>``, ``output/``, ``home/``. Gone when the run has ended."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def make(self, inputs: Sequence[tuple[str, Path]], account: Account | None) -> tuple[Path, ...]:
        """Makes it anew with copies of the inputs (name, source); the paths of those. Blocks: call it in a thread."""
        self.remove()
        placed = []
        for folder in (self.folder, self.output, self.home):
            folder.mkdir(parents=True, mode=0o700)
        for number, (name, source) in enumerate(inputs, 1):
            place = self.folder / "inputs" / str(number) / name
            place.parent.mkdir(parents=True)
            shutil.copyfile(source, place)
            placed.append(place)
        if account is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, account.uid, account.gid, follow_symlinks=False)
        return tuple(placed)

    def remove(self) -> None:
        """Nothing of it is left. Blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def environment(
    *, venv: Path, scratch: Scratch, run_id: str, traceparent: str, secrets: Mapping[str, str]
) -> dict[str, str]:
    """All that an engine gets to know of the machine."""
    return {
        "PATH": f"{venv / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(scratch.home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",
        RUN_MARK: run_id,
        "TRACEPARENT": traceparent,
        **secrets,
    }


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file of an output folder, copied to where it is kept. ``name`` is relative to the folder, with ``/``."""

    name: str
    size: int
    sha256: str
    media_type: str


@dataclass
class Collected:
    """What an engine left: the files that are kept, with their artifacts' ids, and those that there is no room for."""

    kept: list[tuple[str, Leftover]]
    left_out: int = 0
    left_out_bytes: int = 0


def collect(output: Path, place: Callable[[], tuple[str, Path]], max_bytes: int) -> Collected:
    """Copies the regular files that an engine left; links are never followed. Blocks: call it in a thread.

    ``place`` gives a new artifact's id and where to keep it. No more than `ARTIFACTS_MAX` files and ``max_bytes``.
    """
    found, room = Collected([]), max_bytes
    if not output.is_dir():  # the engine removed it, or who took over when our lease was over
        return found
    for folder, folders, names, descriptor in os.fwalk(output, follow_symlinks=False):
        folders.sort()
        for name in sorted(names):
            opened = _open_regular(name, descriptor)
            if opened is None:
                continue
            with os.fdopen(opened, "rb") as source:
                length = os.fstat(opened).st_size
                if len(found.kept) == ARTIFACTS_MAX or length > room:
                    found.left_out += 1
                    found.left_out_bytes += length
                    continue
                artifact_id, copy = place()
                size, sha256 = _copy(source, copy)
                room -= size
            path = os.fsencode(Path(folder, name).relative_to(output))
            relative = str(clean(path.decode("utf-8", "replace")))
            media_type = mimetypes.guess_type(relative)[0] or "application/octet-stream"
            found.kept.append((artifact_id, Leftover(relative, size, sha256, media_type)))
    return found


def result_of(output: Path, ended: Ended) -> Any:
    """What the engine handed back: ``result.json`` of its output folder, else the data of its closing telemetry."""
    try:
        text = _read_result(output)
        if 0 < len(text) <= RESULT_MAX_BYTES:
            result = clean(orjson.loads(text))
            orjson.dumps({"result": result})  # nested deeper than can be written again: no result
            return result
    except (OSError, TypeError, RecursionError, orjson.JSONDecodeError):
        pass  # no result of that form; the telemetry may have one
    return ended.closing.members.get("data") if ended.closing is not None else None


def _read_result(output: Path) -> bytes:
    """The beginning of ``result.json``, reached without a link on the way that the engine could have made."""
    folder = os.open(output, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        opened = _open_regular(RESULT, folder)
    finally:
        os.close(folder)
    if opened is None:
        return b""
    with os.fdopen(opened, "rb") as source:
        return source.read(RESULT_MAX_BYTES + 1)


def _open_regular(name: str, folder: int) -> int | None:
    try:
        opened = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO, errno.EACCES, errno.ENOENT}:
            return None  # a link, a socket, or what we may not read
        raise
    if stat.S_ISREG(os.fstat(opened).st_mode):
        return opened
    os.close(opened)
    return None


def _copy(source: Any, copy: Path) -> tuple[int, str]:
    copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hashed, size = hashlib.sha256(), 0
    with copy.open("xb") as kept:
        while piece := source.read(1024 * 1024):
            hashed.update(piece)
            size += len(piece)
            kept.write(piece)
    return size, hashed.hexdigest()
