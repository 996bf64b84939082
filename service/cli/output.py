"""What people see: events as lines, lists as columns, problems as a sentence or two.

Nothing that an engine or another user wrote reaches the terminal as a command to it: see :func:`clean`.
"""

import io
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import orjson
from rich.cells import cell_len
from rich.console import Console

from eventstore.clock import now

_HOSTILE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but the tab, and what turns the direction of writing: a line must look like what it is."""
_STYLES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "magenta": 35, "cyan": 36}
_TAGS = {"build": "magenta", "run": "cyan", "stderr": "yellow", "system": "blue", "engine": "green"}
_LEVELS = {"warning": "yellow", "warn": "yellow", "error": "red", "critical": "red", "fatal": "red", "debug": "dim"}
_LOUD = re.compile(r"\s*(?:(error|fatal|critical|traceback)|(warn(?:ing)?))\b", re.IGNORECASE)
GOOD, BAD = "✓", "✗"
GOOD_ENDS = frozenset({"succeeded", "active"})
_STATUSES = {"succeeded": "green", "active": "green", "failed": "red", "canceled": "yellow", "running": "cyan"}

Entry = Mapping[str, Any]


def clean(text: str) -> str:
    """The text with every character that could command a terminal, end the line or turn it around made visible."""
    return _HOSTILE.sub(_visible, text)


def _visible(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


# Numbers


def elapsed(seconds: float) -> str:
    """A duration in few characters: `0.42s`, `3m07s`, `1h02m`."""
    if seconds < 100:
        return f"{seconds:.2f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def size(count: int) -> str:
    """A number of bytes, in decimal units."""
    if count < 1000:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.1f} {' kMGT'[power]}B"


def ago(moment: float | None) -> str:
    """How long ago a Unix time was."""
    if moment is None:
        return "-"
    seconds = max(0, int(now() - moment))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def took(thing: Entry) -> str:
    """The duration of a run, a build or one of their events; empty where it has none."""
    return elapsed(thing["duration_ms"] / 1000) if thing.get("duration_ms") is not None else ""


# Events: each becomes a style and a text, by the part of its type behind the kind; runs and builds are twins


def _created(event: Entry) -> tuple[str, str]:
    inputs = ", ".join(given["name"] for given in event.get("inputs", ()))
    what = f"{event.get('run_id') or event.get('build_id')} of {event['config_id']} version {event['config_version']}"
    return "", what + (f", {event['reason']}" if "reason" in event else "") + (f", with {inputs}" if inputs else "")


def _started(event: Entry) -> tuple[str, str]:
    if "python" in event:
        return "", f"started with Python {event['python']}"
    program, *arguments = event["command"] or ["nothing to execute"]
    return "", f"started: {shlex.join([Path(program).name, *arguments]) if arguments else program}"


def _step(event: Entry) -> tuple[str, str]:
    parts = (event["step"], took(event), event.get("message"))
    text = "  ".join(part for part in parts if part)
    match event["status"]:
        case "completed":
            return "green", f"{GOOD} {text}"
        case "failed":
            return "red", f"{BAD} {text}"
        case _:
            return "dim", f"· {text}"


def _log(event: Entry) -> tuple[str, str]:
    text = event["message"]
    if event.get("truncated"):
        text += f" … {event['truncated']} bytes were cut"
    if event.get("overwritten"):
        text += f" (the last of {event['overwritten'] + 1} states)"
    if event.get("emitted_at"):
        text += f" (written {_waited(event)} before)"
    quiet = "dim" if event["type"] == "build.log" else ""
    return _loudness(event["stream"], text) or quiet, text


def _waited(event: Entry) -> str:
    """How long a line waited, from when the engine wrote it to when it was stored."""
    stored, written = (datetime.fromisoformat(event[name]) for name in ("created_at", "emitted_at"))
    return elapsed((stored - written).total_seconds())


def _loudness(stream: str, text: str) -> str:
    loud = _LOUD.match(text) if stream == "stderr" else None
    return "" if loud is None else "red" if loud[1] else "yellow"


def _lost(event: Entry) -> tuple[str, str]:
    then = "it is tried again" if event["next"] == "retry" else "it is given up"
    return "yellow", f"{event['worker_id']} was lost ({event['reason']}); {then}"


def _completed(event: Entry) -> tuple[str, str]:
    parts = [event["status"]]
    if event.get("exit_code") is not None:
        parts.append(f"exit code {event['exit_code']}")
    parts += [took(event), event.get("error_message") or event.get("summary")]
    good = event["status"] in GOOD_ENDS
    return "green" if good else "red", f"{GOOD if good else BAD} {' · '.join(part for part in parts if part)}"


_TEXTS: Mapping[str, Callable[[Entry], tuple[str, str]]] = {
    "created": _created,
    "waiting": lambda event: ("dim", f"waiting for {event.get('build_id') or event['for']}"),
    "started": _started,
    "step": _step,
    "log": _log,
    "cancel_requested": lambda event: (
        "yellow",
        f"{event['requested_by']} asked to cancel" + (f": {event['reason']}" if event.get("reason") else ""),
    ),
    "signaled": lambda event: ("yellow", f"sent {event['signal']}; processes left: {event['survivors']}"),
    "lost": _lost,
    "log_gap": lambda event: (
        "yellow",
        f"{event['lines']} lines ({size(event['bytes'])}) were not kept: {event['reason']}",
    ),
    "artifact": lambda event: ("", f"left {event['name']}  {size(event['size'])}  {event['media_type']}"),
    "completed": _completed,
}


def words(event: Entry) -> tuple[str, str, str]:
    """An event as tag, style and text. One that this release does not know is shown as it is."""
    kind, _, what = event["type"].partition(".")
    if kind == "engine":
        text = event.get("message")
        style = _LEVELS.get(str(event.get("level")).lower(), "")
        return kind, style, text if isinstance(text, str) else f"{event['type']} {_payload(event)}"
    if what == "log" and "message" not in event:
        return kind, "dim", "[redacted]"
    if kind not in {"run", "build"} or what not in _TEXTS:
        return kind, "dim", f"{event['type']} {_payload(event)}"
    style, text = _TEXTS[what](event)
    tag = kind if event["type"] != "run.log" else event["stream"]
    return tag, style, text


def _payload(event: Entry) -> str:
    envelope = {"id", "object", "type", "run_id", "build_id", "seq", "created", "created_at", "stream"}
    return orjson.dumps({name: value for name, value in event.items() if name not in envelope}).decode()


class Screen:
    """Where lines for people go: with colour on a terminal, without a single escape sequence elsewhere."""

    def __init__(self, out: TextIO | None = None, *, colour: bool | None = None, since: str | None = None) -> None:
        self.out = sys.stdout if out is None else out
        if isinstance(self.out, io.TextIOWrapper):
            self.out.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 is no reason to stop
        console = Console(file=self.out)
        self._colour = console.is_terminal and not console.no_color if colour is None else colour
        self._since = None if since is None else datetime.fromisoformat(since)

    def paint(self, text: str, style: str) -> str:
        """The text, cleaned, in a style where there is colour."""
        text = clean(text)
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour and style else text

    def print(self, text: str = "") -> None:
        """A line that was made by `paint`, or is our own."""
        self.out.write(text + "\n")
        self.out.flush()

    def event(self, event: Entry) -> None:
        """One line for an event; the time is counted from the first one, or from `since`."""
        at = datetime.fromisoformat(event["created_at"])
        self._since = self._since or at
        self._line(f"{elapsed((at - self._since).total_seconds()):>8}", *words(event))

    def entry(self, entry: Entry) -> None:
        """One line for an entry of ``/logs``."""
        tag = "engine" if entry["level"] is not None else entry["stream"]
        at = datetime.fromtimestamp(entry["created"], UTC)
        style = _LEVELS.get(entry["level"] or "", "") if tag == "engine" else _loudness(tag, entry["message"])
        self._line(f"{at:%H:%M:%S}", tag, style, entry["message"])

    def _line(self, time: str, tag: str, style: str, text: str) -> None:
        tag = self.paint(f"{tag:<6}", _TAGS.get(tag, ""))
        self.print(f"{self.paint(time, 'dim')}  {tag}  {self.paint(text, style)}".rstrip())

    def columns(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A list, each column as wide as it needs to be."""
        table = [list(heads), *([clean(cell) for cell in row] for row in rows)]
        widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
        for number, row in enumerate(table):
            cells = [cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
            style = "dim" if number == 0 else ""
            self.print("  ".join(self.paint(c, style or _STATUSES.get(c.strip(), "")) for c in cells).rstrip())

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Names and values, a line each; what is None or empty is left out."""
        shown = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
        width = max(map(len, shown))
        for name, value in shown.items():
            text = value if isinstance(value, str) else orjson.dumps(value).decode()
            self.print(f"{self.paint(f'{name:<{width}}', 'dim')}  {self.paint(text, _STATUSES.get(text, ''))}")

    def problem(self, error: Exception) -> None:
        """What went wrong, in one or two lines, with the path of every field that is to blame."""
        from service.client import ProblemError  # operators' commands have no use for a client

        document = error.problem if isinstance(error, ProblemError) else {}
        title = document.get("title")
        self.print(self.paint(f"error: {f'{title}. ' if title else ''}{error}", "red"))
        fields = document.get("errors", ())
        for field in fields if len(fields) > 1 else ():
            self.print(self.paint(f"  {field['path']}: {field['message']}", "red"))


def json(document: Any) -> None:
    """A JSON document, on a line of its own."""
    raw(orjson.dumps(document))


def raw(line: bytes) -> None:
    """A line of JSON, byte for byte as it came."""
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()
