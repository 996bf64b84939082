"""The user verbs of `ade`: what people see, what scripts get, and the exit codes; against the running service."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cli import output
from service.cli.output import Screen, clean
from service.client import ProblemError
from tests import engine
from tests.conftest import PENGUINS, Service, reachable_folder, running_service
from tests.conftest import Server as PostgreSQL

GOLDEN = [orjson.loads(line) for line in (Path(__file__).parent / "golden" / "events.ndjson").read_bytes().splitlines()]
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
INPUT = PENGUINS / "penguins_raw.csv"


# What people see


def shown(*events: dict[str, Any], colour: bool = False) -> list[str]:
    out = io.StringIO()
    screen = Screen(out, colour=colour)
    for event in events:
        screen.event(event)
    return out.getvalue().split("\n")[:-1]


@given(st.text() | st.text(st.characters(max_codepoint=0xA0)))
def test_no_text_commands_a_terminal(text: str) -> None:
    """Of all control characters only the tab is left, nothing turns the writing around, and all can be encoded."""
    cleaned = clean(text)
    assert not CONTROL.search(cleaned)
    assert cleaned.encode().decode() == cleaned
    assert text.isprintable() <= (cleaned == text)  # what is harmless stays as it is


def test_hostile_output_is_shown_and_not_obeyed() -> None:
    """Escape sequences, carriage returns and bells of an engine are visible characters, on one line, in colour too."""
    hostile = "\x1b]0;owned\x07\x1b[2Jred\r\x9b31m\u202etxt.exe\tend"
    event = {**by_type("run.log"), "stream": "stdout", "message": hostile}
    event.pop("truncated", None)
    (line,) = shown(event)
    assert line.endswith(r"stdout  \x1b]0;owned\x07\x1b[2Jred\x0d\x9b31m\u202etxt.exe" + "\tend")
    (coloured,) = shown(event, colour=True)
    assert "\x1b]0" not in coloured
    assert r"\x1b]0;owned" in coloured


def by_type(wanted: str) -> dict[str, Any]:
    return next(event for event in GOLDEN if event["type"] == wanted)


def test_every_event_ever_written_is_a_line() -> None:
    """Each golden event is one plain line; those of runs, builds and engines in words, not as JSON."""
    lines = shown(*GOLDEN)
    assert len(lines) == len(GOLDEN)
    for event, line in zip(GOLDEN, lines, strict=True):
        assert not CONTROL.search(line), line
        if event["type"].split(".")[0] in {"run", "build"}:
            assert event["type"] not in line, line


@pytest.mark.parametrize(
    ("wanted", "members", "line"),
    [
        ("run.waiting", {"for": "build", "build_id": "build_1"}, "run     waiting for build_1"),
        ("run.started", {"command": ["/a/venv/bin/python", "-m", "x y"]}, "run     started: python -m 'x y'"),
        ("run.started", {"command": []}, "run     started: nothing to execute"),
        ("build.step", {"step": "create_venv", "status": "started", "duration_ms": None}, "build   · create_venv"),
        (
            "build.step",
            {"step": "create_venv", "status": "completed", "duration_ms": 1234, "message": "done"},
            "build   ✓ create_venv  1.23s  done",
        ),
        ("run.log", {"stream": "stderr", "message": "x", "truncated": 9}, "stderr  x … 9 bytes were cut"),
        ("run.log", {"stream": "stdout", "message": "99 %", "overwritten": 7}, "stdout  99 % (the last of 8 states)"),
        (
            "run.log",
            {"stream": "stdout", "message": "x", "created_at": "2025-11-20T04:19:14Z"}
            | {"emitted_at": "2025-11-20T04:19:11.5Z"},
            "stdout  x (written 2.50s before)",
        ),
        ("run.signaled", {"signal": "SIGTERM", "survivors": 2}, "run     sent SIGTERM; processes left: 2"),
        ("run.log_gap", {"lines": 3, "bytes": 2500, "reason": "x"}, "run     3 lines (2.5 kB) were not kept: x"),
        (
            "run.completed",
            {"status": "failed", "exit_code": 2, "duration_ms": 187000, "error_message": "no good\nat all"},
            r"run     ✗ failed · exit code 2 · 3m07s · no good\x0aat all",
        ),
        (
            "build.completed",
            {"status": "active", "exit_code": 0, "duration_ms": 500, "error_message": None, "summary": "1 package"},
            "build   ✓ active · exit code 0 · 0.50s · 1 package",
        ),
    ],
)  # fmt: skip
def test_events_in_words(wanted: str, members: dict[str, Any], line: str) -> None:
    """The tag in a column of its own, then what happened."""
    assert shown({**by_type(wanted), **members}) == [f"   0.00s  {line}"]


def test_an_event_of_a_later_release_is_shown_as_it_is() -> None:
    """A reader does not know every type."""
    event = {**by_type("run.waiting"), "type": "run.teleported", "where": "Mars"}
    (line,) = shown(event)
    assert "run.teleported {" in line
    assert '"where":"Mars"' in line


def test_times_count_from_the_first_event() -> None:
    first, second = by_type("run.created"), by_type("run.completed")
    lines = shown(
        {**first, "created_at": "2025-11-20T04:19:05.500000Z"}, {**second, "created_at": "2025-11-20T04:21:00.750000Z"}
    )
    assert [line.split()[0] for line in lines] == ["0.00s", "1m55s"]


def test_colour_is_for_terminals() -> None:
    """Warnings and errors stand out where there is colour; elsewhere there is not one escape character."""
    warning = {**by_type("run.log"), "stream": "stderr", "message": "warning: odd"}
    assert "\x1b[33mwarning: odd\x1b[0m" in shown(warning, colour=True)[0]
    assert not any("\x1b" in line for line in shown(*GOLDEN))


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    """A wide character takes two places; a name with an escape sequence takes those that are visible."""
    out = io.StringIO()
    Screen(out).columns(["NAME", "STATUS"], [["企鹅", "failed"], ["\x1b[1m", "active"]])
    assert out.getvalue().splitlines() == ["NAME     STATUS", "企鹅     failed", r"\x1b[1m  active"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (53098, "53.1 kB"), (10**9, "1.0 GB")]
)
def test_sizes(count: int, text: str) -> None:
    assert output.size(count) == text


def test_a_problem_names_its_fields() -> None:
    """Title and detail on one line; every field where there are several."""
    out = io.StringIO()
    fields = [{"path": "options.timeout_s", "message": "too small"}, {"path": "color", "message": "not\x07known"}]
    document = {"status": 422, "title": "The body is not valid", "detail": "Two fields.", "errors": fields}
    Screen(out).problem(ProblemError(document))
    assert out.getvalue().splitlines() == [
        "error: The body is not valid. Two fields.",
        "  options.timeout_s: too small",
        r"  color: not\x07known",
    ]


# What scripts get


@pytest.fixture(scope="module")
def actor(service: Service) -> str:
    """A config whose engine does what its argument says."""
    with service.http as http:
        return engine.actor(http)


def ade(service: Service, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    command = [sys.executable, "-m", "service.cli", *arguments]
    done = subprocess.run(command, env=service.env, capture_output=True, text=True, timeout=60, check=False)
    assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done


def document(service: Service, *arguments: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    (line,) = ade(service, *arguments, "--json", code=code).stdout.splitlines()
    return orjson.loads(line)


def test_from_a_package_to_its_artifacts(service: Service) -> None:
    """The way of a user: register, run on a file, look at it, list what it left."""
    ade(service, "configs", "add", str(PENGUINS), "--workspace", "cli")
    again = ade(service, "configs", "add", str(PENGUINS), "--workspace", "cli").stdout
    assert "penguins is unchanged" in again
    (config,) = document(service, "configs", "list", "-w", "cli")["data"]

    ran = ade(service, "runs", "start", "penguins", "-w", "cli", "--input", str(INPUT))
    assert re.search(r"^ +\d+\.\d\ds  stdout  344/344 rows$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ +\d+\.\d\ds  build   ✓ create_venv  \d", ran.stdout, re.MULTILINE)
    assert "✓ succeeded · exit code 0 · " in ran.stdout.splitlines()[-1]
    assert "uploaded penguins_raw.csv (53.1 kB)" in ran.stderr

    (run,) = document(service, "runs", "list", "-w", "cli", "--config", "penguins")["data"]
    assert run["config_id"] == config["id"]
    assert document(service, "runs", "show", run["id"]) == run
    assert document(service, "runs", "wait", run["id"]) == run
    left = document(service, "runs", "artifacts", run["id"])["data"]
    assert sorted(artifact["name"] for artifact in left) == ["chart.svg", "result.json", "tidy.csv"]
    assert "stdout  344/344 rows" in ade(service, "runs", "logs", run["id"]).stdout
    last = document(service, "runs", "logs", run["id"], "--tail", "1")
    assert document(service, "runs", "logs", run["id"], "--grep", last["message"])["id"] == last["id"]
    assert last["message"] in ade(service, "runs", "logs", run["id"], "--grep", last["message"].upper(), "-i").stdout
    assert last["message"] in ade(service, "runs", "logs", run["id"], "--around", str(last["id"])).stdout
    assert ade(service, "runs", "logs", run["id"], "--grep", "no penguin says so", code=1).stdout == ""
    ade(service, "runs", "logs", run["id"], "--grep", "x", "--tail", "1", code=2)

    stats = document(service, "stats", "-w", "cli")
    assert (stats["workspace_id"], stats["runs"]["durations"]["p50_ms"]) == ("cli", run["duration_ms"])
    assert "runs: 1 (1 succeeded)\n  half of those that went well took" in ade(service, "stats", "-w", "cli").stdout

    (build,) = document(service, "builds", "list", "-w", "cli")["data"]
    assert build["id"] == run["build_id"]
    assert document(service, "builds", "show", build["id"]) == build


def test_the_stream_as_json_is_the_log_file(service: Service, actor: str) -> None:
    """I4: `--json` prints the lines of the stream byte for byte, and nothing else."""
    ran = ade(service, "runs", "start", actor, "--json", "--arg", "print('größer \\u2028 🐧')")
    lines = ran.stdout.encode().splitlines(keepends=True)
    run_id = orjson.loads(lines[0])["run_id"]
    with service.http as http:
        assert b"".join(lines) == http.get(f"/runs/{run_id}/logfile").content


@pytest.mark.parametrize("lines", ["0", "2", "1000"])
def test_tail_begins_with_the_last_lines(service: Service, actor: str, lines: str) -> None:
    """`tail` of a run that has ended shows its last lines and leaves with its exit code."""
    with service.http as http:
        run, _ = engine.run(http, actor, "print('a'); print('b'); print('c'); sys.exit(4)")
    printed = ade(service, "runs", "tail", run["id"], "--lines", lines, code=1).stdout
    found = re.findall(r"stdout  (\w)$", printed, re.MULTILINE)
    assert found == {"0": [], "2": ["b", "c"], "1000": ["a", "b", "c"]}[lines]
    assert "✗ failed · exit code 4" in printed or lines == "0"


def test_detach_watch_and_cancel(service: Service, actor: str) -> None:
    """A run that is started and left can be watched, and stopped; who watches sees each change and the end."""
    run = document(service, "runs", "start", actor, "--detach", "--arg", "print('here', flush=True); time.sleep(60)")
    with service.http as http:
        engine.wait_for_event(http, run["id"], engine.says("here"))
    with running(service, "runs", "watch", run["id"], "--json") as watching:
        canceled = document(service, "runs", "cancel", run["id"], "--reason", "enough")
        assert canceled["cancel_requested_at"] is not None
        stdout, _ = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert orjson.loads(stdout.splitlines()[-1])["status"] == "canceled"
    refused = ade(service, "runs", "cancel", run["id"], code=2)
    assert refused.stderr.startswith("error: It has ended already. ")


@contextmanager
def running(service: Service, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, while it runs."""
    command = [sys.executable, "-m", "service.cli", *arguments]
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # tests in the background ignore it, and pass that on
    process = subprocess.Popen(command, env=service.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_until(process: subprocess.Popen[bytes], wanted: bytes) -> bytes:
    """What the process says up to a line with these bytes."""
    assert process.stdout is not None
    said = b""
    for line in process.stdout:
        said += line
        if wanted in line:
            return said
    raise AssertionError(f"it never said {wanted!r}: {said!r}")


def test_ctrl_c_detaches(service: Service, actor: str) -> None:
    """Ctrl-C leaves the run alone, and says how to come back and how to stop it."""
    with running(service, "runs", "start", actor, "--arg", "print('here', flush=True); time.sleep(60)") as following:
        said = read_until(following, b"here\n")
        following.send_signal(signal.SIGINT)
        _, stderr = following.communicate(timeout=60)
    found = re.search(rb"run_\w+", said)
    assert found is not None
    run_id = found[0].decode()
    assert following.returncode == 130
    assert f"ade runs tail {run_id}" in stderr.decode()
    assert f"ade runs cancel {run_id}" in stderr.decode()
    assert document(service, "runs", "show", run_id)["status"] == "running"
    ade(service, "runs", "cancel", run_id)
    assert document(service, "runs", "wait", run_id, code=1)["status"] == "canceled"


def test_a_build_is_followed(service: Service, actor: str) -> None:
    """`builds start` shows the steps and leaves with 0; asked again it gives the same build; a broken one leaves 1."""
    made = ade(service, "builds", "start", actor, "--force").stdout
    assert "✓ verify_imports" in made
    build = document(service, "builds", "start", actor, "--no-wait")
    assert build["id"] in made
    assert build["status"] == "active"
    assert "✓ create_venv" in ade(service, "builds", "tail", build["id"]).stdout
    with service.http as http:
        broken = engine.register(http, engine.package("broken", "", requires='["no-such-package==9.9.9"]'))
    failed = ade(service, "builds", "start", broken["id"], code=1).stdout
    assert "✗ failed" in failed.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "show", "run_unknown"], "There is no such thing. There is no run run_unknown."),
        (["runs", "start", "nobody"], "There is no config nobody in the workspace default"),
        (["runs", "tail", "../../etc"], "error: "),
        (["runs", "list", "--status", "blue"], "`status` is one or several of"),
        (["configs", "add", "."], "is not a config package: it has no pyproject.toml"),
        (["configs", "add", "no-such-folder"], "no-such-folder"),
        (["runs", "start"], "Missing argument"),
        (["runs", "start", "x", "--timeout", "soon"], "--timeout"),
    ],
)
def test_what_is_wrong_is_said_on_stderr(service: Service, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit code 2, nothing on stdout, and the reason on stderr, for scripts too."""
    arguments = [str(tmp_path) if argument == "." else argument for argument in arguments]
    done = ade(service, *arguments, "--json", code=2)
    assert done.stdout == ""
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("wrong", "arguments", "message"),
    [
        ({}, ["serve", "--port", "99999"], "--port"),
        ({"ADE_DATABASE_URL": "mysql://x/y"}, ["db", "status"], "ADE_DATABASE_URL: an address begins with postgresql"),
        ({"ADE_OTLP_ENDPOINT": "localhost:4318"}, ["serve"], "ADE_OTLP_ENDPOINT: an address begins with http"),
        ({"ADE_DATA_DIR": "a-file/data"}, ["db", "status"], "a-file/data: Not a directory"),
        ({"ADE_DATA_DIR": "data", "ADE_RUNS_DIR": "a-file"}, ["worker"], "a-file: File exists"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    tmp_path: Path, wrong: dict[str, str], arguments: list[str], message: str
) -> None:
    """Exit code 2 and one sentence. Each was seen to end in a traceback, or in spans that nobody got."""
    (tmp_path / "a-file").touch()
    env = {"PATH": os.environ["PATH"], **wrong}
    command = [sys.executable, "-m", "service.cli", *arguments]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_wrong_option_names_its_field(service: Service, actor: str) -> None:
    refused = ade(service, "runs", "start", actor, "--timeout", "999999999", code=2)
    assert "`options.timeout_s`" in refused.stderr


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "127.0.0.1", "http://["])
def test_a_service_that_is_not_there(service: Service, url: str) -> None:
    """Exit code 3 and what to do, whatever ADE_URL is."""
    elsewhere = replace(service, env={**service.env, "ADE_URL": url})
    done = ade(elsewhere, "runs", "list", code=3)
    assert done.stdout == ""
    assert "Is `ade serve` running?" in done.stderr


@pytest.mark.parametrize(
    ("command", "env", "message"),
    [
        ("runs list --json > /dev/full", {}, "error: No space left on device\n"),
        ("log head > /dev/full", {}, "error: No space left on device\n"),
        (
            "log head",
            {"ADE_DATABASE_URL": None, "ADE_DATA_DIR": "/dev/null/x"},
            "error: /dev/null/x: Not a directory\n",
        ),
        ("worker", {"ADE_DATA_DIR": "/dev/null/x"}, "Not a directory\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    service: Service, actor: str, command: str, env: dict[str, str | None], message: str
) -> None:
    """A full disk, or a folder that cannot be made: exit code 2, and no traceback."""
    assert actor  # there is something to list
    known = {**service.env, "PATH": os.environ["PATH"], "ADE_DATABASE_URL": service.database_url, **env}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m service.cli {command}"],
        env={name: value for name, value in known.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.endswith(message)


def test_a_reader_that_leaves_is_no_error(service: Service, actor: str) -> None:
    """`ade … | head -1` ends without a traceback."""
    with service.http as http:
        run, _ = engine.run(http, actor, "print('x\\n' * 20000)")
    command = f"{sys.executable} -m service.cli runs logs {run['id']} | head -1"
    env = {**service.env, "PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("stdout  x\n")
    assert done.stderr == ""


def test_the_api_dies_and_nothing_is_lost(server: PostgreSQL) -> None:
    """I3, I12: kill -9 of the API in the middle; the follower comes back by cursor, and prints every line once."""
    url = server.copy()
    with reachable_folder() as data, running_service(url, data) as service:
        with service.http as http:
            config_id = engine.actor(http)
        script = f"[(print(n, flush=True), n == 30 and wait_for('{data}/go')) for n in range(60)]"
        with running(service, "runs", "start", config_id, "--arg", script) as following:
            said = read_until(following, b"stdout  30\n")
            os.kill(child(service.process.pid, b"\0api\0"), signal.SIGKILL)
            assert following.stderr is not None
            assert b"Going on in" in following.stderr.readline()
            (data / "go").touch()
            rest, _ = following.communicate(timeout=60)
    server.drop(url)
    assert following.returncode == 0
    assert re.findall(rb"stdout  (\d+)\n", said + rest) == [b"%d" % n for n in range(60)]


def child(pid: int, wanted: bytes) -> int:
    """The child of a process whose command line holds these bytes."""
    for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if wanted in Path(f"/proc/{found}/cmdline").read_bytes():
            return int(found)
    raise AssertionError(f"{pid} has no child {wanted!r}")
