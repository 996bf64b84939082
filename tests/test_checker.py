"""The checker of whole histories: any damage to a history that holds is found, and what holds is not accused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.tables import CAUGHT_UP
from service.commands import run_completed
from tests import checker
from tests.checker import Attempt, History, Reading, Told, appends, endings, first, numbering, readings
from tests.conftest import Store
from tests.histories import build_created, line, rows, run_created, run_started, tell

pytestmark = pytest.mark.anyio


def history(*own: tuple[str, str]) -> History:
    """A log of these streams and types."""
    seqs: dict[str, int] = {}
    events = []
    for id_, (stream, type_) in enumerate(own, 1):
        seq = seqs[stream] = seqs.get(stream, 0) + 1
        told = {"id": id_, "type": type_, "seq": seq}
        bulk, data = type_.endswith(".log"), orjson.dumps({"n": seq}).decode()
        events.append(Told(id_, stream, seq, type_, bulk, data, orjson.dumps(told)))
    found = History(events)
    for stream, told_ in found.by_stream.items():
        ended = [one.id for one in told_ if one.type.endswith(".completed")]
        found.streams[stream] = {
            "first_id": told_[0].id,
            "last_id": told_[-1].id,
            "last_seq": len(told_),
            "last_control_id": max(one.id for one in told_ if not one.bulk),
            "ended_id": ended[0] if ended else None,
        }
    return found


RUN = [("run_1", "run.created"), *[("run_1", "run.log")] * 4, ("run_1", "run.completed")]
OTHER = [("build_1", "build.created"), ("build_1", "build.log")]
ALL = [*RUN[:2], *OTHER, *RUN[2:]]
"""The places of the run: 1, 2, 5, 6, 7, 8."""
KNOWN = [
    Attempt([("run_1", ['{"n":1}'])], "landed", 1),
    Attempt([("run_1", ['{"n":2}']), ("build_1", ['{"n":1}'])], "landed", 2),
    Attempt([("build_1", ['{"n":2}'])], "landed"),
    Attempt([("run_1", ['{"n":3}', '{"n":4}'])], "unknown"),
    Attempt([("run_1", ['{"n":5}', '{"n":6}'])], "landed", 7),
    Attempt([("run_1", ['{"n":7}', '{"n":8}'])], "unknown"),
    Attempt([("run_1", ['{"n":9}'])], "refused"),
]


def judged(damaged: History) -> list[str]:
    return first(numbering(damaged), endings(damaged), appends(damaged, KNOWN))


def test_a_history_that_holds_has_no_findings() -> None:
    """An append that nobody heard of again may be there, whole, or not."""
    assert judged(history(*ALL)) == []


def changed(place: int, **members: Any) -> Callable[[list[Told]], list[Told]]:
    def change(events: list[Told]) -> list[Told]:
        return [*events[:place], replace(events[place], **members), *events[place + 1 :]]

    return change


DAMAGES: dict[str, Callable[[list[Told]], list[Told]]] = {
    "the first event is gone": lambda events: events[1:],
    "the last event is gone": lambda events: events[:-1],
    "an id is left out": lambda events: [*events[:3], *(replace(one, id=one.id + 1) for one in events[3:])],
    "an id comes twice": changed(4, id=4),
    "two events are swapped": lambda events: [events[1], events[0], *events[2:]],
    "a seq is left out": changed(5, seq=9),
    "a seq comes twice": changed(5, seq=2),
    "the line says another id": changed(2, line=b'{"id":9,"seq":1,"type":"build.created"}'),
    "a payload is another's": changed(3, data='{"n":1}'),
    "half of an unacknowledged append is there": changed(5, data='{"n":99}'),
    "what was refused is there": changed(1, data='{"n":9}'),
    "something follows the end": lambda events: [*events, Told(9, "run_1", 7, "run.log", True, '{"n":7}', b"{}")],
    "an event of a stream that nobody wrote": lambda events: [*events, Told(9, "job_1", 1, "a.b", True, "{}", b"{}")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_found_out(damage: str) -> None:
    """Whatever is gone, twice, moved, changed, or was never written."""
    whole = history(*ALL)
    assert judged(History(DAMAGES[damage](whole.events), whole.streams)) != []


@given(st.integers(0, 6), st.data())
def test_a_reading_that_is_not_the_log_is_found_out(after: int, data: st.DataObject) -> None:
    """A hole, a line twice, two swapped, one too many, an end too soon; of a prefix nothing is said."""
    whole = history(*ALL)
    right = whole.lines("", after)
    length = data.draw(st.integers(0, len(right)))
    assert first(readings(whole, [Reading("a prefix", "", after, right[:length])])) == []
    assert first(readings(whole, [Reading("all", "", after, right, complete=True)])) == []
    place = data.draw(st.integers(0, len(right) - 2))
    wrong = {
        "hole": right[:place] + right[place + 1 :],
        "double": right[: place + 1] + right[place:],
        "swap": [*right[:place], right[place + 1], right[place], *right[place + 2 :]],
        "more": [*right, right[-1]],
    }
    for name, lines in wrong.items():
        assert first(readings(whole, [Reading(name, "", after, lines)])) != []
    assert first(readings(whole, [Reading("short", "", after, right[:-1], complete=True)])) != []


def test_a_feed_is_what_the_contract_says() -> None:
    """A run's own events and its build's in its time; after its end nothing, though the build goes on."""
    told = history(*OTHER, *RUN[:2], ("build_1", "build.log"), *RUN[2:], ("build_1", "build.log"))
    told = History(changed(2, data='{"build_id":"build_1"}')(told.events))
    assert [event.id for event in told.feed("run_1")] == [3, 4, 5, 6, 7, 8, 9]
    assert [event.id for event in told.feed("build_1")] == [1, 2, 5, 10]
    assert told.feed("run_2") == []


async def test_tables_files_and_chain_are_compared_with_the_log(store: Store, url: str, tmp_path: Path) -> None:
    """Right as they are made; wrong as soon as a row, a byte or an event is changed by hand."""
    await tell(store, "build_1", build_created(), line("build_1", "a"))
    await tell(store, "run_1", run_created("build_1"), run_started(), line("run_1", "b"))
    await tell(store, "run_1", run_completed("succeeded", "completed").event())
    for projection in CAUGHT_UP:
        await store.database.row("catch_up", projection=projection.name, most=100)
    told = await History.read(store.database)
    assert first(numbering(told), endings(told), checker.tables(told, url)) == []
    for stream in ("run_1", "build_1"):
        (tmp_path / stream).write_bytes(b"".join(line + b"\n" for line in told.lines(stream)))
    assert first(checker.files(told, lambda _, stream: tmp_path / stream)) == []
    assert await checker.chain(store.database) == []
    with (tmp_path / "run_1").open("ab") as file:
        file.write(b"torn")
    assert len(first(checker.files(told, lambda _, stream: tmp_path / stream))) == 1
    rows(url, "UPDATE runs SET status = 'failed'")
    rows(url, "DELETE FROM run_logs")
    rows(url, "UPDATE builds SET fingerprint = 'another'")
    rows(url, "UPDATE build_logs SET message = 'another'")
    assert len(first(checker.tables(told, url))) == 4
    rows(url, "DELETE FROM runs")
    assert any("run_1" in finding for finding in checker.tables(told, url))
    tamper = "SET session_replication_role = replica; UPDATE events SET data = '{}' WHERE id = 2"
    rows(url, tamper)
    assert any(finding.startswith("event 2 ") for finding in await checker.chain(store.database))
