"""Decisions: what is decided in every interleaving, and the tables of who gets which build."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import orjson
import pytest

from eventstore import NEW, Event, NewEvent, Part
from projections import build as builds
from projections import events
from projections import run as runs
from projections.config import Config
from projections.lifecycle import ImpossibleMove, Phase
from service import commands
from service.commands import Binding, BuildOptions, BuildWanted, Cancel, CreateRun, KnownBuild, Loss, RunOptions
from service.errors import AlreadyEnded, BuildInProgress
from tests.histories import build_created, build_started, run_created, run_started


class Told(NamedTuple):
    """An event of the model's log: one that can be compared and kept in sets."""

    type: str
    data: bytes
    bulk: bool
    ends: bool


Log = tuple[tuple[str, Told], ...]
State = runs.Run | builds.Build
Decision = Callable[[State], Sequence[NewEvent]]

LOST = Loss("its lease ran out")
HANDED_BACK = Loss("the worker was stopped", handed_back=True)

# The world of the model: one run (or build), those who decide about it, and a log that takes what it expects.


@dataclass(frozen=True)
class Actor:
    """Somebody with decisions to make, one after the other. Each is two steps: load the state, append the decision."""

    name: str
    todo: tuple[str, ...]
    loaded: int | None = None
    """How long the log was when the state was loaded."""
    token: int | None = None


@dataclass(frozen=True)
class World:
    """``log``: the control events, each with its stream. ``token``: the newest lease."""

    log: Log
    actors: tuple[Actor, ...]
    token: int = 1


def started(state: State) -> Sequence[NewEvent]:
    """As a worker does: only what is queued is begun."""
    if state.phase is not Phase.QUEUED:
        return []
    attempt = state.attempt + 1
    if isinstance(state, runs.Run):
        return [events.RunStarted(attempt=attempt, worker_id="w", build_id=state.build_id, command=[]).event()]
    return [events.BuildStarted(attempt=attempt, worker_id="w", python="3.11").event()]


def completed(state: State) -> Sequence[NewEvent]:
    """As a worker does: whatever has not ended is ended."""
    if state.phase is Phase.ENDED:
        return []
    if isinstance(state, runs.Run):
        return [commands.run_completed("succeeded", "completed").event()]
    return [commands.build_completed("active", "completed").event()]


def canceled(state: State) -> Sequence[NewEvent]:
    if isinstance(state, runs.Run):
        return commands.cancel_run(state, Cancel("somebody"))
    return commands.cancel_build(state, Cancel("somebody"))


def timed_out(state: State) -> Sequence[NewEvent]:
    """As a worker does that has stopped it, and tells of that first."""
    if state.phase is not Phase.WORKING:
        return []
    if isinstance(state, runs.Run):
        signaled = events.RunSignaled(signal="SIGKILL", survivors=0).event()
        return [signaled, commands.run_completed("failed", "timeout").event()]
    signaled = events.BuildSignaled(signal="SIGKILL", survivors=0).event()
    return [signaled, commands.build_completed("failed", "timeout").event()]


def lost(state: State, loss: Loss = LOST) -> Sequence[NewEvent]:
    """As a worker does that takes over."""
    if state.phase is not Phase.WORKING:
        return []
    return commands.lose_run(state, loss) if isinstance(state, runs.Run) else commands.lose_build(state, loss)


def handed_back(state: State) -> Sequence[NewEvent]:
    """As a worker does that is asked to stop."""
    return lost(state, HANDED_BACK)


DECISIONS: dict[str, Decision] = {
    "start": started,
    "complete": completed,
    "time out": timed_out,
    "cancel": canceled,
    "lose": lost,
    "hand back": handed_back,
}

CLIENTS = (Actor("client 1", ("cancel",)), Actor("client 2", ("cancel",)))
WORKERS = (
    Actor("worker 1", ("start", "complete"), token=1),
    Actor("worker 2", ("lose", "start", "complete"), token=2),
    Actor("worker 3", ("lose", "start", "complete"), token=3),
)
STOPPING = (
    Actor("a worker that stops", ("start", "hand back"), token=1),
    Actor("one that only takes over", ("lose",), token=2),
    Actor("worker 3", ("start", "time out"), token=3),
    Actor("worker 4", ("lose", "start", "complete"), token=4),
)
BUILDER = Actor("builder", ("build",))


def log_of(stream: str, *made: NewEvent) -> Log:
    """A log of one stream's events."""
    return tuple((stream, Told(event.type, event.data, event.bulk, event.ends)) for event in made)


WAITING_RUN = log_of("run_1", run_created("build_1", 1), events.RunWaiting(for_="build", build_id="build_1").event())
RUN = log_of("run_1", run_created(None, 2))
RUN_ONCE = log_of("run_1", run_created(None, 1))
BUILD = log_of("build_1", build_created("f1", 2))


@functools.cache
def folded(log: Log) -> State:
    """The state of what the log begins with. Raises ImpossibleMove where a decision made one."""
    told = [
        Event(number, stream, number, "ws", event.type, float(number), orjson.loads(event.data))
        for number, (stream, event) in enumerate(log, 1)
    ]
    stream = log[0][0]
    return runs.fold(stream, told) if stream.startswith("run_") else builds.fold(stream, told)


def next_worlds(world: World, *, checked: bool) -> Iterator[World]:
    """Every world that is one step away. Without ``checked`` the log takes all that it is given."""
    state, stream = folded(world.log), world.log[0][0]
    if state.phase is not Phase.ENDED and any((actor.token or 0) > world.token for actor in world.actors):
        yield replace(world, token=world.token + 1)  # the lease ran out, and the next worker has it
    for place, actor in enumerate(world.actors):
        if not actor.todo or (actor.token or 0) > world.token:
            continue
        done = replace(actor, todo=actor.todo[1:], loaded=None)
        log = world.log
        if actor.todo[0] == "build":
            log += log_of("build_1", commands.build_completed("active", "completed").event())
        elif actor.loaded is None:
            done = replace(actor, loaded=len(log))
        else:
            known = folded(log[: actor.loaded])
            made = decide(actor.todo[0], known)
            if made and actor.token not in {None, world.token}:
                done = replace(done, todo=())  # fenced
            elif made and checked and known.control_id != state.control_id:
                done = replace(actor, loaded=None)  # a conflict: once more
            else:
                log += log_of(stream, *made)
        yield replace(world, log=log, actors=(*world.actors[:place], done, *world.actors[place + 1 :]))


def decide(decision: str, known: State) -> Sequence[NewEvent]:
    try:
        return DECISIONS[decision](known)
    except AlreadyEnded:
        assert known.phase is Phase.ENDED
        return []


def explore(begin: World, *, checked: bool = True) -> set[Log]:
    """Every log that is left when nobody has anything more to do, whoever was faster at each step."""
    seen, left, ends = {begin}, [begin], set()
    while left:
        world = left.pop()
        found = set(next_worlds(world, checked=checked))
        if not found:
            ends.add(world.log)
        left += found - seen
        seen |= found
    return ends


WORLDS = {
    "a run that waits for its build": (World(WAITING_RUN, (*CLIENTS, *WORKERS[:2], BUILDER)), 1, False),
    "a run that is tried twice": (World(RUN, (*CLIENTS, *WORKERS)), 2, False),
    "a run that is handed back": (World(RUN, (CLIENTS[0], *STOPPING)), 3, True),
    "a run that may be begun once and is handed back": (World(RUN_ONCE, (CLIENTS[0], *STOPPING)), 1, True),
    "a build that is tried twice": (World(BUILD, (*CLIENTS, *WORKERS)), 2, False),
    "a build that is handed back": (World(BUILD, (CLIENTS[0], *STOPPING)), 3, True),
}
every_world = pytest.mark.parametrize(("begin", "most", "stops"), WORLDS.values(), ids=WORLDS)


@every_world
def test_every_interleaving_ends_once(begin: World, most: int, stops: bool) -> None:
    """Clients that cancel, workers that take over from each other, stop, or run out of time at any step: every move is
    possible, at most one event ends it, nothing follows; a cancel is on record once, and what is canceled is not begun
    again; an attempt that was handed back is not counted."""
    reached = set()
    for log in explore(begin):
        own = [event for stream, event in log if stream == log[0][0]]
        assert [event.ends for event in own] == [False] * (len(own) - 1) + [True]
        names = [event.type.partition(".")[2] for event in own]
        if "cancel_requested" in names:
            assert "started" not in names[names.index("cancel_requested") :]
            assert names.count("cancel_requested") == 1
        state = folded(log)
        assert state.lost_attempts <= state.max_attempts
        reached |= {(str(state.stop_reason), names.count("started"))}
    assert {begun for _, begun in reached} == set(range(most + 1))
    assert {why for why, _ in reached} == {"completed", "canceled", "worker_lost"} | ({"timeout"} if stops else set())


@every_world
def test_without_expectations_it_would_not(begin: World, most: int, stops: bool) -> None:
    """The same decisions, appended whatever the log holds by then, move what has ended."""
    with pytest.raises(ImpossibleMove):
        explore(begin, checked=False)


LOSSES = {
    "a run that may be begun once": ("run", 1, [LOST], ["fail"]),
    "one that may be begun thrice": ("run", 3, [LOST, LOST, LOST], ["retry", "retry", "fail"]),
    "handed back, it has all its attempts": ("run", 2, [HANDED_BACK] * 3 + [LOST, LOST], ["retry"] * 4 + ["fail"]),
    "begun by one that stops, it is not repeated": ("run", 1, [HANDED_BACK], ["fail"]),
    "not begun by one that stops, it is": ("run", 1, [replace(HANDED_BACK, begun=False), LOST], ["retry", "fail"]),
    "a build": ("build", None, [LOST, LOST, HANDED_BACK, LOST], ["retry", "retry", "retry", "fail"]),
}


@pytest.mark.parametrize(("kind", "most", "losses", "after"), LOSSES.values(), ids=LOSSES)
def test_how_often_it_is_tried(kind: str, most: int | None, losses: list[Loss], after: list[str]) -> None:
    """What was lost is begun again after a pause that doubles; what was handed back, at once."""
    told = [run_created(None, most) if kind == "run" else build_created("f1", most)]
    nexts, delays = [], []
    for attempt, loss in enumerate(losses, 1):
        told.append(run_started(attempt) if kind == "run" else build_started(attempt))
        made = lost(state_after(*told), loss)
        data = orjson.loads(made[0].data)
        nexts.append(data["next"])
        delays.append(data.get("delay_ms"))
        told += made
    assert nexts == after
    pauses = [delay for delay, loss in zip(delays, losses, strict=True) if loss is LOST and delay is not None]
    assert pauses == [1000, 2000][: len(pauses)]
    assert all(delay is None for delay, loss in zip(delays, losses, strict=True) if loss.handed_back)
    assert state_after(*told).stop_reason == "worker_lost"


def test_the_pause_has_jitter_and_a_limit() -> None:
    state = replace(state_after(run_created(None, 10), run_started()), lost_attempts=8)
    pauses = [orjson.loads(lost(state, replace(LOST, spread=spread))[0].data)["delay_ms"] for spread in (0.5, 1.0)]
    assert pauses == [30_000, 60_000]
    assert state_after(run_created(None, 2), run_started(), *lost(state)).retry_at == 3 + 60


def state_after(*told: NewEvent) -> State:
    stream = "run_1" if told[0].type.startswith("run.") else "build_1"
    return folded(log_of(stream, *told))


BEGINNINGS = {
    "run": (run_created(), run_started(), commands.run_completed("succeeded", "completed").event()),
    "build": (build_created(), build_started(), commands.build_completed("active", "completed").event()),
}


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_what_a_cancel_does(kind: str) -> None:
    """Queued: asked and ended at once. Working: asked, once. Ended: refused."""
    created, begun, ended = BEGINNINGS[kind]
    asked, over = canceled(state_after(created))
    assert (asked.type, over.type, over.ends) == (f"{kind}.cancel_requested", f"{kind}.completed", True)
    assert orjson.loads(over.data)["status"] == orjson.loads(over.data)["stop_reason"] == "canceled"
    [asked] = canceled(state_after(created, begun))
    assert asked.type == f"{kind}.cancel_requested"
    assert canceled(state_after(created, begun, asked)) == []
    with pytest.raises(AlreadyEnded):
        canceled(state_after(created, begun, ended))


CONFIG = Config("config_1", "antarctica", "penguins", 2, "d2")
WANTED = BuildWanted("build_new", "same", "engine==1", "somebody")


@pytest.mark.parametrize(
    ("known", "force", "how", "which"),
    [
        ([], False, "created", "missing"),
        (["failed"], False, "created", "missing"),
        (["canceled"], False, "created", "missing"),
        (["failed", "active"], False, "reused", 1),
        (["active", "active"], False, "reused", 0),
        (["queued"], False, "joined", 0),
        (["building"], False, "joined", 0),
        (["queued", "active"], False, "reused", 1),
        (["building", "active"], False, "reused", 1),
        (["other active"], False, "created", "changed"),
        (["other queued"], False, "created", "changed"),
        (["other building", "active"], False, "reused", 1),
        ([], True, "created", "forced"),
        (["active"], True, "created", "forced"),
        (["failed"], True, "created", "forced"),
        (["queued", "active"], True, "joined", 0),
        (["building", "active"], True, "joined", 0),
        (["other queued"], True, "created", "forced"),
    ],
)
def test_which_build_answers(known: list[str], force: bool, how: str, which: str | int) -> None:
    """The contract's table of builds; ``known`` is newest first. A new build claims its config."""
    builds = [
        KnownBuild(f"build_{place}", told.split()[-1], "other" if told.startswith("other") else "same")
        for place, told in enumerate(known)
    ]
    binding = commands.bind(CONFIG, 7, builds, WANTED, force=force)
    assert binding.how == how
    assert binding.active == (how == "reused")
    if how != "created":
        assert (binding.build_id, binding.parts) == (f"build_{which}", ())
        return
    assert binding.build_id == WANTED.id
    claim, created = binding.parts
    assert claim == Part("config_1", (), expect=7)
    assert (created.stream, created.expect) == (WANTED.id, NEW)
    assert orjson.loads(created.events[0].data)["reason"] == which


@pytest.mark.parametrize("status", ["queued", "building"])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("wait", [False, True])
def test_a_build_in_progress_is_refused(status: str, force: bool, wait: bool) -> None:
    """It answers who waits for it, and who forces one while it is queued; everybody else is told which one it is."""
    answered = (force and status == "queued") or (wait and not force)
    joined = Binding("build_0", active=False, how="joined")
    if answered:
        commands.refuse_busy_build(joined, status, BuildOptions(force=force, wait=wait))
        return
    with pytest.raises(BuildInProgress) as refused:
        commands.refuse_busy_build(joined, status, BuildOptions(force=force, wait=wait))
    assert refused.value.facts == {"build_id": "build_0"}


@pytest.mark.parametrize("how", ["created", "reused"])
def test_a_build_that_is_not_in_progress_is_never_refused(how: Literal["created", "reused"]) -> None:
    commands.refuse_busy_build(Binding("build_0", active=how == "reused", how=how), "queued", BuildOptions())


ASKED = CreateRun("run_1", CONFIG, RunOptions(dry_run=True), (), "somebody")


@pytest.mark.parametrize("how", ["created", "reused", "joined"])
def test_a_run_waits_for_a_build_that_is_not_active(how: Literal["created", "reused", "joined"]) -> None:
    """It is bound to the build for good; a new build is created in the same append, after the run."""
    parts = (Part("build_0", (build_created(),), expect=NEW),) if how == "created" else ()
    run, *rest = commands.create_run(ASKED, Binding("build_0", active=how == "reused", how=how, parts=parts))
    state = folded(log_of("run_1", *run.events))
    assert isinstance(state, runs.Run)
    assert (state.build_id, state.options) == ("build_0", {"dry_run": True})
    assert state.waiting_for == ("worker" if how == "reused" else "build")
    assert (run.stream, run.expect, tuple(rest)) == ("run_1", NEW, parts)


def test_what_safe_mode_refuses_is_on_record() -> None:
    """Created, told, ended: one append for a run, one for a build."""
    for parts in (commands.refuse_run_in_safe_mode(ASKED), commands.refuse_build_in_safe_mode(CONFIG, WANTED)):
        [part] = parts
        created, told, ended = part.events
        assert (created.bulk, told.bulk, ended.ends, part.expect) == (False, True, True, NEW)
        state = folded(log_of(part.stream, created, ended))
        assert (state.status, state.stop_reason, state.error_message) == ("failed", "safe_mode", commands.SAFE_MODE)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("waits_for", ["build", "disk", "safe_mode", "worker"])
def test_only_what_a_worker_would_begin_waits_for_safe_mode(
    waits_for: Literal["build", "disk", "safe_mode", "worker"], on: bool
) -> None:
    """On: who waits for a worker says so. Off: who said so waits for a worker. Twice, or later in its life: nothing."""
    queued = log_of("run_1", run_created(None, 2), events.RunWaiting(for_=waits_for).event())
    after = {("worker", True): "safe_mode", ("safe_mode", False): "worker"}.get((waits_for, on))
    state = folded(queued)
    assert isinstance(state, runs.Run)
    said = commands.wait_for_safe_mode(state, on=on)
    moved = folded((*queued, *log_of("run_1", *said)))
    assert isinstance(moved, runs.Run)
    assert (len(said), moved.waiting_for) == (after is not None, after or waits_for)
    assert commands.wait_for_safe_mode(moved, on=on) == []
    for later in (run_started(), commands.run_completed("canceled", "canceled").event()):
        ended = folded((*queued, *log_of("run_1", later)))
        assert isinstance(ended, runs.Run)
        assert commands.wait_for_safe_mode(ended, on=on) == []
