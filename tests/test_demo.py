"""`ade demo` as a stranger runs it: nothing but a folder, and nothing left running."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.conftest import reachable_folder


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with reachable_folder() as folder:
        yield folder


def start(home: Path) -> subprocess.Popen[str]:
    """The demo with nothing in its environment but what it needs, in a folder of its own."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    env |= {name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_", "PIP_"))}
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background ignore it, and pass that on
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "service.cli", "demo"], env=env, cwd=home, text=True, stdout=-1, stderr=-1
        )
    finally:
        signal.signal(signal.SIGINT, before)


def left_running(home: Path) -> list[str]:
    """The command lines of all processes that work in the folder or name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            works_here = (process / "cwd").readlink().is_relative_to(home)
        except OSError:  # it has just ended, or belongs to somebody else
            continue
        if works_here or str(home) in command:
            found.append(command)
    return found


def test_the_demo_runs_and_runs_again(home: Path) -> None:
    """It shows the run, says where everything is, and leaves nothing running; the second time it reuses the build."""
    for build_steps in (True, False):
        demo = start(home)
        stdout, stderr = demo.communicate(timeout=90)
        assert demo.returncode == 0, stdout + stderr
        assert ("✓ create_venv" in stdout) == build_steps
        assert "stdout  344/344 rows" in stdout
        assert "✓ succeeded · exit code 0" in stdout
        assert "\x1b" not in stdout

        paths = dict(re.findall(r"^(\S+) +[\d.]+ k?B +(data/\S+)$", stdout, re.MULTILINE))
        assert paths.keys() == {"events.ndjson", "chart.svg", "result.json", "tidy.csv"}
        lines = (home / paths["events.ndjson"]).read_bytes().splitlines()
        assert orjson.loads(lines[-1])["type"] == "run.completed"
        assert orjson.loads((home / paths["result.json"]).read_bytes())["rows_in"] == 344
        assert (home / paths["tidy.csv"]).read_text().count("\n") > 300
        assert left_running(home) == []


def test_ctrl_c_leaves_nothing_running(home: Path) -> None:
    """In the middle of the run: it says so, and every process is gone."""
    demo = start(home)
    assert demo.stdout is not None
    assert any("stdout  80/344 rows" in line for line in demo.stdout)
    assert len(left_running(home)) > 4  # the demo, serve, API, worker, projector, PostgreSQL
    demo.send_signal(signal.SIGINT)
    _, stderr = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Stopped" in stderr
    assert left_running(home) == []
