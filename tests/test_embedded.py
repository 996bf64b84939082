"""The bundled PostgreSQL: real servers, really killed."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from eventstore import embedded
from eventstore.embedded import EmbeddedServer, EmbeddedServerError

BUNDLED = [pytest.param({"version": version}, id=str(version)) for version in embedded.BUNDLED]
INSTALLED = [initdb.parent for initdb in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
SYSTEM = [pytest.param({"binaries": binaries}, id=f"system-{binaries.parent.name}") for binaries in INSTALLED]

as_root = pytest.mark.usefixtures("_root")

HOLDER = """
import json, sys
from pathlib import Path
from eventstore import embedded

folder, elsewhere, options = json.loads(sys.argv[1])
embedded.ELSEWHERE = Path(elsewhere)
if "binaries" in options:
    options["binaries"] = Path(options["binaries"])
with embedded.EmbeddedServer.open(Path(folder), **options) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def _elsewhere() -> Iterator[None]:
    """Nothing of a test stays in /var/lib."""
    with public_folder() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "ELSEWHERE", folder / "ade-runs")
        yield


@pytest.fixture
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: what root does for lack of reach is not tested")


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    yield
    os.umask(before)


@pytest.fixture(scope="module", autouse=True)
def _umask() -> Iterator[None]:
    with umask(0o022):
        yield


@pytest.fixture
def strict_umask() -> Iterator[None]:
    """New files are for root alone, unless somebody opens them."""
    with umask(0o077):
        yield


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """A folder that every account can enter."""
    folder = Path(tempfile.mkdtemp(prefix="ade-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def nothing_runs_after(folder: Path) -> Iterator[None]:
    """Ends what still runs in a folder after a failed test."""
    yield
    for home in (folder, *embedded.ELSEWHERE.glob("*")):
        if server := running(home):
            os.kill(server.pid, signal.SIGKILL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for a new cluster."""
    with public_folder() as made, nothing_runs_after(made / "postgres"):
        yield made / "postgres"


@pytest.fixture(params=[*BUNDLED, *SYSTEM], scope="module")
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every PostgreSQL there is."""
    return dict(request.param)


@pytest.fixture(scope="module")
def cluster_of_every_version(options: dict[str, Any]) -> Iterator[Path]:
    with public_folder() as folder:
        EmbeddedServer.open(folder, **options).close()
        yield folder


@pytest.fixture(scope="module")
def cluster_of_18() -> Iterator[Path]:
    with public_folder() as folder:
        EmbeddedServer.open(folder).close()
        yield folder


@pytest.fixture
def made(cluster_of_every_version: Path) -> Iterator[Path]:
    """A folder with a cluster, of every version in turn; nothing runs."""
    with nothing_runs_after(cluster_of_every_version):
        yield cluster_of_every_version


@pytest.fixture
def made_18(cluster_of_18: Path) -> Iterator[Path]:
    """A folder with a cluster of PostgreSQL 18; nothing runs."""
    with nothing_runs_after(cluster_of_18):
        yield cluster_of_18


def ask(server: EmbeddedServer, sql: str) -> str:
    """The answer by psql, which is given nothing but the server's URL."""
    command = [str(server.psql), "-XAtq", "-v", "ON_ERROR_STOP=1", server.url, "-c", sql]
    return subprocess.run(command, env={}, check=True, capture_output=True, text=True).stdout.strip()


def running(folder: Path) -> embedded._Postmaster | None:
    """The server that runs in a folder."""
    servers = [embedded._Postmaster.running(version.parent) for version in folder.glob("*/PG_VERSION")]
    return next((server for server in servers if server), None)


def named(home: Path) -> embedded._Postmaster:
    server = running(home)
    assert server is not None
    return server


def pid(server: EmbeddedServer) -> int:
    return named(server._home).pid


def holder(folder: Path, options: dict[str, Any]) -> "subprocess.Popen[str]":
    """Another process that opens a server, with no environment to speak of, and closes it when its stdin ends."""
    told = json.dumps([str(folder), str(embedded.ELSEWHERE), options], default=str)
    command = [sys.executable, "-c", HOLDER, told]
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_open(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def test_the_systems_postgresql_is_tested_too() -> None:
    """Where there is one, every test with `options` runs on it."""
    if not INSTALLED:
        pytest.skip("NO SYSTEM POSTGRESQL in /usr/lib/postgresql/*/bin: only the bundled versions are tested")
    assert all((binaries / "postgres").exists() for binaries in INSTALLED)


def test_data_persists_from_one_start_to_the_next(made: Path, options: dict[str, Any]) -> None:
    """A stop and a start keep what was written; a stopped server leaves no process and no socket."""
    with EmbeddedServer.open(made, **options) as server:
        first, socket, cluster = pid(server), embedded._socket(server._cluster), server._cluster
        ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    embedded._wait(lambda: not Path(f"/proc/{first}").exists(), 10, "the stopped server is not reaped")
    assert not socket.parent.exists()
    assert not (cluster / "postmaster.pid").exists()
    with EmbeddedServer.open(made, **options) as server:
        assert pid(server) != first
        with psycopg.connect(server.url) as connection:
            row = connection.execute("SELECT answer, current_database(), current_user FROM kept").fetchone()
        assert row == (42, "ade", "ade")
        assert server._home == made


def test_a_cluster_is_safe_and_local(made: Path, options: dict[str, Any]) -> None:
    """Commits reach the disk, pages have checksums, text is UTF-8 in byte order, and there is no port."""
    names = ["fsync", "synchronous_commit", "data_checksums", "server_encoding", "listen_addresses", "jit"]
    with EmbeddedServer.open(made, **options) as server:
        shown = [ask(server, f"SHOW {name}") for name in [*names, "max_connections", "TimeZone"]]
        assert shown == ["on", "on", "on", "UTF8", "", "off", "200", "UTC"]
        assert ask(server, "SELECT string_agg(x, '' ORDER BY x) FROM unnest('{é,Z,a}'::text[]) x") == "Zaé"
        socket = embedded._socket(server._cluster).parent.stat()
        assert stat.S_IMODE(socket.st_mode) == 0o700
        assert socket.st_uid == server._cluster.stat().st_uid != 0 or os.geteuid() != 0


def test_processes_share_a_server_and_the_last_one_stops_it(made: Path, options: dict[str, Any]) -> None:
    """Closing leaves the server to whoever else has it open, in this process or another."""
    other = holder(made, options)
    is_open(other)
    server, again = EmbeddedServer.open(made, **options), EmbeddedServer.open(made, **options)
    shared = pid(server)
    server.close()
    server.close()
    assert ask(again, "SELECT 1") == "1"
    again.close()
    assert pid(again) == shared
    assert ask(again, "SELECT 1") == "1"
    other.communicate()
    assert running(made) is None


def test_many_processes_may_start_at_once(folder: Path) -> None:
    """Whoever is first makes the cluster and starts it; all get the same server."""
    others = [holder(folder, {}) for _ in range(4)]
    assert len({is_open(other) for other in others}) == 1
    for other in others:
        other.communicate()
        assert other.returncode == 0
    assert running(folder) is None


def test_a_server_outlives_a_killed_process_and_is_adopted(made: Path, options: dict[str, Any]) -> None:
    """kill -9 of the only user leaves the server running; the next user gets that one, and stops it."""
    other = holder(made, options)
    url = is_open(other)
    kill(other)
    left = named(made)
    with EmbeddedServer.open(made, **options) as server:
        assert server.url == url
        assert running(made) == left
        assert ask(server, "SELECT 1") == "1"
    assert running(made) is None


def test_a_killed_server_is_started_again(made: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """kill -9 of the server: once its children are gone too the next open starts it, and nothing committed is lost."""
    with EmbeddedServer.open(made, **options) as server, psycopg.connect(server.url, autocommit=True) as session:
        session.execute("CREATE TABLE committed AS SELECT generate_series(1, 1000) AS n")
        killed, child = pid(server), session.info.backend_pid
        os.kill(child, signal.SIGSTOP)  # a child that does not see that its parent is gone
        os.kill(killed, signal.SIGKILL)
        embedded._wait(lambda: running(made) is None, 10, "the killed server does not end")
        with monkeypatch.context() as patch:
            patch.setattr(embedded, "STOP_TIMEOUT_S", 0.1)
            with pytest.raises(EmbeddedServerError, match="an earlier server"):
                EmbeddedServer.open(made, **options)
        os.kill(child, signal.SIGCONT)
        with EmbeddedServer.open(made, **options) as again:
            assert again.url == server.url
            assert pid(again) != killed
            assert ask(again, "SELECT count(*), max(n) FROM committed") == "1000|1000"


def test_a_half_made_cluster_is_made_again(folder: Path) -> None:
    """kill -9 in the middle of initdb: initdb is waited for, what it left is removed, the next open begins anew."""
    other = holder(folder, {})
    embedded._wait(lambda: bool(list(folder.glob("*.making/PG_VERSION"))), 30, "initdb does not begin")
    kill(other)
    assert not list(folder.glob("[0-9][0-9]"))
    with EmbeddedServer.open(folder) as server:
        assert ask(server, "SELECT current_database()") == "ade"
    assert not list(folder.glob("*.making"))


def test_a_long_path_has_a_short_socket(folder: Path) -> None:
    """A socket's path has 107 bytes, a data folder's may have more."""
    with EmbeddedServer.open(folder / ("long" * 40) / "é ü?&%") as server:
        assert ask(server, "SELECT 1") == "1"


def test_recycled_numbers_are_no_server(made_18: Path, folder: Path) -> None:
    """After a reboot postmaster.pid may name any process and any server's memory: neither stands in the way."""
    with EmbeddedServer.open(made_18) as server:
        account, key = server._account, named(made_18).segment[0]
    sleeper = subprocess.Popen(["sleep", "60"], user=account.uid)
    with EmbeddedServer.open(folder):
        lines = [str(sleeper.pid), "", "", "", "", "", f"{key} {named(folder).segment[1]}", "ready"]
        (made_18 / "18" / "postmaster.pid").write_text("\n".join(lines))
        with EmbeddedServer.open(made_18) as server:
            assert ask(server, "SELECT 1") == "1"
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def test_a_swept_socket_is_made_again(made_18: Path) -> None:
    """A server that nobody has open and nobody can reach is started again; one that somebody uses is left alone."""
    other = holder(made_18, {})
    is_open(other)
    shutil.rmtree(embedded._socket(made_18 / "18").parent)
    with pytest.raises(EmbeddedServerError, match=r"its socket .* is not here"):
        EmbeddedServer.open(made_18)
    assert running(made_18) is not None
    kill(other)
    with EmbeddedServer.open(made_18) as server:
        assert ask(server, "SELECT 1") == "1"


def test_a_removed_folder_does_not_disturb_its_successor(folder: Path) -> None:
    """Whoever still had the removed folder open, and its old server as it ends, leave the new folder's server alone."""
    left = EmbeddedServer.open(folder)
    old, socket = named(folder), embedded._socket(left._cluster)
    os.kill(old.pid, signal.SIGSTOP)  # it would notice by itself, at some time
    shutil.rmtree(folder)
    with EmbeddedServer.open(folder) as server:
        left.close()
        os.kill(old.pid, signal.SIGINT)
        os.kill(old.pid, signal.SIGCONT)
        embedded._wait(lambda: not Path(f"/proc/{old.pid}").exists(), 10, "the old server does not end")
        assert ask(server, "SELECT 1") == "1"
    shutil.rmtree(socket.parent)


def test_a_cluster_keeps_its_version(folder: Path) -> None:
    """A newer default does not touch an older cluster."""
    with EmbeddedServer.open(folder, version=16) as server:
        ask(server, "CREATE TABLE kept ()")
    with EmbeddedServer.open(folder, version=18) as server:
        assert ask(server, "SHOW server_version") == "16.14"
        assert "16.14" in subprocess.run([server.psql, "--version"], check=True, capture_output=True, text=True).stdout
        ask(server, "SELECT FROM kept")


def test_a_cluster_of_an_unknown_version_is_refused(folder: Path) -> None:
    """The error names the tool that helps, and nothing is made beside the old cluster."""
    (folder / "17").mkdir(parents=True)
    (folder / "17" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedServerError, match=r"PostgreSQL 17.*pg_upgrade"):
        EmbeddedServer.open(folder)
    assert not (folder / "18").exists()
    with pytest.raises(EmbeddedServerError, match="17 is not bundled; there are 18 and 16"):
        embedded.bundled(17)


def test_a_server_that_does_not_start_says_why(made_18: Path) -> None:
    """The end of the server's log is in the error, and the next open tries again."""
    with EmbeddedServer.open(made_18) as server:
        settings = server._cluster / "postgresql.conf"
    whole = settings.read_text()
    settings.write_text(f"{whole}\nno_such_setting = 1\n")
    with pytest.raises(EmbeddedServerError, match="no_such_setting"):
        EmbeddedServer.open(made_18)
    settings.write_text(whole)
    EmbeddedServer.open(made_18).close()


def test_the_server_log_has_a_limit(made_18: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that finds a long log begins a new one and keeps one old one."""
    EmbeddedServer.open(made_18).close()
    long = (made_18 / "server.log").read_text()
    monkeypatch.setattr(embedded, "LOG_MAX_BYTES", len(long) - 1)
    EmbeddedServer.open(made_18).close()
    assert (made_18 / "server.log.old").read_text() == long
    assert "ready to accept connections" in (made_18 / "server.log").read_text()


def test_the_server_inherits_nothing(made_18: Path) -> None:
    """Own session, no terminal, no descriptor but its log, an environment of three variables."""
    log = made_18 / "server.log"
    with log.with_name("inheritable").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with EmbeddedServer.open(made_18) as server:
            process = Path(f"/proc/{pid(server)}")
            session, terminal = process.joinpath("stat").read_text().rpartition(")")[2].split()[3:5]
            assert (int(session), int(terminal)) == (pid(server), 0)
            opened = {fd.name: str(fd.readlink()) for fd in process.joinpath("fd").iterdir()}
            assert [opened[fd] for fd in "012"] == ["/dev/null", str(log), str(log)]
            assert not [path for path in opened.values() if path.endswith((".lock", "inheritable"))]
            environment = process.joinpath("environ").read_bytes().rstrip(b"\0").split(b"\0")
            assert sorted(variable.partition(b"=")[0] for variable in environment) == [b"LANG", b"PATH", b"TZ"]


@as_root
@pytest.mark.usefixtures("strict_umask")
def test_what_postgresql_cannot_reach_is_kept_elsewhere() -> None:
    """Under a private folder root's cluster lies elsewhere, the notice says so, and no mode changes."""
    with tempfile.TemporaryDirectory(dir="/tmp") as private:
        folder = Path(private) / "data" / "postgres"
        with EmbeddedServer.open(folder) as server:
            assert server.notice is not None
            assert str(folder) in server.notice
            assert str(server._home) in server.notice
            assert server._home.parent == embedded.ELSEWHERE
            assert (folder / "elsewhere").readlink() == server._home
            assert str(folder) in (server._home / "README").read_text()
            ask(server, "CREATE TABLE kept ()")
        assert stat.S_IMODE(Path(private).stat().st_mode) == 0o700
        with EmbeddedServer.open(folder) as server:
            assert server.notice is not None
            ask(server, "SELECT FROM kept")


@as_root
def test_a_folder_made_again_does_not_bring_back_old_data() -> None:
    """The link in the data folder is the only way to a cluster elsewhere; one that leads to nothing is an error."""
    with tempfile.TemporaryDirectory(dir="/tmp") as private:
        folder = Path(private) / "postgres"
        with EmbeddedServer.open(folder) as server:
            ask(server, "CREATE TABLE old ()")
        shutil.rmtree(folder)
        with EmbeddedServer.open(folder) as server:
            assert ask(server, "SELECT count(*) FROM pg_tables WHERE tablename = 'old'") == "0"
        shutil.rmtree(server._home)
        with pytest.raises(EmbeddedServerError, match="leads to no database"):
            EmbeddedServer.open(folder)


@as_root
def test_a_reachable_cluster_that_became_unreachable_is_not_replaced(made_18: Path) -> None:
    """Data that is there is never hidden behind a new, empty cluster."""
    with EmbeddedServer.open(made_18) as server:
        ask(server, "CREATE TABLE unreachable ()")
    made_18.chmod(0o700)
    with pytest.raises(EmbeddedServerError, match="cannot reach"):
        EmbeddedServer.open(made_18)
    assert stat.S_IMODE(made_18.stat().st_mode) == 0o700
    made_18.chmod(0o755)
    with EmbeddedServer.open(made_18) as server:
        ask(server, "SELECT FROM unreachable")


@as_root
@pytest.mark.usefixtures("strict_umask")
def test_programs_that_postgresql_cannot_reach_are_copied(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a private folder is copied once, for all to run and for root alone to change."""
    wheel = embedded.bundled(18).parents[1]
    with tempfile.TemporaryDirectory(dir="/tmp") as private:
        shutil.copytree(wheel, Path(private) / wheel.name)
        shutil.copytree(f"{wheel}.libs", Path(private) / f"{wheel.name}.libs")
        monkeypatch.syspath_prepend(private)
        with EmbeddedServer.open(folder) as server:
            copy = embedded.ELSEWHERE / "postgresql-18.4"
            assert server.notice is not None
            assert str(copy) in server.notice
            assert Path(f"/proc/{pid(server)}/exe").readlink().is_relative_to(copy)
            assert ask(server, "SHOW server_version") == "18.4"
        assert server.psql.is_relative_to(private)
        assert not list(embedded.ELSEWHERE.glob("*.making"))
        assert all(path.stat().st_uid == 0 and not path.stat().st_mode & 0o022 for path in copy.rglob("*"))


@as_root
def test_somebody_elses_socket_folder_is_refused(made_18: Path) -> None:
    """Whoever owns the folder of the socket could be the server: it is neither used nor removed."""
    with EmbeddedServer.open(made_18) as server:
        squatted = embedded._socket(server._cluster).parent
    squatted.mkdir()
    os.chown(squatted, 12345, 12345)
    try:
        with pytest.raises(EmbeddedServerError, match="belongs to somebody else"):
            EmbeddedServer.open(made_18)
    finally:
        squatted.rmdir()


@as_root
def test_root_serves_an_ordinary_users_cluster_as_that_user(folder: Path) -> None:
    """A cluster stays its owner's: root runs PostgreSQL as that account, and leaves no file that is not the owner's."""
    with EmbeddedServer.open(folder) as server:
        ask(server, "CREATE TABLE kept ()")
    owner = next(uid for uid in range(20000, 30000) if uid != server._account.uid)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner, owner)
    with EmbeddedServer.open(folder) as server:
        ask(server, "SELECT FROM kept")
        assert Path(f"/proc/{pid(server)}").stat().st_uid == owner
    assert {path.stat().st_uid for path in (folder, *folder.rglob("*"))} == {owner}


@as_root
def test_an_ordinary_user_opens_a_server(folder: Path) -> None:
    """The account `nobody`, with nothing but the two modules and the wheel; root's folder is refused with advice."""
    python = next((path for path in (sys.executable, "/usr/bin/python3") if is_for_all(path)), None)
    if python is None:
        pytest.skip("NO PYTHON >= 3.11 THAT `nobody` CAN RUN: the ordinary user is not tested from root")
    site = folder.parent / "site"
    (site / "eventstore").mkdir(parents=True)
    (site / "eventstore" / "__init__.py").touch()
    for module in (embedded.__file__, Path(embedded.__file__).with_name("clock.py")):
        shutil.copy(module, site / "eventstore")
    wheel = embedded.bundled(18).parents[1]
    shutil.copytree(wheel, site / wheel.name, ignore=shutil.ignore_patterns("pginstall", "include"))
    shutil.copytree(f"{wheel}.libs", site / f"{wheel.name}.libs")
    home = folder.parent / "home"
    home.mkdir(mode=0o700)
    shutil.chown(home, "nobody")

    def as_nobody(data: Path) -> "subprocess.CompletedProcess[str]":
        told = json.dumps([str(data), "/nowhere", {}])
        command = [python, "-c", HOLDER + "    assert server.notice is None", told]
        how: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": [], "cwd": home, "text": True}
        return subprocess.run(command, input="", env={"PYTHONPATH": str(site)}, capture_output=True, check=False, **how)

    done = as_nobody(home / "data" / "postgres")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("postgresql://")
    assert (home / "data" / "postgres" / "18").owner() == "nobody"
    with EmbeddedServer.open(folder):
        refused = as_nobody(folder)
    assert "Run as the owner of that folder" in refused.stderr


def is_for_all(python: str) -> bool:
    """Whether this interpreter is new enough and `nobody` can run it."""
    command = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    try:
        return (
            subprocess.run(command, user="nobody", group="nogroup", extra_groups=[], cwd="/", check=False).returncode
            == 0
        )
    except (PermissionError, FileNotFoundError):
        return False
