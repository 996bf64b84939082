"""The lives of runs and builds: every move that is allowed, in a real log, with its tables against the folds."""

import json
import types
import typing
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

import hypothesis
import psycopg
import pydantic
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from psycopg.rows import dict_row

from eventstore import Event, NewEvent
from eventstore.clock import ulid
from projections import build as builds
from projections import events
from projections import run as runs
from projections.events import Name
from projections.lifecycle import BUILD, RUN, ImpossibleMove, Moves, Phase, move
from tests.conftest import Store, open_store
from tests.histories import golden, line, tell

KINDS: dict[str, Moves] = {"run": RUN, "build": BUILD}
NO_COLUMN = {"phase", "control_id", "cancel_requested_by", "max_attempts", "lost_attempts", "traceparent"}
"""What a fold knows for decisions only."""
SAMPLES = {example.type: example.data for example in golden()}
"""A payload for every event that there is."""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.integers(0, 2**31 - 1)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: NUMBER,
    bool: st.booleans(),
    type(None): st.none(),
    Any: JSON,
}


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Any value that a member of this type can have."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Name or origin is typing.Annotated:
        return NAMES
    if annotation in PLAIN:
        return PLAIN[annotation]
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values, arguments))
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=2)
    assert issubclass(annotation, pydantic.BaseModel)
    return payloads(annotation)


def payloads(model: type[Any], **known: Any) -> st.SearchStrategy[Any]:
    """Any payload of this event, with some members given."""
    members = {
        name: NAMES if field.metadata else values(field.annotation)
        for name, field in model.model_fields.items()
        if name not in known
    }
    return st.fixed_dictionaries(members).map(lambda made: model(**made, **known))


def moves_of(stream: str) -> Moves:
    return KINDS[stream.partition("_")[0]]


def test_every_control_event_is_a_move_and_every_move_an_event() -> None:
    """The two tables and the vocabulary name the same events; lines of output are in neither table."""
    for kind, moves in KINDS.items():
        named = {name for allowed in moves.values() for name in allowed}
        assert named == {name for name, model in events.registry.items() if name.startswith(kind) and not model.bulk}
        ending = {name for allowed in moves.values() for name, after in allowed.items() if after is Phase.ENDED}
        assert ending == {name for name in named if events.registry[name].ends}
        assert moves[Phase.ENDED] == {}


def test_the_rules_above_the_tables() -> None:
    """A stream begins with its `…created` and ends with its `…completed`; work begins where it is queued and is lost
    where it is done; whatever lives can be canceled and ended."""
    living = {Phase.QUEUED, Phase.WORKING}
    for kind, moves in KINDS.items():
        after = {(name, phase): to for phase, allowed in moves.items() for name, to in allowed.items()}
        steps = {name: {(phase, to) for (move, phase), to in after.items() if move == name} for name, _ in after}
        assert steps.pop(f"{kind}.created") == {(Phase.NONE, Phase.QUEUED)}
        assert steps.pop(f"{kind}.started") == {(Phase.QUEUED, Phase.WORKING)}
        assert steps.pop(f"{kind}.completed") == {(phase, Phase.ENDED) for phase in living}
        assert steps.pop(f"{kind}.cancel_requested") == {(phase, phase) for phase in living}
        assert steps.pop("run.waiting", {(Phase.QUEUED, Phase.QUEUED)}) == {(Phase.QUEUED, Phase.QUEUED)}
        assert all(stays == {(Phase.WORKING, Phase.WORKING)} for stays in steps.values())
        assert move(moves, Phase.WORKING, f"{kind}.lost", {"next": "retry"}) is Phase.QUEUED
        assert move(moves, Phase.WORKING, f"{kind}.lost", {"next": "fail"}) is Phase.WORKING


def test_the_golden_log_is_a_history_that_the_lifecycles_allow() -> None:
    """Every golden stream of a run or build begins, moves and ends as its table says."""
    phases: dict[str, Phase] = {}
    for example in golden():
        before = phases.get(example.stream, Phase.NONE)
        if example.stream.startswith(tuple(KINDS)) and not example.event.bulk:
            phases[example.stream] = move(moves_of(example.stream), before, example.type, example.data)
    assert len(phases) == 12
    assert set(phases.values()) == {Phase.ENDED}


@dataclass(frozen=True)
class World:
    """A log that a test without a loop can write to, and its tables."""

    portal: BlockingPortal
    store: Store
    connection: psycopg.Connection[dict[str, Any]]


@pytest.fixture
def world(url: str) -> Iterator[World]:
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(asynccontextmanager(open_store)(url)) as store,
        psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection,
    ):
        yield World(portal, store, connection)


class Lives(RuleBasedStateMachine):
    """Runs and builds that live beside each other, by allowed moves only; every other move is seen to be refused."""

    world: ClassVar[World]
    reached: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.phases: dict[str, Phase] = {}
        self.build_of: dict[str, str | None] = {}

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.create("build", data)
        self.create("run", data)

    @precondition(lambda self: len(self.open) < 3)
    @rule(data=st.data(), kind=st.sampled_from(["run", "build"]))
    def create(self, kind: str, data: st.DataObject) -> None:
        stream, known = f"{kind}_{ulid()}", {}
        if kind == "run":
            built = [other for other in self.phases if other.startswith("build_")]
            self.build_of[stream] = known["build_id"] = data.draw(st.sampled_from([*built, None]))
        self.move(stream, f"{kind}.created", data, **known)
        if known.get("build_id") in self.open:
            self.move(stream, "run.waiting", data, for_="build")

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def make_moves(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            stream = data.draw(st.sampled_from(self.open))
            moves = [*moves_of(stream)[self.phases[stream]]]
            self.move(stream, data.draw(st.sampled_from(moves)), data)
            if not self.open:
                return

    @precondition(lambda self: Phase.WORKING in self.phases.values())
    @rule(data=st.data())
    def begin_again(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from([one for one in self.open if self.phases[one] is Phase.WORKING]))
        kind = stream.partition("_")[0]
        self.move(stream, f"{kind}.lost", data, next="retry")
        self.move(stream, f"{kind}.started", data)
        self.reached[f"{kind} begun again"] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), name=st.sampled_from(["run.log", "engine.run.completed", "engine.run.lost"]))
    def write_a_line(self, data: st.DataObject, name: str) -> None:
        """Output is no move, whatever it is called."""
        stream = data.draw(st.sampled_from(self.open))
        self.tell(stream, NewEvent(name, line(stream, "status: succeeded").data, bulk=True))

    @property
    def open(self) -> list[str]:
        return [stream for stream, phase in self.phases.items() if phase is not Phase.ENDED]

    def move(self, stream: str, name: str, data: st.DataObject, **known: Any) -> None:
        if name == "run.artifact":
            known["artifact_id"] = f"art_{ulid()}"
        payload = data.draw(payloads(events.registry[name], **known))
        after = moves_of(stream)[self.phases.get(stream, Phase.NONE)][name]
        self.phases[stream] = Phase.QUEUED if getattr(payload, "next", None) == "retry" else after
        self.reached.update([name, getattr(payload, "next", name)])
        self.reached["a build that is waited for ends"] += any(
            name == "build.completed" and build_id == stream and self.row(run_id, "runs")["waiting_for"] == "build"
            for run_id, build_id in self.build_of.items()
        )
        self.tell(stream, payload.event())

    def tell(self, stream: str, event: NewEvent) -> None:
        self.world.portal.call(tell, self.world.store, stream, event)
        for run_id, build_id in self.build_of.items():
            if stream in {run_id, build_id}:
                beside = () if build_id is None else (build_id,)
                self.check(run_id, "runs", runs.fold(run_id, self.log_of(run_id, *beside)))
        if stream.startswith("build_"):
            self.check(stream, "builds", builds.fold(stream, self.log_of(stream)))

    def log_of(self, *streams: str) -> list[Event]:
        return self.world.portal.call(self.world.store.log.control_events, *streams)

    def row(self, stream: str, table: str) -> dict[str, Any]:
        row = self.world.connection.execute(f"SELECT * FROM {table} WHERE id = %s".encode(), [stream]).fetchone()
        assert row is not None
        return row

    def check(self, stream: str, table: str, state: runs.Run | builds.Build) -> None:
        """The row says what the fold says, and no other move than the table's can be made from here."""
        assert state.phase is self.phases[stream]
        row = self.row(stream, table)
        folded = {name: getattr(state, name) for name in state.__slots__ if name not in NO_COLUMN}
        assert written(row) == written(folded)
        self.reached[f"{table} {state.status}"] += 1
        if isinstance(state, runs.Run):
            self.reached[f"waiting for {state.waiting_for}"] += 1
        for name in SAMPLES.keys() - moves_of(stream)[state.phase].keys():
            with pytest.raises(ImpossibleMove):
                refused(state, name)


def refused(state: runs.Run | builds.Build, name: str) -> None:
    event = Event(state.control_id + 1, state.id, 1, "", name, 0.0, SAMPLES[name])
    if isinstance(state, runs.Run):
        runs.apply(state, event)
    else:
        builds.apply(state, event)


def written(members: dict[str, Any]) -> dict[str, str]:
    """Values as text, so that 1, 1.0 and true are three; times as the folds have them."""
    plain = {name: value.timestamp() if isinstance(value, datetime) else value for name, value in members.items()}
    return {name: json.dumps(value, sort_keys=True) for name, value in plain.items()}


def test_the_tables_say_what_the_folds_say(world: World) -> None:
    """After every move of every life: row by row, field by field, with every event and every state reached."""
    to_reach = {name for name, model in events.registry.items() if name.startswith(tuple(KINDS)) and not model.bulk}
    to_reach |= {f"runs {status}" for status in ("queued", "running", "succeeded", "failed", "canceled")}
    to_reach |= {f"builds {status}" for status in ("queued", "building", "active", "failed", "canceled")}
    to_reach |= {f"waiting for {what}" for what in ("build", "worker", "safe_mode", "disk", None)} | {"retry", "fail"}
    Lives.world, Lives.reached = world, Counter()
    to_reach |= {"a build that is waited for ends", "run begun again", "build begun again"}
    few = settings(
        max_examples=30,
        stateful_step_count=15,
        deadline=None,
        derandomize=False,  # as it is in CI: every round would lead the same lives
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate],  # not shrunk: each try is a hundred appends
    )
    for _ in range(40):  # chance decides which lives are led; two or three rounds are usual
        run_state_machine_as_test(Lives, settings=few)
        if to_reach <= (+Lives.reached).keys():
            break
    assert to_reach - (+Lives.reached).keys() == set()
