"""The next major version of the bundled PostgreSQL: a cluster is copied into one that the newest makes, by pg_upgrade.

The old cluster is read, never changed, and stays until :func:`remove_old`. The new one is made under another name, and
renamed when it is whole: that is the commit point. Whoever is interrupted before it begins anew.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from eventstore.embedded import (  # it belongs to that life cycle: the same locks, account and paths
    _DECISION,
    _USERS,
    BUNDLED,
    EmbeddedServer,
    EmbeddedServerError,
    _Account,
    _clusters,
    _exclusive,
    _home,
    _init,
    _make_socket_folder,
    _opened,
    _Postmaster,
    _reachable,
    _socket,
    _stop,
    _sync,
    _take,
    bundled,
)

NEWEST = max(BUNDLED)
ROOM = 1.1
"""What must be free on the disk, as a multiple of the old cluster: a copy of it, and what is written while copying."""


class Clusters(NamedTuple):
    """The clusters of a data folder, by major version."""

    new: int
    old: tuple[int, ...]
    """Older ones, which are kept."""


def clusters(folder: Path) -> Clusters | None:
    """What is there; None where there is no cluster yet."""
    found = sorted(_clusters(_home(folder.resolve())))
    return Clusters(found[-1], tuple(found[:-1])) if found else None


def upgrade(folder: Path) -> None:
    """The cluster of the data folder is one of the newest version. Nobody may have it open meanwhile.

    Blocks for as long as copying takes. Raises EmbeddedServerError, and then the old cluster is as it was.
    """
    home = _home(folder.resolve())
    if max(_clusters(home)) >= NEWEST:
        return
    EmbeddedServer.open(folder).close()  # a server that was killed has left work, which pg_upgrade refuses to do
    with ExitStack() as held:
        decision = held.enter_context(_opened(home / _DECISION))
        users = held.enter_context(_opened(home / _USERS))
        held.enter_context(_exclusive(decision))
        if not _take(users):
            raise EmbeddedServerError(f"The database in {home} is in use: stop the service, and leave its shells.")
        major, old = max(_clusters(home).items())
        if major < NEWEST:  # nobody else was faster
            _copy(old, home / str(NEWEST), _Account.of(old), decision)


def _copy(old: Path, new: Path, account: _Account, decision: int) -> None:
    needed = int(sum(path.lstat().st_size for path in old.rglob("*") if path.is_file()) * ROOM)
    free = shutil.disk_usage(old).free
    if free < needed:
        raise EmbeddedServerError(
            f"{new} needs {needed // 2**20} MiB beside {old}, and {free // 2**20} MiB are free: make room, or go by"
            " `ade db backup` and `ade db restore` on another disk."
        )
    programs, before = (_reachable(bundled(int(path.name)), account) for path in (new, old))
    making = new.with_name(f"{new.name}.making")
    keep = (decision,)  # inherited, so that nobody else begins while a part of this still lives
    _init(making, new.name, programs, account, keep)
    sockets = _socket(making).parent
    _make_socket_folder(sockets, account)
    try:
        clusters = ("--old-datadir", old, "--new-datadir", making, "--old-bindir", before, "--new-bindir", programs)
        options = ("--username=ade", "--copy", "--socketdir", sockets)
        account.run(programs / "pg_upgrade", *clusters, *options, keep=keep, cwd=making, timeout_s=None)
    finally:
        for cluster in (old, making):
            if server := _Postmaster.running(cluster):  # pg_upgrade was killed, and could not stop what it had started
                _stop(cluster, server)
        shutil.rmtree(sockets, ignore_errors=True)
    (making / "delete_old_cluster.sh").unlink(missing_ok=True)  # that is `remove_old`
    making.rename(new)
    _sync(new.parent)


def remove_old(folder: Path) -> list[Path]:
    """Clusters that an upgrade has left behind are gone; which these were."""
    home = _home(folder.resolve())
    with _opened(home / _DECISION) as decision, _exclusive(decision):
        found = _clusters(home)
        old = [found[major] for major in sorted(found)[:-1]]
        for cluster in old:
            shutil.rmtree(cluster)
    return old
