"""The vocabulary: what was ever written can be read, and is written again as it was."""

import json
import re
from typing import Any

import pytest

from eventstore.event import ENVELOPE, TYPE, encode
from projections import events
from service.work import lines
from tests.conftest import Store
from tests.histories import ENVELOPE_SIZE, Example, golden, tell_golden

GOLDEN = golden()
KNOWN = [example for example in GOLDEN if example.type in events.registry]
TIMES = re.compile(rb'"created":\d+,"created_at":"[^"]+"')

every_example = pytest.mark.parametrize("example", KNOWN, ids=lambda one: f"{one.type}-{one.envelope[3]}")


def read(example: Example, data: dict[str, Any] | None = None) -> events.Payload:
    payload = events.read(example.type, example.data if data is None else data)
    assert payload is not None
    return payload


@every_example
def test_what_was_written_is_read_and_written_again_as_it_was(example: Example) -> None:
    """The same members, in the same order, with the same values: byte for byte."""
    again = read(example).event()
    assert again.data == encode(example.data)
    assert again == example.event


def test_every_event_has_a_golden_example() -> None:
    """And every golden example is an event of this vocabulary, or an engine's own."""
    written = {example.type for example in GOLDEN}
    assert {name for name in written if not name.startswith("engine.")} == set(events.registry)
    assert any(name.startswith("engine.") for name in written)


def test_every_member_has_been_written_and_every_optional_one_has_been_left_out() -> None:
    """The golden examples show each event with all that it can say, and with as little as it may say."""
    for name, model in events.registry.items():
        shown = [set(example.data) for example in KNOWN if example.type == name]
        members = {field.alias or own: field for own, field in model.model_fields.items()}
        assert set.union(*shown) == set(members)
        assert set.intersection(*shown) == {m for m, f in members.items() if f.is_required() or f.default is not None}


@pytest.mark.anyio
async def test_a_golden_line_is_served_as_it_was(every_store: Store) -> None:
    """The stored payloads, appended in order, come back as the golden lines: only the times are new."""
    await tell_golden(every_store)
    served = await every_store.log.read(0)
    assert [TIMES.sub(b"", one.line) for one in served] == [TIMES.sub(b"", one.line) for one in GOLDEN]


@pytest.mark.parametrize("example", GOLDEN, ids=lambda one: one.type)
def test_no_payload_uses_a_name_of_the_envelope(example: Example) -> None:
    """Seven names come first in every line, and no other member may look like one of them."""
    pairs = json.loads(example.line, object_pairs_hook=lambda members: [name for name, _ in members])
    assert pairs[:ENVELOPE_SIZE] == ["id", "object", "type", example.envelope[3], "seq", "created", "created_at"]
    assert len(set(pairs)) == len(pairs)
    model = events.registry.get(example.type)
    members = {field.alias or name for name, field in model.model_fields.items()} if model else set(example.data)
    assert members.isdisjoint({*ENVELOPE, example.envelope[3]})


def test_an_engine_cannot_use_a_name_of_any_envelope() -> None:
    """What is refused to an engine covers the envelopes of all streams."""
    assert {name for example in GOLDEN for name in example.envelope} | ENVELOPE <= lines.ENVELOPE


@every_example
def test_a_member_of_a_later_release_is_ignored(example: Example) -> None:
    """In the payload, and in the objects inside it."""

    def newer(value: Any) -> Any:
        if isinstance(value, dict):
            return {**value, "of_a_later_release": {"id": 1}}
        return [newer(item) for item in value] if isinstance(value, list) else value

    listed = {name: newer(value) if isinstance(value, list) else value for name, value in example.data.items()}
    assert read(example, newer(listed)) == read(example)


@every_example
def test_an_optional_member_is_left_out_and_a_required_one_is_null(example: Example) -> None:
    """None is no member where it is the default; where a value is required, it is there as null."""
    payload = read(example)
    for name, field in type(payload).model_fields.items():
        written = json.loads(payload.model_copy(update={name: None}).event().data)
        wire = field.alias or name
        assert (written[wire] is None) if field.is_required() else (wire not in written)


@pytest.mark.parametrize("wire", ["engine.run.completed", "engine.run.started", "run.paused", "", "run.log\n"])
def test_an_unknown_event_is_no_payload(wire: str) -> None:
    """A reader passes over what it does not know, an engine's events among it."""
    assert events.read(wire, {"message": "…"}) is None


def test_what_ends_a_stream_and_what_is_bulk_stay_what_they_are() -> None:
    """These are in the stored events; a change here would change the meaning of what was written."""
    assert {"run.completed", "build.completed"} == events.TERMINAL
    assert {name for name, model in events.registry.items() if model.bulk} == {"run.log", "build.log"}
    assert all(TYPE.match(name) for name in events.registry)
