"""The log of the processes themselves, on stderr: for a person on a terminal, a JSON object a line elsewhere.

Modules speak by ``logging``, as libraries do; structlog is the one pipe behind it that makes lines of that. The fields
of a line are those that are bound where it is said (:func:`fields`: ``request_id``, ``worker_id``, ``run_id`` …) and
those that it brings along (``extra=``). No secret that the settings know passes, in whatever field, message or
traceback it stands; tracebacks hold no values of variables.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from structlog.typing import EventDict

from projections import events
from service.settings import Settings
from service.work.masking import Mask, credentials, patterns_of, unmaskable

logger = logging.getLogger("ade.events")

FIELD_CHARACTERS = 160
"""More of a field is not shown on a terminal: lists of routes are for machines."""


def log_to_stderr(process: str | None = None, *, quiet: bool = False) -> None:
    """From here on log lines go to stderr. ``process``: the one of a service that speaks; a command has none, and
    speaks to a person unless it is told otherwise."""
    settings = Settings()
    as_json = settings.log_format == "json"
    if settings.log_format == "auto":
        as_json = process is not None and not sys.stderr.isatty()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Pipe(as_json=as_json, colors=sys.stderr.isatty(), mask=_mask(settings)))
    level = logging.WARNING if quiet else logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every query that we cancel on purpose
    for chatty in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
    if process is not None:
        always(process=process)


_ALWAYS: dict[str, str] = {}


def always(**found: str) -> None:
    """Everything that this process says has these fields from here on."""
    _ALWAYS.update(found)


@contextmanager
def fields(**found: Any) -> Iterator[None]:
    """What is said in the block, and in the tasks that are begun in it, has these fields."""
    with structlog.contextvars.bound_contextvars(**found):
        yield


class _Pipe(structlog.stdlib.ProcessorFormatter):
    def __init__(self, *, as_json: bool, colors: bool, mask: Mask) -> None:
        meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
        renderer: Sequence[Any] = (
            [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
            if as_json
            else [_shorten, _console(colors=colors)]
        )
        super().__init__(
            processors=[meta, *renderer],
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                _module,
                structlog.processors.TimeStamper(fmt="iso" if as_json else "%H:%M:%S", utc=as_json),
            ],
        )
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask.lines(super().format(record))


def _console(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    # The renderer's own way with exceptions would show the values of variables, secrets among them.
    return structlog.dev.ConsoleRenderer(
        colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


def _module(_logger: Any, _name: str, event: EventDict) -> EventDict:
    event["module"] = event["_record"].name
    for name, value in _ALWAYS.items():
        event.setdefault(name, value)
    event.pop("color_message", None)  # uvicorn says some things twice
    return event


def _shorten(_logger: Any, _name: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if name not in {"event", "exc_info"} and len(text := str(value)) > FIELD_CHARACTERS:
            event[name] = text[:FIELD_CHARACTERS] + "…"
    return event


def _mask(settings: Settings) -> Mask:
    known = [secret for secret in settings.secrets.values() if unmaskable(secret) is None]
    known += credentials({"url": settings.database_url or "", **settings.installer_env})
    known += [value for value in settings.otlp.values() if unmaskable(value) is None]
    return Mask(known, patterns_of(settings.mask_patterns))


def tell(stream: str, said: events.Payload) -> None:
    """A line about what became of a run or a build, by whoever has appended that."""
    kind = said.wire.partition(".")[0]
    found = {f"{kind}_id": stream}
    match said:
        case events.RunCompleted() | events.BuildCompleted():
            found |= {"status": said.status, "stop_reason": said.stop_reason}
            logger.info("the %s has ended", kind, extra=found)
        case events.Lost():
            found |= {"lost_worker_id": said.worker_id, "reason": said.reason, "next": said.next}
            logger.warning("the %s has lost its worker", kind, extra=found)
        case events.LogGap():
            found |= {"lines": str(said.lines), "bytes": str(said.bytes), "reason": said.reason}
            logger.warning("output of the %s was not kept", kind, extra=found)
        case events.RunCreated() | events.BuildCreated() | events.CancelRequested():
            logger.info("%s", said.wire, extra={**found, "actor": said.requested_by})
        case events.RunStarted() | events.BuildStarted():
            logger.info("%s", said.wire, extra={**found, "worker_id": said.worker_id})
