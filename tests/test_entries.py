"""Entries of a stream from any place, and the search in them, against a list in memory."""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eventstore import Append, NewEvent, Part, encode, log
from eventstore.random_access import Place, place_of_id, place_of_seq, place_of_time
from projections.entries import Entries, Entry, Match, Window
from tests.conftest import Store
from tests.histories import rows

pytestmark = pytest.mark.anyio
in_the_database = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # one database serves all examples, each in streams of its own

OUTPUT = NewEvent("run.log", encode({"stream": "stdout", "message": "mapped"}), bulk=True)
LONG = NewEvent("run.log", encode({"stream": "stderr", "message": "x" * 700}), bulk=True)
ERASED = NewEvent("run.log", b'{"redacted":"00"}', bulk=True)
TELEMETRY = NewEvent("engine.step", encode({"stream": "stderr", "level": 30, "message": "told"}), bulk=True)
SILENT = NewEvent("engine.tick", encode({"stream": "stderr", "message": 1}), bulk=True)
CONTROL = NewEvent("build.step", encode({"message": "of no use to those who read lines"}))
EVENTS = [OUTPUT, LONG, ERASED, TELEMETRY, SILENT, CONTROL]


@dataclass(frozen=True)
class Told:
    """What was appended to one stream: its name, and the places and entries that it must have."""

    stream: str
    places: list[Place]
    entries: list[Entry]


async def tell(store: Store, appends: Sequence[tuple[bool, Sequence[NewEvent]]]) -> Told:
    """Appends to a stream of its own, and in between to another one."""
    head = await store.log.head()
    told = Told(f"run_{head}", [], [])
    for other, events in [(False, [CONTROL]), *appends]:
        stream = f"run_{head}-other" if other else told.stream
        landed = await store.appender.append(Append((Part(stream, events, "ws"),)))
        for id_, event in enumerate(events if not other else (), landed.first_id):
            told.places.append(Place(id_, len(told.places) + 1))
            data = json.loads(event.data)
            if event.bulk and isinstance(data.get("message"), str):
                level = data.get("level") and str(data["level"])
                told.entries.append(Entry(id_, told.places[-1].seq, 0, data.get("stream"), level, data["message"]))
    return told


async def opened(store: Store, told: Told) -> Entries:
    stream = await store.log.stream(told.stream)
    assert stream is not None
    return Entries(store.log, stream)


def shown(found: Sequence[Entry]) -> list[tuple[object, ...]]:
    """Entries without their time, which is the database's."""
    return [(entry.id, entry.seq, entry.stream, entry.level, entry.message) for entry in found]


APPENDS = st.lists(
    st.tuples(st.booleans(), st.lists(st.sampled_from(EVENTS), min_size=1, max_size=12)), min_size=1, max_size=8
)


@in_the_database
@given(
    appends=APPENDS,
    spots=st.lists(st.integers(0, 100), min_size=3, max_size=3),
    limit=st.sampled_from([1, 2, 7, 1000]),
    ahead=st.integers(1, 4),
    page=st.sampled_from([3, 1000]),
    page_bytes=st.sampled_from([900, 2**20]),
)
async def test_any_window_is_what_the_list_says(
    store: Store,
    appends: list[tuple[bool, list[NewEvent]]],
    spots: list[int],
    limit: int,
    ahead: int,
    page: int,
    page_bytes: int,
) -> None:
    """From any id and with any limit: what a window has is all that lies there; its cursors lead to the rest."""
    told = await tell(store, appends)
    with pytest.MonkeyPatch.context() as patch:
        for where, name, value in (
            ("projections.entries", "AHEAD", ahead),
            ("projections.entries", "PAGE", page),
            ("projections.entries", "PAGE_BYTES", page_bytes),
            ("eventstore.log", "PAGE_BYTES", page_bytes),
        ):
            patch.setattr(f"{where}.{name}", value)
        reader = await opened(store, told)
        ids = [entry.id for entry in told.entries]
        first, last = told.places[0].id - 1, reader.end.id
        for at in {first, *(first + spot % (last - first + 1) for spot in spots), last}:
            split = bisect_left(ids, at)
            place = await place_of_id(store.database, told.stream, at)
            checked(await reader.after(at - 1, limit), told, split, split + limit)
            checked(await reader.before(place, limit), told, max(0, split - limit), split)
            half = limit // 2
            window = await reader.around(place, limit)
            checked(window, told, max(0, split - half), split + limit - half)
            assert window.index is not None
            assert [one.id >= at for one in window.entries] == [
                number >= window.index for number in range(len(window.entries))
            ]
        forth, back = await walked(reader, limit)
        assert shown(forth) == shown(back) == shown(told.entries)


def checked(window: Window, told: Told, first: int, last: int) -> None:
    """A window onto the entries first..last: it has them, or its cursors say that it ended before."""
    wanted = told.entries[first:last]
    known = [entry.id for entry in told.entries]
    have = [entry.id for entry in window.entries]
    lower = len(known) if window.before_id is None else len([id_ for id_ in known if id_ >= window.before_id])
    begin = len(known) - lower
    end = len(known) if window.after_id is None else len([id_ for id_ in known if id_ <= window.after_id])
    assert have == known[begin:end]  # nothing is missing between its cursors
    assert set(have) <= {entry.id for entry in wanted}
    if log.PAGE_BYTES > 900:
        assert shown(window.entries) == shown(wanted)


async def walked(reader: Entries, limit: int) -> tuple[list[Entry], list[Entry]]:
    """All entries, by pages forwards and by pages backwards."""
    forth, after = [], 0
    while (window := await reader.after(after, limit)).after_id is not None:
        forth += window.entries
        assert window.after_id > after
        after = window.after_id
    forth += window.entries
    back, end = list[Entry](), reader.end
    while (window := await reader.before(end, limit)).before_id is not None:
        back = window.entries + back
        assert window.before_id < end.id
        end = await place_of_id(reader._log.database, reader.stream.stream, window.before_id)
    return forth, window.entries + back


@in_the_database
@given(appends=APPENDS, seq=st.integers(-3, 110))
async def test_a_place_by_its_number(store: Store, appends: list[tuple[bool, list[NewEvent]]], seq: int) -> None:
    """Every event of a stream, whoever wrote in between; the first and the next one stand for what lies outside."""
    told = await tell(store, appends)
    end = Place(told.places[-1].id + 1, len(told.places) + 1)
    expected = [*told.places, end][max(0, min(seq, end.seq) - 1)]
    assert await place_of_seq(store.database, told.stream, seq) == expected


async def test_a_place_by_its_time(store: Store, url: str) -> None:
    """The first event at a time or later; those of one append share theirs."""
    told = await tell(store, [(False, [OUTPUT] * 3), (True, [OUTPUT]), (False, [OUTPUT] * 2)])
    of = {
        row["id"]: row["at"]
        for row in rows(url, "SELECT id, extract(epoch FROM recorded_at)::float8 AS at FROM events")
    }
    for place in told.places:
        expected = min(id_ for id_ in of if of[id_] >= of[place.id])
        assert (await place_of_time(store.database, told.stream, of[place.id])).id == expected
    assert await place_of_time(store.database, told.stream, 0) == told.places[0]
    assert await place_of_time(store.database, told.stream, of[told.places[-1].id] + 1) == Place(8, 7)


# Search

# What JSON escapes, what LIKE and regular expressions understand, and letters whose other case is far away.
NASTY = '"\\/\b\f\n\r\t\x00\x1b\x7f\x85\u2028\u2029%_*.[('
NASTY += "\u00e9\u00c9\u212a\u017f\u0130\u0131\u00df\u03c3\u03c2\u03a3\U0001f427aAkKsSiIu0018d"
TEXTS = st.text(st.sampled_from(NASTY), max_size=12)
OTHER_CASE = str.maketrans(
    "AakKsSiI\u212a\u017f\u0130\u0131\u00e9\u00c9", "aA\u212ak\u017fs\u0130\u0131kSiI\u00c9\u00e9"
)
WRITERS: dict[str, Callable[[str], bytes]] = {
    "as here": lambda text: encode({"message": text}),
    "ASCII only": lambda text: json.dumps({"message": text}).encode(),
    "in capitals": lambda text: re.sub(
        r"(?<=\\u)....", lambda code: code[0].upper(), json.dumps({"message": text})
    ).encode(),
    "slashes too": lambda text: json.dumps({"message": text}).replace("/", "\\/").encode(),
    "by codes": lambda text: b'{"message":"%b"}' % re.sub("(....)", r"\\u\1", text.encode("utf-16-be").hex()).encode(),
}


@in_the_database
@given(
    messages=st.lists(st.tuples(TEXTS, st.sampled_from(sorted(WRITERS))), min_size=1, max_size=12),
    cut=st.tuples(st.integers(0, 11), st.integers(0, 11), st.integers(1, 12)),
    ignore_case=st.booleans(),
    few=st.booleans(),
)
@example(messages=[("\u0130\u0131\u017f\u212a", "as here")], cut=(0, 0, 4), ignore_case=True, few=False)
async def test_a_search_finds_what_a_person_sees(
    store: Store, messages: list[tuple[str, str]], cut: tuple[int, int, int], ignore_case: bool, few: bool
) -> None:
    """Against `in` over the messages, whatever the text holds, however its JSON is written, however small the steps."""
    messages = [(text.replace("\0", "\ufffd"), writer) for text, writer in messages]
    source = messages[cut[0] % len(messages)][0]
    wanted = source[cut[1] : cut[1] + cut[2]] or "a"
    if ignore_case:
        wanted = wanted.translate(OTHER_CASE)
    events = [NewEvent("run.log", WRITERS[writer](text), bulk=True) for text, writer in messages]
    told = await tell(store, [(False, events[::2]), (True, events), (False, [CONTROL, SILENT, *events[1::2]])])
    with pytest.MonkeyPatch.context() as patch:
        if few:
            patch.setattr("eventstore.random_access.EXAMINED_EVENTS", 2)
            patch.setattr("eventstore.random_access.PAGE_BYTES", 10)
            patch.setattr("eventstore.random_access.ESCAPED_MAX", 2)
        reader, found, upto = await opened(store, told), list[Match](), 0
        async for step in reader.search(wanted, 0, told.places[-1].id, ignore_case=ignore_case, limit=3):
            assert upto < step.upto
            assert all(upto < match.entry.id <= step.upto for match in step.matches)
            upto, found = step.upto, found + step.matches
    assert upto == told.places[-1].id
    pattern = re.compile(re.escape(wanted), re.IGNORECASE if ignore_case else 0)
    assert [(match.entry.id, match.at) for match in found] == [
        (one.id, place.start()) for one in told.entries if (place := pattern.search(one.message))
    ]
    if not ignore_case:
        assert [match.entry.id for match in found] == [one.id for one in told.entries if wanted in one.message]


def test_four_letters_beyond_ascii_have_a_case_within_it() -> None:
    """What the pattern for a search without case rests on: it looks at ASCII alone, and lets k, s and i be anything."""
    letters = re.compile("[a-z]", re.IGNORECASE)
    beyond = {chr(code) for code in range(128, 0x110000) if letters.match(chr(code))}
    assert (
        beyond
        == {letter for letter in beyond if re.match("[kis]", letter, re.IGNORECASE)}
        == set("\u0130\u0131\u017f\u212a")
    )
