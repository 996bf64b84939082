"""`ade doctor`: what it finds, and what it says is to be done."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.cli.findings import deployment, server
from tests.conftest import ROOT


def findings(data: Path, code: int, **settings: str) -> dict[str, tuple[str, str | None]]:
    """What is said of each thing: what was found, what is to be done."""
    env = {"PATH": os.environ["PATH"], "HOME": str(data), "ADE_DATA_DIR": str(data), **settings}
    command = [sys.executable, "-m", "service.cli", "doctor", "--json"]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    assert ended.returncode == (1 if any(one["to_do"] for one in found) else 0), ended.stderr
    assert ended.returncode == code
    return {one["name"]: (one["found"], one["to_do"]) for one in found}


def test_what_is_well_needs_nothing_to_be_done(url: str, tmp_path: Path) -> None:
    """The schema is there, the disk has room, the Python runs. (Whether root has an account for engines, who knows.)"""
    python = {"ADE_PYTHON_BIN": sys.executable, "ADE_DATABASE_URL": url}
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "ADE_DATA_DIR": str(tmp_path), **python}
    command = [sys.executable, "-m", "service.cli", "doctor"]
    said = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    lines = {line.split()[1]: line for line in said.splitlines() if line[:2] in {"ok", "!!"}}
    well = {name for name, line in lines.items() if line.startswith("ok")}
    assert well >= {
        *("python", "uv", "processes", "disk", "folder", "files", "database", "schema"),
        *("version", "durability", "connections", "clock", "workers", "projector", "lag", "seals"),
    }, said
    assert lines.keys() == well | {"account"}
    assert ".".join(map(str, sys.version_info[:3])) in lines["python"]
    assert any(mechanism in lines["processes"] for mechanism in ("by its control group", "For control groups: "))


def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    """No database, no disk, no Python: everything is looked at, whatever else is wrong."""
    found = findings(
        tmp_path,
        1,
        ADE_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing",
        ADE_PYTHON_BIN="/no/such/python",
        ADE_DISK_FREE_MIN_MB=str(2**40),
        ADE_ATUH="keys",
        ADE_SECRET_ANY="thing",
    )
    assert found["settings"][0] == "ADE_ATUH: no such setting"
    assert "Connection refused" in found["database"][0]
    assert found["database"][1] == "Start PostgreSQL, or correct ADE_DATABASE_URL."
    assert "/no/such/python" in found["python"][0]
    assert "ADE_PYTHON_BIN" in str(found["python"][1])
    assert f"ADE_DISK_FREE_MIN_MB is {2**40}" in found["disk"][0]
    assert found["uv"][1] is None


def test_a_schema_that_is_not_there_is_to_be_migrated(fresh_url: str, tmp_path: Path) -> None:
    """An empty database answers, and needs its schema."""
    empty = re.sub(r"/test_\w+", "/postgres", fresh_url)
    found = findings(tmp_path, 1, ADE_DATABASE_URL=empty, ADE_PYTHON_BIN=sys.executable)
    assert found["database"] == ("ADE_DATABASE_URL answers", None)
    assert "0001_log" in found["schema"][0]
    assert found["schema"][1] == "Run `ade db migrate`."


def test_what_is_set_wrongly_is_told(url: str, tmp_path: Path) -> None:
    """A database that takes back what it acknowledged, a folder that everybody may write."""
    runs = tmp_path / "runs"
    runs.mkdir()
    runs.chmod(0o777)
    careless = url + ("&" if "?" in url else "?") + "options=-c%20synchronous_commit%3Doff"
    found = findings(
        tmp_path, 1, ADE_DATABASE_URL=careless, ADE_PYTHON_BIN=sys.executable, ADE_OTLP_ENDPOINT="http://x"
    )
    assert found["durability"][0] == "synchronous_commit off"
    assert "a crash would take back" in str(found["durability"][1])
    assert found["folder"] == (f"everybody may write {runs}", f"chmod o-w {runs}")
    assert found["traces"] == ("spans are sent", None)


HEALTHY: dict[str, Any] = {
    "version": "18.4", "major": 18, "fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
    "connections_max": 97, "connections": 20, "now": 1000.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "sick"),
    [
        ("version", {"major": 14}),
        ("durability", {"fsync": "off"}),
        ("durability", {"full_page_writes": "off"}),
        ("connections", {"connections": 60}),
        ("clock", {"now": 1010.0}),
        ("clock", {"now": 990.0}),
    ],
)
def test_each_sickness_of_a_server_has_its_own_word(name: str, sick: dict[str, Any]) -> None:
    """And a healthy one none."""
    assert [one.to_do for one in server(HEALTHY, 1000.0)] == [None] * 4
    assert [one.name for one in server(HEALTHY | sick, 1000.0) if one.to_do] == [name]


@pytest.mark.parametrize(
    ("name", "sick", "unsealed_s"),
    [
        ("workers", {("processes", "worker"): 0}, 0),
        ("projector", {("projectors", None): 0}, 0),
        ("lag", {("projection_lag", "run_logs"): 300_000}, 0),
        ("seals", {}, 90),
    ],
)
def test_each_sickness_of_a_deployment_has_its_own_word(
    name: str, sick: dict[tuple[str, str | None], int], unsealed_s: int
) -> None:
    """And a healthy one none; one that does not run at all is not sick."""
    well: dict[tuple[str, str | None], int] = {
        ("processes", "api"): 1, ("processes", "worker"): 1, ("processes", "projector"): 1, ("projectors", None): 1,
        ("queue_depth", "run"): 0, ("in_progress", "run"): 1, ("projection_lag", "run_logs"): 5,
    }  # fmt: skip

    def told(numbers: dict[tuple[str, str | None], int], seconds: int) -> list[str]:
        rows = [{"name": name, "of": of, "value": value} for (name, of), value in numbers.items()]
        return [one.name for one in deployment(rows, {"events": 3, "seconds": seconds}) if one.to_do]

    assert told(well, 0) == told({}, 0) == []
    assert told(well | sick, unsealed_s) == [name]
