"""The steps that engines tell of: nested as they were begun, told apart where they overlap, bounded in every way."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from projections import steps
from projections.spans import Span
from projections.steps import STEPS_MAX, Step, Steps
from projections.tracing import span_of
from service.otlp import Receiver

AT = 1_763_612_345.0


def told(*events: tuple[str, dict[str, Any]], attempts: tuple[int, ...] = ()) -> list[Step]:
    found = Steps(attempts)
    for place, (name, members) in enumerate(events, 1):
        found.add(place, f"engine.{name}", AT + place, members)
    return found.found


def within(found: list[Step]) -> dict[str, str | None]:
    return {step.name: step.within.name if step.within else None for step in found}


def test_a_step_lies_in_the_innermost_open_one() -> None:
    """And ends with its own name, whatever was left open inside it."""
    found = told(
        ("run.started", {}), ("file.started", {}), ("file.row.started", {}), ("file.completed", {}),
        ("file.started", {"data": {"name": "b"}}), ("run.failed", {"error": {"message": "no"}}),
    )  # fmt: skip
    assert within(found) == {"run": None, "file": "run", "file.row": "file", "file b": "file.row"}
    assert [(step.result, step.error) for step in found] == [
        *(("failure", "no"), ("success", None), (None, None), (None, None))
    ]


def test_steps_that_overlap_are_told_apart_by_their_id_and_placed_by_their_parents() -> None:
    """As of agents that work side by side."""
    found = told(
        ("agent.started", {"data": {"id": "a", "name": "a"}}),
        ("agent.started", {"data": {"id": "b", "name": "b"}}),
        ("tool.started", {"data": {"id": "ta", "name": "a", "parent_id": "a"}}),
        ("tool.started", {"data": {"id": "tb", "name": "b", "parent_id": "b"}}),
        ("tool.completed", {"data": {"id": "ta", "tokens": 7}}),
        ("agent.completed", {"data": {"id": "a"}}),
    )
    assert within(found) == {"agent a": None, "agent b": "agent a", "tool a": "agent a", "tool b": "agent b"}
    assert [step.result for step in found] == ["success", None, "success", None]
    assert found[2].attributes["engine.data.tokens"] == 7


def test_what_an_attempt_leaves_open_ends_with_it() -> None:
    """A step of the next attempt lies in none of the one before."""
    found = told(("run.started", {}), ("nothing", {}), ("file.started", {}), attempts=(0, 2))
    assert within(found) == {"run": None, "file": None}


def test_the_engine_s_clock_is_asked_where_it_can_be_right() -> None:
    """With a time zone, and not a day off; the lines of one append have one time."""
    near, far, naive = "2025-11-20T04:19:00.5Z", "1970-01-01T00:00:00Z", "2025-11-20T04:19:00"
    starts = [told(("a.started", {"engine_timestamp": text}))[0].start for text in (near, far, naive, 7)]
    assert starts == [1_763_612_340.5, AT + 1, AT + 1, AT + 1]


def test_there_are_limits_to_all_of_it() -> None:
    """Steps, attributes, and the length of a text; what was left out is counted."""
    found = Steps()
    many = {f"k{n}": "x" * 5_000 for n in range(100)}
    for place in range(STEPS_MAX + 5):
        found.add(place, "engine.a.started", AT, {"data": many})
    assert (len(found.found), found.left_out) == (STEPS_MAX, 5)
    assert len(found.found[0].attributes) == steps.ATTRIBUTES_MAX
    assert {len(str(value)) for value in found.found[0].attributes.values()} == {steps.TEXT_MAX}


KEYS = st.sampled_from(["id", "name", "parent_id", "message"]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)
MEMBERS = st.dictionaries(st.sampled_from(["data", "error", "engine_timestamp", "message"]), JSON)
NAMES = st.sampled_from(["a.started", "a.b.started", "a.completed", "a.b.failed", "a.finished", "skipped", "b.started"])


@settings(deadline=None)
@given(st.lists(st.tuples(NAMES, MEMBERS), max_size=12))
def test_whatever_an_engine_writes_is_no_mistake_of_ours(events: list[tuple[str, dict[str, Any]]]) -> None:
    """Any JSON in any place: each step ends after it began, lies in one that began before it, and can be sent."""
    for step in told(*events):
        span = Span(step.name, span_of("run_1", None), None, step.start, step.end or step.start, dict(step.attributes))
        assert Receiver("http://nowhere", {}, {})._encode([span])
        assert step.end is None or step.end >= step.start
        assert step.within is None or step.within.id < step.id
