"""What must not be read in a log: the values of secrets, in every usual writing, and what an operator's patterns match.

What holds:

- A secret is found as it is, and as it comes out of JSON, of URL encoding (both also nested), of hexadecimal and of
  base64 (the standard and the URL-safe alphabet, at any of the three alignments, wrapped at 64 or 76 columns).
- A secret of several lines is found line by line; lines under `SECRET_LEAST_BYTES` are not.
- All that any secret or pattern covers is hidden, together where they overlap: no order decides what shows.
- What is masked depends on the line alone. A line that is too long to be held is masked with all that a match needs of
  it in sight, see `LineMask`.

It guards against accidents. An engine that wants to tell what it knows can write it in a way that nobody looks for.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

SECRET_LEAST_BYTES: Final = 6
"""A shorter secret would be found, and hidden, in words that have nothing to do with it."""
SECRET_MOST_BYTES: Final = 16 * 1024
"""The longest writing of a longer one would not fit into `MATCH_BYTES`."""
MATCH_BYTES: Final = 64 * 1024
"""Of a line that is too long to be held: what begins here is looked for in as much again."""
HIDDEN: Final = "***"

_PLAIN: Final = r"[A-Za-z0-9._-]"  # no encoder writes these in another way
_CONTEXT_CHARS: Final = 256  # for what a pattern asks of the text before its match
_CONTROL: Final = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r"}
_WRAPPED_COLUMNS: Final = (64, 76)

Span = tuple[int, int]


class BadPattern(ValueError):
    """A pattern that cannot be used, and why."""


class Mask:
    """Hides the values of `secrets`, and what the regular expressions `patterns` match. Raises BadPattern."""

    def __init__(self, secrets: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        self._forms = [
            (max(re.findall(f"{_PLAIN}+", text), key=len, default=""), re.compile(form))
            for text, form in {pair for secret in secrets for pair in _forms(secret)}
        ]
        self._patterns = [_compiled(pattern) for pattern in patterns]

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._forms or self._patterns)

    def text(self, text: str) -> str:
        """One line, or another text that is looked at as a whole."""
        spans = self.spans(text)
        return "".join(_pieces(text, 0, spans)) if spans else text

    def lines(self, text: str) -> str:
        """Lines, joined by newlines. Secrets are looked for in all of them at once: no match holds a newline."""
        if self._patterns:
            return "\n".join(map(self.text, text.split("\n")))
        return self.text(text)

    def may_hide(self, text: str) -> bool:
        """Whether there may be something to hide in a text that holds the lines or values in question."""
        return bool(self._patterns) or any(needle in text for needle, _ in self._forms)

    def value(self, value: Any) -> Any:
        """A JSON value, hidden in strings, in keys, and in numbers, which become strings by that."""
        if not self:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.value(member) for key, member in value.items()}
        if isinstance(value, list):
            return [self.value(member) for member in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            written = repr(value)
            hidden = self.text(written)
            return value if hidden == written else hidden
        return value

    def spans(self, text: str, start: int = 0) -> list[Span]:
        """What to hide from `start` on, as places in the text: in order, apart from each other."""
        found = [match.span() for needle, form in self._forms if needle in text for match in form.finditer(text, start)]
        for pattern in self._patterns:
            found += [match.span() for match in pattern.finditer(text, start) if match.end() > match.start()]
        if len(found) > 1:
            found = list(_united(sorted(found)))
        return found


NOTHING: Final = Mask()
"""Hides nothing."""


class LineMask:
    """Masks one long line that comes in pieces, in bounded memory: feed it, then end it; then it takes the next line.

    It looks at `2 * MATCH_BYTES` at a time and decides about the first half of them, so where the pieces were cut does
    not matter. A match that has no end in sight hides the rest of the line.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._begin()

    def _begin(self) -> None:
        self._before = ""  # the end of what was decided
        self._held = bytearray()
        self._endless = False

    def feed(self, piece: bytes | bytearray) -> bytes:
        """What is certain of the line, masked."""
        if self._endless:
            return b""
        self._held += piece
        told: list[str] = []
        while len(self._held) >= 2 * MATCH_BYTES and not self._endless:
            window = _decode(self._held[: 2 * MATCH_BYTES])
            text, start = self._before + window, len(self._before)
            half = start + len(_decode(self._held[:MATCH_BYTES]))
            decided = [span for span in self._mask.spans(text, start) if span[0] < half]
            cut = max(half, decided[-1][1]) if decided else half
            told += _pieces(text[:cut], start, decided)
            self._endless = cut == len(text)
            self._before = text[max(0, cut - _CONTEXT_CHARS) : cut]
            del self._held[: len(_encode(text[start:cut]))]
        if self._endless:
            self._held.clear()
        return _encode("".join(told))

    def end(self) -> bytes:
        """The rest of the line, masked."""
        text, start = self._before + _decode(self._held), len(self._before)
        rest = _encode("".join(_pieces(text, start, self._mask.spans(text, start))))
        self._begin()
        return rest


def patterns_of(text: str | None) -> list[str]:
    """Patterns, as they are written in a setting: one a line, or a JSON list."""
    try:
        listed = json.loads(text or "")
    except ValueError:
        listed = None
    if isinstance(listed, list) and all(isinstance(pattern, str) for pattern in listed):
        return listed
    return [line for line in map(str.strip, (text or "").splitlines()) if line]


def credentials(environment: Mapping[str, str]) -> list[str]:
    """The passwords and tokens in the variables that an installer gets, but for those too short to be hidden."""
    found = [value for name, value in environment.items() if name.upper().endswith("_PASSWORD")]
    for value in environment.values():
        for user, password in re.findall(r"://([^/@:\s]*)(?::([^/@\s]*))?@", value):
            found.append(unquote(password or user))
    return [credential for credential in found if unmaskable(credential) is None]


def unmaskable(secret: str) -> str | None:
    """Why this secret could not be hidden, as the rest of a sentence about it; None when it can."""
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if size < SECRET_LEAST_BYTES or not _lines_of(secret):
        return f"has less than {SECRET_LEAST_BYTES} bytes" + (" in each of its lines" if "\n" in secret else "")
    return f"has more than {SECRET_MOST_BYTES} bytes" if size > SECRET_MOST_BYTES else None


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadPattern(f"the pattern {pattern!r} is no regular expression: {error}") from None
    if compiled.search(""):
        raise BadPattern(f"the pattern {pattern!r} matches nothing at all, and so every place of every line")
    return compiled


def _lines_of(secret: str) -> list[str]:
    return [line for line in map(str.strip, secret.splitlines()) if len(line.encode()) >= SECRET_LEAST_BYTES]


def _forms(secret: str) -> Iterator[tuple[str, str]]:
    """Each text that stands for the secret, and a regular expression for the ways to write that text."""
    texts = {secret.strip(), *_lines_of(secret)}
    for text in texts:
        yield text, _written(text)
    data = secret.strip().encode()
    for digits in (data.hex(), data.hex().upper()):
        yield digits, digits
    encoded = base64.b64encode(data).decode()
    if len(encoded) > min(_WRAPPED_COLUMNS):
        for columns in _WRAPPED_COLUMNS:
            for start in range(0, len(encoded), columns):
                line = encoded[start : start + columns]
                if len(line) > SECRET_LEAST_BYTES:
                    yield line, _written(line)
    for alphabet in (b"+/", b"-_"):
        for before in range(3):
            yield from _inside_base64(data, before, alphabet)


def _inside_base64(data: bytes, before: int, alphabet: bytes) -> Iterator[tuple[str, str]]:
    """Base64 of `data` with `before` bytes in front of it: the characters that are of `data` alone, and one of each
    end that it shares with what stands beside it."""
    encoded = base64.b64encode(bytes(before) + data, alphabet).decode().rstrip("=")
    first = (0, 2, 3)[before]
    last = (before + len(data)) * 8 // 6
    core = encoded[first:last]
    shared = "[A-Za-z0-9+/_-]?"
    after = shared if len(encoded) > last else ""  # where nothing is shared, it is the first one of the next secret
    yield core, (shared if before else "") + _written(core) + after + "={0,2}"


def _written(text: str) -> str:
    """A regular expression for the ways to write a text: as it is, escaped for JSON, encoded for a URL.

    Any number of encodings may lie inside each other: of a backslash there may be many, of `%` also `%25`. A run of
    backslashes is one unit, or the ways to share them out would be tried one by one.
    """
    return "".join(map(_ways, re.findall(rf"{_PLAIN}+|\\+|.", text, re.DOTALL)))


def _ways(unit: str) -> str:
    if re.match(_PLAIN, unit):
        return re.escape(unit)
    character, count = unit[0], len(unit)
    units = character.encode("utf-16-be").hex()
    escaped = "".join(rf"\\{{1,8}}u{units[at : at + 4]}" for at in range(0, len(units), 4))
    in_url = "".join(f"%(?:25){{0,4}}{byte:02x}" for byte in character.encode())
    ways = [f"(?i:{escaped}){{{count}}}", f"(?i:{in_url}){{{count}}}"]
    if character == "\\":
        ways.append(rf"\\{{{count},{16 * count}}}")
    elif character in _CONTROL:
        ways.append(rf"\\{{1,8}}{_CONTROL[character]}")
    else:
        ways.append(rf"\\{{0,8}}{re.escape(character)}")
    if character == "\t":
        ways.append(character)
    if character == " ":
        ways.append(r"\+")
    return f"(?:{'|'.join(ways)})"


def _united(spans: Iterable[Span]) -> Iterator[Span]:
    """Sorted spans, with those that touch made one."""
    start = end = -1
    for first, last in spans:
        if first > end:
            if start >= 0:
                yield start, end
            start, end = first, last
        end = max(end, last)
    if start >= 0:
        yield start, end


def _pieces(text: str, start: int, spans: Iterable[Span]) -> Iterator[str]:
    """The text from `start` on, with what the spans cover replaced."""
    for first, last in spans:
        yield text[start:first]
        yield HIDDEN
        start = last
    yield text[start:]


def _decode(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
