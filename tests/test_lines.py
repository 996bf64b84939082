"""What an engine writes, as facts: nothing lost, nothing forged, whatever the bytes are and however they arrive."""

import json
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.work.lines import ENVELOPE, Fact, Line, LineSplitter, Telemetry, clean
from service.work.masking import NOTHING, Mask

PART, LINE_MAX, TELEMETRY_MAX, STATES_MAX = 8, 30, 60, 3
"""Small limits, so that short input meets them all."""

CHARACTERS = ["a", "\r", "\0", "ü", "€", "😀", "\ufffd", "\u2028", "\x85"]
TORN = [b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"]
PIECES = st.one_of(
    st.sampled_from([character.encode() for character in CHARACTERS]),
    st.sampled_from(TORN),
    st.sampled_from(
        [b"\n", b"\n", b"\r\n", b"\n{", b"{", b'{"event":"engine.a"}', b'\n{"event":"engine.b","n":1}\r\n']
    ),
    st.binary(max_size=6),
    st.integers(1, 70).map(lambda count: b"x" * count),
)
OUTPUT = st.lists(PIECES, max_size=30).map(b"".join)


unhurried = settings(deadline=None)  # other programs share the machine


def split(output: bytes, *cuts: int, mask: Mask = NOTHING, **limits: int) -> list[Fact]:
    """The facts of an output that arrives in chunks, cut at these places."""
    small = {"part_bytes": PART, "line_max_bytes": LINE_MAX, "telemetry_max_bytes": TELEMETRY_MAX}
    splitter = LineSplitter("stdout", mask=mask, **({**small, "states_max": STATES_MAX} | limits))
    edges = [0, *sorted(cut % (len(output) + 1) for cut in cuts), len(output)]
    facts = []
    for begin, end in pairwise(edges):
        facts += splitter.feed(output[begin:end])
    return facts + splitter.close()


State = bytes
"""What was drawn of a line between two CR."""


def lines_of(output: bytes) -> Iterator[tuple[State, int]]:
    """What an output should be told as, the plain way: each state that is kept, and how many it was drawn over."""
    *lines, rest = output.split(b"\n")
    for line in (*lines, *([rest] if rest else [])):
        states = line.split(b"\r")
        stays, kept = False, list[State]()
        for state in states:
            if is_telemetry(state) or len(state) > PART:  # nothing is drawn over these
                yield from ((kept[-1], len(kept) - 1) for _ in kept[:1])
                yield state, 0
                stays, kept = True, []
            elif state.strip():
                kept.append(state)
                if len(kept) > STATES_MAX:
                    yield state, STATES_MAX
                    stays, kept = True, []
        if kept:
            yield kept[-1], len(kept) - 1
        elif not stays:
            yield states[0], 0


def text_of(line: bytes) -> str:
    return line.decode("utf-8", "replace").replace("\0", "\ufffd")


def is_telemetry(line: bytes) -> bool:
    """The plain way: parse with the standard library, then ask for each rule of the contract."""
    if not line.startswith(b"{") or len(line) > TELEMETRY_MAX:
        return False
    try:
        value = json.loads(text_of(line))
    except ValueError:
        return False
    event = value.get("event")
    return isinstance(event, str) and bool(re.fullmatch(r"engine(\.[a-z0-9_]{1,64}){1,8}", event))


def telemetry(line: bytes | str) -> Telemetry | None:
    """The telemetry that this line is, under the limits of production; None when it is a log line, unchanged."""
    data = line.encode() if isinstance(line, str) else line
    [fact] = LineSplitter("stderr").feed(data + b"\n")
    if isinstance(fact, Line):
        assert fact == Line("stderr", text_of(data))
        return None
    return fact


@unhurried
@given(OUTPUT, st.lists(st.integers(min_value=0), max_size=12))
@example(b"x" * 8 + b"\r\n" + b"y" * 8 + b"\r\r\n", list(range(22)))
@example(b"{" + b"x" * 70 + b"\r\n", list(range(80)))
@example(b"x" * 31 + b"\r\n" + b"x" * 30 + b"\r\n", list(range(80)))
@example(b'{"event":"engine.a","a":"' + b"x" * (TELEMETRY_MAX - 27) + b'"}\r\n', list(range(80)))
def test_chunks_do_not_matter(output: bytes, cuts: list[int]) -> None:
    """The facts depend on the bytes, never on where a chunk ended."""
    assert split(output, *cuts) == split(output)


@unhurried
@given(OUTPUT)
@example(b"x" * 29 + "€".encode() + b"\nx\n")
@example(b"x" * PART + b"\r\n")
@example(b"x" * LINE_MAX + b"\r\n" + b"x" * LINE_MAX + b"x\r\n")
@example(b"x" * PART + b'{"event":"engine.a"}\n')
@example(b'{"event":"engine.a","a":"' + b"x" * (TELEMETRY_MAX - 27) + b'"}\r\n')
@example(b"x" * 7 + "😀".encode() + b"\n" + b"x" * 6 + b"\xf0\x9f\x98x\n")
@example(b"\n\n\r\n")
@example(b"  \r\n\r\r\r  a\r\n\rb\rc\r")
@example(b"1\r2\r3\r4\r5\r6\r7\r8\n1\r2\r3\r4\r")
@example(b'1\r2\r{"event":"engine.a"}\r3\r4\n1\r  \r{"event":"engine.a"}\n' + b"1\r" + b"x" * 20 + b"\r\r2\r\n")
def test_nothing_is_lost(output: bytes) -> None:
    """Every line is there, in order: its parts joined are its text, and what was cut off or drawn over is counted."""
    facts = split(output)
    for line, overwritten in lines_of(output):
        fact = facts.pop(0)
        if is_telemetry(line):
            assert isinstance(fact, Telemetry)
            continue
        parts = [fact]
        while facts and isinstance(facts[0], Line) and (facts[0].part or 0) > 1:
            parts.append(facts.pop(0))
        lines = [part for part in parts if isinstance(part, Line)]
        assert len(lines) == len(parts), "a log line became telemetry"
        assert [part.overwritten for part in lines] == [overwritten or None for _ in lines]
        assert [part.part for part in lines] == (list(range(1, len(lines) + 1)) if len(lines) > 1 else [None])
        *whole, last = lines
        assert all(part.truncated is None for part in whole)
        kept = line[: len(line) - (last.truncated or 0)]
        assert "".join(part.message for part in lines) == text_of(kept)
        assert (kept == line) if len(line) <= LINE_MAX else (LINE_MAX - 4 < len(kept) <= LINE_MAX)
        assert all(len(part.message) <= PART + 3 for part in lines)
        assert len(lines) == max(1, math.ceil(min(len(line), LINE_MAX) / PART))
    assert not facts


@unhurried
@given(OUTPUT)
def test_strings_are_safe(output: bytes) -> None:
    """No NUL and no lone surrogate leaves this module, so JSON and PostgreSQL take every string."""
    for fact in split(output):
        said = fact.message if isinstance(fact, Line) else fact.members
        assert said == clean(said)
        orjson.dumps(said)


def test_parts_are_handed_out_as_they_fill() -> None:
    """A long line does not wait for its end, and memory stays at a part however long the line is."""
    splitter = LineSplitter("stdout", part_bytes=1000, line_max_bytes=10**6)
    parts = 0
    for fed in range(1, 3001):
        parts += len(splitter.feed(b"x" * 1000))
        assert len(splitter._held) <= 1000
        assert parts == min(fed - 1, 999)
    assert splitter.feed(b"\n") == [Line("stdout", "x" * 1000, part=1000, truncated=2_000_000)]


def test_what_may_be_telemetry_waits_for_no_more_than_its_limit() -> None:
    """An open brace holds back `telemetry_max_bytes`; what is longer is a log line."""
    splitter = LineSplitter("stdout", part_bytes=1000, telemetry_max_bytes=5000)
    assert splitter.feed(b"{" + b"x" * 4999) == []
    assert len(splitter.feed(b"xx")) == 5
    assert len(splitter._held) <= 1000
    assert splitter.feed(b"\n") == [Line("stdout", "xx", part=6)]


def test_a_cut_is_between_two_characters() -> None:
    """Where a line is cut off, the character that has no room is missing whole."""
    assert split("xxx€\nx".encode(), line_max_bytes=5) == [Line("stdout", "xxx", truncated=3), Line("stdout", "x")]


def test_the_beginning_of_a_line_is_no_event() -> None:
    """A line that is telemetry but for what was cut off is a log line, which says that something is missing."""
    event = b'{"event":"engine.a"}'
    facts = split(event + b" " * 50 + b"\n", part_bytes=99, line_max_bytes=len(event))
    assert facts == [Line("stdout", event.decode(), truncated=50)]


def test_a_line_end_is_no_part_of_the_line() -> None:
    assert split(b"a\r\n\nb\r\r\nc\r", part_bytes=99) == [Line("stdout", text) for text in ("a", "", "b", "c")]


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        (b"10%\r20%\r100%\n", [("100%", 2)]),
        (b"\r10%\r20%\r100%\r\n", [("100%", 2)]),
        (b"10%\r20%", [("20%", 1)]),
        (b"10%\r20%\r", [("20%", 1)]),
        (b"100%\r\n", [("100%", None)]),
        (b"50%\r       \r\n", [("50%", None)]),
        (b"50%\r       \rdone\n", [("done", 1)]),
        (b"\r\n\r\r\n  \r\n", [("", None), ("", None), ("  ", None)]),
    ],
)
def test_a_line_that_is_drawn_over(drawn: bytes, shown: list[tuple[str, int | None]]) -> None:
    """The last state of it is told, and how many are not."""
    assert split(drawn, part_bytes=99) == [Line("stdout", message, overwritten=count) for message, count in shown]


def test_a_state_that_is_too_long_to_be_held_is_a_line() -> None:
    """It is told in parts as it comes; so is what it would have been drawn over."""
    assert split(b"1\r2\r" + b"x" * 10 + b"\r\r3\r4\r\n") == [
        Line("stdout", "2", overwritten=1),
        Line("stdout", "x" * 8, part=1),
        Line("stdout", "xx", part=2),
        Line("stdout", "4", overwritten=1),
    ]


def test_a_bar_and_telemetry_on_one_stream() -> None:
    """Telemetry is never drawn over, and draws over nothing: what stood there before is told first."""
    event = b'{"event":"engine.a"}'
    output = b"1%\r2%\r  \r" + event + b"\n\r3%\r4%\r" + event + b"\r5%\r\n"
    assert split(output, part_bytes=99) == [
        Line("stdout", "2%", overwritten=1),
        Telemetry("stdout", "engine.a", {}),
        Line("stdout", "4%", overwritten=1),
        Telemetry("stdout", "engine.a", {}),
        Line("stdout", "5%"),
    ]


def test_a_bar_without_an_end_is_seen_and_takes_no_room() -> None:
    """An hour of it, ten times a second: a line for each 200 states, and at no time more than one is held."""
    splitter = LineSplitter("stderr")
    facts = []
    for state in range(36_000):
        facts += splitter.feed(b"\r%6d of 36000" % state)
        assert len(splitter._held) + len(splitter._kept or b"") < 40
    facts += splitter.close()
    assert [fact.message for fact in facts if isinstance(fact, Line)][:2] == ["   200 of 36000", "   401 of 36000"]
    assert sum(1 + (fact.overwritten or 0) for fact in facts if isinstance(fact, Line)) == 36_000
    assert len(facts) == 180


def test_an_engine_s_event() -> None:
    """What ADE's engine writes: the members stay, but for the two names that the event has another place for."""
    data = {"sheet": "Torgersen", "columns": [12, 1.5, None, True]}
    line = {
        "event_id": "e1",
        "timestamp": "2025-11-20T04:19:05Z",
        "level": "info",
        "event": "engine.run.started",
        "data": data,
    }
    assert telemetry(orjson.dumps(line)) == Telemetry(
        "stderr",
        "engine.run.started",
        {"event_id": "e1", "engine_timestamp": "2025-11-20T04:19:05Z", "level": "info", "data": data},
    )


def test_events_among_lines() -> None:
    """Lines that come together are told apart one by one."""
    lines = [b"a", b'{"event":"engine.b"}', b"c", b'{"event":"run.completed"}', b'{"event":"engine.d"}']
    facts: list[Fact] = [Line("stdout", line.decode()) for line in lines]
    facts[1], facts[4] = Telemetry("stdout", "engine.b", {}), Telemetry("stdout", "engine.d", {})
    assert LineSplitter("stdout").feed(b"\n".join(lines[:3]) + b"\n") == facts[:3]
    for first in range(len(lines)):
        rotated = lines[first:] + lines[:first]
        assert LineSplitter("stdout").feed(b"\n".join(rotated) + b"\n") == facts[first:] + facts[:first]


@pytest.mark.parametrize(
    "event",
    ["run.completed", "engine", "engine.", "engine.A", "engine.a\n", "engine.a-b", "engine..a", "xengine.a", "engine.ä",
     "engine" + ".a" * 9, "engine." + "a" * 65, 1, None, ["engine.a"]],
)  # fmt: skip
def test_other_events_are_log_lines(event: object) -> None:
    """Only names under `engine.` are an engine's to give; none of them has a line break."""
    assert telemetry(json.dumps({"event": event})) is None


@pytest.mark.parametrize("name", sorted(ENVELOPE))
def test_the_envelope_cannot_be_forged(name: str) -> None:
    """An event's own members never meet those of its envelope."""
    assert telemetry(json.dumps({"event": "engine.a", name: "run_1"})) is None
    assert telemetry(json.dumps({"event": "engine.a", "data": {name: "run_1"}})) is not None


@pytest.mark.parametrize(
    "line",
    [
        '["engine.a"]',
        '{"event":"engine.a"',
        '{"event":"engine.a"} x',
        ' {"event":"engine.a"}',
        '{"event":"engine.a","n":NaN}',
        '{"event":"engine.a","n":-Infinity}',
        '{"event":"engine.a","n":1e999}',
        '{"event":"engine.a","n":18446744073709551616}',
        '{"event":"engine.a","n":-9223372036854775809}',
        '{"event":"engine.a","n":' + "9" * 5000 + "}",
        '{"event":"engine.a","n":' + "[" * 300 + "]" * 300 + "}",
        '{"event":"engine.a","n":' + '{"a":' * 1500 + "1" + "}" * 1501,
        '{"event":"engine.a","n":' + "[" * 30_000,
        '{"event":"engine.a","n":"\\ud800","m":' + "[" * 980 + "]" * 980 + "}",
        '{"event":"engine.a","timestamp":1,"engine_timestamp":2}',
        '{"event":"engine.a","tab":"\t"}',
    ],
)
def test_what_cannot_be_kept_as_an_event_is_a_log_line(line: str) -> None:
    """Not JSON, or JSON that would not come out as it went in: it stays as it was written."""
    assert telemetry(line) is None


@pytest.mark.parametrize(
    ("line", "members"),
    [
        (b'{"event":"engine.a","a":"\\u0000","\\u0000":1}', {"a": "\ufffd", "\ufffd": 1}),
        (b'{"event":"engine.a","a":"\\ud800x","b":"\\ud83d\\ude00"}', {"a": "\ufffdx", "b": "😀"}),
        (b'{"event":"engine.a","a":["\0",{"\xff":"\xe2\x82"}]}', {"a": ["\ufffd", {"\ufffd": "\ufffd"}]}),
        (b'{"event":"engine.b","event":"engine.a","a":1,"a":2}', {"a": 2}),
        (b'{"\\u0065vent":"engine.a","a":18446744073709551615}', {"a": 2**64 - 1}),
        (b'{"event":"engine.a","a":-9223372036854775808}\r', {"a": -(2**63)}),
    ],
)
def test_what_is_repaired(line: bytes, members: dict[str, Any]) -> None:
    """Broken characters become U+FFFD, in keys too; of a name that comes twice the last one counts."""
    [fact] = LineSplitter("stderr").feed(line + b"\n")
    assert fact == Telemetry("stderr", "engine.a", members)


def test_telemetry_may_have_a_mebibyte() -> None:
    """One byte more makes it a log line in parts, with nothing missing."""
    empty = len('{"event":"engine.a","a":""}')
    most = '{"event":"engine.a","a":"' + "x" * (2**20 - empty) + '"}'
    assert telemetry(most) is not None
    for end in (b"\n", b"\r\n"):
        facts = LineSplitter("stderr").feed(most.encode().replace(b"xx", b"xxx", 1) + end)
        lines = [fact for fact in facts if isinstance(fact, Line)]
        assert len(lines) == len(facts) == 17
        assert sum(len(line.message) for line in lines) == 2**20 + 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@unhurried
@given(st.dictionaries(st.text(st.characters(), max_size=12), JSON, max_size=5), st.booleans())
def test_any_object_with_an_event(members: dict[str, Any], escaped: bool) -> None:
    """It becomes that event with every value as it was written; or a log line, when JSON could not give them back."""
    members = {name: value for name, value in members.items() if name not in ENVELOPE | {"event", "timestamp"}}
    written = json.dumps({"event": "engine.a"} | members, ensure_ascii=escaped)
    [fact] = LineSplitter("stdout").feed(written.encode("utf-8", "surrogatepass") + b"\n")
    if isinstance(fact, Telemetry):
        if escaped:  # else what was one lone surrogate came as three wrong bytes
            assert fact.members == clean(members)
        assert orjson.loads(orjson.dumps(fact.members)) == fact.members
    else:
        assert re.search(r"NaN|Infinity|[0-9]{19}", written)


def test_clean() -> None:
    assert clean({"a\0": ["\ud800", 1, {"b": "\0"}], "c": None}) == {
        "a\ufffd": ["\ufffd", 1, {"b": "\ufffd"}],
        "c": None,
    }
