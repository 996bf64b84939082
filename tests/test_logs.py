"""The log of the processes: its fields, its two forms, and what never stands in it."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from eventstore.statements import texts
from service import logs
from service.logs import fields, log_to_stderr
from tests import engine
from tests.conftest import Service

SECRET, PASSWORD, KEY, TOKEN = 'a "secret"\\ key', "pa55word", "key of a receiver", "token-1234"


class Screen(io.StringIO):
    """What a process writes to, a terminal or not."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Screen]]:
    """Lets a process begin to log, with some settings; what it logs to."""
    handlers, level = logging.root.handlers[:], logging.root.level

    def begun(process: str | None = "worker", *, terminal: bool = False, **settings: str) -> Screen:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        screen = Screen(terminal=terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        log_to_stderr(process)
        return screen

    yield begun
    logging.root.handlers[:], logging.root.level = handlers, level
    logs._ALWAYS.clear()


def told(screen: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in screen.getvalue().splitlines()]


def test_a_line_has_the_fields_of_its_place_and_its_own(begin: Callable[..., Screen]) -> None:
    """Those that are bound around it, those that it brings along, and whose it is; a library's are the same."""
    screen = begin()
    with fields(run_id="run_1", worker_id="w"):
        logging.getLogger("ade.worker").info("%s begins", "it", extra={"status": "running"})
    logging.getLogger("some.library").warning("hm")
    logging.getLogger("ade.worker").debug("not said")
    first, second = told(screen)
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "it begins", "level": "info", "module": "ade.worker", "process": "worker",
        "run_id": "run_1", "worker_id": "w", "status": "running",
    }  # fmt: skip
    assert (second["module"], second["level"], "run_id" in second) == ("some.library", "warning", False)


@pytest.mark.parametrize(
    ("process", "terminal", "format_", "as_json"),
    [
        ("api", False, "auto", True),
        ("api", True, "auto", False),
        ("api", True, "json", True),
        ("api", False, "text", False),
        (None, False, "auto", False),  # a command speaks to a person, into a pipe too
    ],
)
def test_people_get_text_and_machines_json(
    begin: Callable[..., Screen], process: str | None, terminal: bool, format_: str, as_json: bool
) -> None:
    """By what stderr is, by who speaks, and by ADE_LOG_FORMAT."""
    screen = begin(process, terminal=terminal, ADE_LOG_FORMAT=format_)
    logging.getLogger("ade").warning("line %d", 1)
    line = screen.getvalue()
    assert line.startswith("{") == as_json
    assert "line 1" in line
    assert ("\x1b[" in line) == (terminal and not as_json)


def test_the_level_is_a_setting(begin: Callable[..., Screen]) -> None:
    """ADE_LOG_LEVEL=debug says everything, error little."""
    for level, count in (("debug", 2), ("warning", 1), ("error", 0)):
        screen = begin(ADE_LOG_LEVEL=level)
        logging.getLogger("ade").debug("one")
        logging.getLogger("ade").warning("two")
        assert len(told(screen)) == count


def _fail(value: str) -> None:
    held_in_a_variable = value.swapcase()
    raise ValueError(f"not this: {held_in_a_variable.swapcase()}")


@pytest.mark.parametrize("format_", ["json", "text"])
@pytest.mark.parametrize("value", [SECRET, PASSWORD, KEY, TOKEN])
def test_no_secret_is_in_a_line(begin: Callable[..., Screen], value: str, format_: str) -> None:
    """Wherever it would stand: in the message, in a field, in a bound one, in an exception and its traceback; nor
    is the value of a variable. Seen to fail without the mask, and with structlog's own way with exceptions."""
    screen = begin(
        ADE_LOG_FORMAT=format_,
        ADE_SECRET_MINE=SECRET,
        ADE_DATABASE_URL=f"postgresql://ade:{PASSWORD}@db.example/ade",
        ADE_OTLP_HEADERS="x-api-key=key%20of%20a%20receiver",
        ADE_MASK_PATTERNS="token-[0-9]+",
    )
    logger = logging.getLogger("ade")
    with fields(bound=value):
        logger.info("it is %s", value, extra={"field": value, "nested": {"deep": [value]}})
        try:
            _fail(value)
        except ValueError:
            logger.exception("it broke")
    said = screen.getvalue()
    assert "***" in said
    assert value not in said
    assert value.swapcase() not in said
    assert json.dumps(value)[1:-1] not in said
    assert repr(value)[1:-1] not in said
    assert "ValueError" in said


def test_a_service_tells_what_it_is_what_fails_and_what_became_of_runs(service: Service, http: httpx.Client) -> None:
    """Versions and routes at the start; a request that fails by its route and its id, without its query; a run with
    its worker, its status and its reason; and every line is JSON."""
    run, _ = engine.run(http, engine.actor(http), "sys.exit(3)")
    answer = http.get("/runs/run_unknown", params={"signature": "of-a-signed-url"})
    # A request is told of when its answer has gone.
    engine.eventually(lambda: answer.headers["X-Request-ID"] in service.log.read_text(), "the line of the request")
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]

    def line(**wanted: Any) -> dict[str, Any]:
        return next(line for line in lines if wanted.items() <= line.items())

    versions = line(process="api", event="the API begins")
    assert versions.keys() >= {"ade", "python", "postgresql"}
    assert versions["schema"] == texts("migrations")[-1][0]
    assert "GET /api/v1/runs/{id}" in line(process="api", event="routes are mounted")["routes"]
    failed = line(module="ade.access", request_id=answer.headers["X-Request-ID"])
    assert (failed["route"], failed["status"], failed["method"]) == ("/api/v1/runs/{id}", 400, "GET")
    assert "of-a-signed-url" not in service.log.read_text()
    ended = line(run_id=run["id"], event="the run has ended")
    assert (ended["process"], ended["status"], ended["stop_reason"]) == ("worker", "failed", "failed")
    assert ended["worker_id"] == line(run_id=run["id"], event="run.started")["worker_id"]
    assert line(run_id=run["id"], event="run.created")["actor"] == "anonymous"
