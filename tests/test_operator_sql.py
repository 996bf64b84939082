"""The files of sql/operator: each reads only, says what it shows, and shows it in a situation that was made up."""

import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from projections import events
from service import commands
from tests.conftest import ROOT, Server, Store
from tests.histories import build_created, line, rows, run_created, run_started, tell

pytestmark = pytest.mark.anyio

FOLDER = ROOT / "sql" / "operator"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.sql")) if path.stem != "drop_empty_log"}
VARIABLES = {"stream": "run_lost", "text": "hunter2"}
SHOWS: dict[str, dict[str, Any]] = {
    "queued": {"id": "run_waits", "waits_for": "disk", "build_status": None},
    "in_hand": {"id": "run_lost", "worker": "gone", "lost": True},
    "holders": {"holder": "gone", "lost": True, "streams": ["run_lost"]},
    "behind": {"what": "run_logs", "reached": 0},
    "failures": {
        "kind": "run",
        "stop_reason": "timeout",
        "times": 1,
        "newest": "run_failed",
        "newest_says": "too slow",
    },
    "history": {"type": "run.started"},
    "cut_output": {"stream": "run_failed", "lines": 3, "bytes": 190, "reason": "too much"},
    "losses": {"stream": "run_failed", "worker": "w", "next": "fail"},
    "survivors": {"stream": "run_failed", "survivors": 2, "worker": "w"},
    "disk_use": {"table": "events"},
    "large_streams": {"stream": "run_failed", "config": "penguins"},
    "connections": {"state": "active"},
    "safe_mode": {"enabled": True, "requested_by": "somebody", "reason": "upgrade"},
    "redactions": {"stream": "run_failed", "event_ids": [5], "requested_by": "admin"},
    "said": {"stream": "run_lost", "type": "run.log"},
    "builds": {"id": "build_1", "config": "penguins", "new_runs_use_it": True, "runs_need_it": 1},
}


async def situation(store: Store, url: str) -> None:
    """A queued run without room, a lost one that said too much, a failed one, and an active build."""
    registered = events.ConfigRegistered(
        workspace_id="antarctica", name="penguins", version=1, digest="d1", requested_by="test"
    )
    await tell(store, "config_1", registered.event())
    active = commands.build_completed("active", "completed").event()
    await tell(store, "build_1", build_created(), active)
    await tell(store, "run_waits", run_created(), events.RunWaiting(for_="disk").event())
    await tell(store, "run_lost", run_created("build_1"), run_started(), line("run_lost", "the password is hunter2"))
    await tell(
        store,
        "run_failed",
        run_created("build_1"),
        run_started(),
        line("run_failed", "a long line " * 100),
        events.RunLogGap(lines=3, bytes=190, reason="too much").event(),
        events.RunSignaled(signal="SIGKILL", survivors=2).event(),
        events.RunLost(worker_id="w", attempt=1, reason="its lease ran out", next="fail").event(),
        commands.run_completed("failed", "timeout", error_message="too slow").event(),
    )
    switched = events.SafeModeChanged(enabled=True, requested_by="somebody", reason="upgrade")
    erased = events.EventRedacted(stream="run_failed", event_ids=[5], requested_by="admin", reason="a password")
    await tell(store, "system_log", switched.event(), erased.event())
    rows(
        url,
        "INSERT INTO leases VALUES ('run_lost', 1, 'gone', clock_timestamp(), clock_timestamp() - interval '1 hour',"
        " clock_timestamp() - interval '1 minute')",
    )


def asked(url: str, path: Path) -> list[dict[str, Any]]:
    """The rows that a file shows, in a transaction that cannot write."""
    code = path.read_text("utf-8")
    for name, value in VARIABLES.items():
        code = code.replace(f":'{name}'", f"'{value}'")
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        connection.read_only = True
        return connection.execute(code.encode()).fetchall()


async def test_each_shows_what_it_says(store: Store, url: str) -> None:
    """Seen to fail with `<>` for `=` in a condition, and with a file that is not in SHOWS."""
    assert SHOWS.keys() == FILES.keys()
    await situation(store, url)
    for name, path in FILES.items():
        found = asked(url, path)
        assert any(SHOWS[name].items() <= row.items() for row in found), (name, found)


@pytest.mark.parametrize("name", FILES)
async def test_each_says_what_it_shows_and_stands_in_the_docs(name: str) -> None:
    """In its first lines; and operate.md names the file where it helps, with what it must be told."""
    text = FILES[name].read_text("utf-8")
    assert re.match(r"-- \S.{20,}\n(-- .*\n)*\nSELECT ", text)
    (_, *commands_) = re.split(rf"sql/operator/{name}\.sql", (ROOT / "docs" / "operate.md").read_text("utf-8"))
    assert commands_, f"docs/operate.md does not name {name}"
    for variable in re.findall(r":'(\w+)'", text):
        assert re.search(rf"-- .*-v {variable}=", text)


def test_psql_understands_them(server: Server, url: str) -> None:
    """As they stand, with their variables, as `ade db shell -- -f` hands them on."""
    psql = server._embedded.psql
    assert psql is not None
    given = [word for name, value in VARIABLES.items() for word in ("-v", f"{name}={value}")]
    for path in FILES.values():
        command = [str(psql), url, "-v", "ON_ERROR_STOP=1", *given, "-f", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path
