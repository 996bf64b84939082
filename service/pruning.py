"""Which venvs of this machine are not needed any more, and their removal.

What is removed is the venv alone; the lock and the wheels stay, so a run that needs it again makes it again. Of a build
that failed or was canceled nothing is needed ever again, and nothing stays. What no build of the log explains is left
alone: the folder may be another deployment's.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio.to_thread

from eventstore import Database
from service.files import Files
from service.work import builder
from service.work.installer import VENV

DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Policy:
    """Of each config the ``keep`` newest builds are kept beside the current one, and those used in the last days."""

    keep: int
    older_than_days: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a build's folder, and why; ``bytes``: what its removal frees on the disk."""

    build_id: str
    action: Literal["keep", "remove"]
    why: str
    whole: bool = False
    """The lock and the wheels are removed, too."""
    bytes: int = 0


def judge(rows: Sequence[Mapping[str, Any]], usable: Mapping[str, bool], policy: Policy) -> list[Verdict]:
    """A verdict about each build that has a venv here, or the rest of one. ``rows``: newest first, of `builds_in_use`;
    ``usable``: whether a venv is whole, for each build that has one."""
    older: Counter[str] = Counter()
    verdicts = []
    for row in rows:
        if row["id"] in usable or row["status"] in {"failed", "canceled"}:
            verdicts.append(_verdict(row, usable.get(row["id"], False), older[row["config_id"]], policy))
            older[row["config_id"]] += usable.get(row["id"], False) and not row["current"]
    return verdicts


def _verdict(row: Mapping[str, Any], usable: bool, newer: int, policy: Policy) -> Verdict:
    def keep(why: str) -> Verdict:
        return Verdict(row["id"], "keep", why)

    days = row["unused_s"] / DAY_S
    if row["status"] in {"queued", "building"}:
        return keep(f"it is {row['status']}")
    if row["status"] != "active":
        return Verdict(row["id"], "remove", f"the build {row['status']}", whole=True)
    if row["needed"]:
        return keep("a run needs it")
    if not usable:
        return Verdict(row["id"], "remove", "it is not whole")
    if row["current"]:
        return keep("new runs use it")
    if newer < policy.keep:
        return keep(f"it is among the {policy.keep} newest of its config")
    if days < policy.older_than_days:
        return keep(f"it was used {days:.1f} days ago")
    return Verdict(row["id"], "remove", f"it was used {days:.1f} days ago")


async def prune(database: Database, files: Files, policy: Policy, *, dry_run: bool) -> list[Verdict]:
    """Removes the venvs that are not needed: what became of each. With ``dry_run`` what would become of it."""
    folders = await anyio.to_thread.run_sync(files.builds)
    usable = {build: builder.usable(folder) for build, folder in folders.items() if (folder / VENV).exists()}
    rows = await database.rows("builds_in_use", ids=list(folders))
    known = {row["id"] for row in rows}
    done = [Verdict(build, "keep", "no build of this log explains it") for build in sorted(folders.keys() - known)]
    for verdict in judge(rows, usable, policy):
        folder = folders[verdict.build_id]
        if verdict.action == "remove":
            done.append(await _remove(database, folder, verdict, dry_run=dry_run))
        else:
            done.append(verdict)
    return done


async def _remove(database: Database, folder: Path, verdict: Verdict, *, dry_run: bool) -> Verdict:
    async def needed() -> bool:
        row = await database.row("builds_in_use", ids=[verdict.build_id])
        return row is None or row["needed"] or row["status"] in {"queued", "building"}

    size = await anyio.to_thread.run_sync(_bytes_of, folder if verdict.whole else folder / VENV)
    if not dry_run and not await builder.discard(folder, needed, whole=verdict.whole):
        return Verdict(verdict.build_id, "keep", "somebody works in it, or needs it by now")
    return Verdict(verdict.build_id, "remove", verdict.why, verdict.whole, size)


def _bytes_of(folder: Path) -> int:
    """What the files below a folder take on the disk, without those that the installer's cache holds as well."""
    size = 0
    for here, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):  # somebody works there
                found = Path(here, name).lstat()
                size += found.st_blocks * 512 if found.st_nlink == 1 else 0
    return size
