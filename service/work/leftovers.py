"""Processes of a run or a build that nobody watches any more, found on this machine by the mark in their environment.

A supervisor kills its engine when its worker is gone. But a supervisor can be stopped or killed itself, and a worker
can be stopped while another one takes its work. So whoever takes over looks here first. What an engine started without
its environment is found as well, as long as it descends from something that has the mark: the supervisor has it too;
or as long as it is in a control group of that run or build.
"""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.work import cgroup, supervisor

RUN_MARK: Final = "ADE_RUN_ID"
BUILD_MARK: Final = "ADE_BUILD_ID"
KILL_SECONDS: Final = supervisor.KILL_SECONDS
PAUSE_S: Final = 0.01

Mark = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Killed:
    """There were processes, and all got SIGKILL; ``survivors`` did not end of it in time."""

    survivors: int


def mark_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Of an engine's or installer's environment: what it is known by."""
    return {name: environment[name] for name in (RUN_MARK, BUILD_MARK) if name in environment}


def mark_of_stream(stream: str) -> dict[str, str]:
    """What the processes of this run or build are known by."""
    return {RUN_MARK if stream.startswith("run_") else BUILD_MARK: stream}


def kill(mark: Mark) -> Killed | None:
    """No process with this mark lives here afterwards, nor what descends from it; None where there was none. Blocks."""
    wanted = {f"{name}={value}".encode() for name, value in mark.items()}
    groups = [group for stream in mark.values() for _, group in cgroup.groups(stream)]
    deadline = time.monotonic() + KILL_SECONDS
    found = False
    while living := _living(wanted).union(*map(cgroup.members, groups)):
        if time.monotonic() > deadline:
            return Killed(len(living))
        found = True
        for group in groups:
            cgroup.kill(group)
        # A supervisor is its engine's reaper: what hides below it would be lost from sight if it went first.
        engines = {process for process in living if not _is_supervisor(process)}
        for process in engines or living:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(PAUSE_S)
    for group in groups:
        cgroup.remove(group)
    return Killed(0) if found else None


def streams() -> set[str]:
    """The runs and builds that have a process on this machine, or a control group."""
    names = (f"{RUN_MARK}=".encode(), f"{BUILD_MARK}=".encode())
    return {stream for stream, _ in cgroup.groups()} | {
        variable.partition(b"=")[2].decode("utf-8", "replace")
        for _, environment in _environments()
        for variable in environment
        if variable.startswith(names)
    }


def _living(wanted: set[bytes]) -> set[int]:
    marked = {process for process, environment in _environments() if wanted & environment}
    return (marked | supervisor.descendants(*marked).keys() if marked else marked) - {os.getpid()}


def _environments() -> Iterator[tuple[int, set[bytes]]]:
    """Every process that we may look into, with the environment that it was started with. The dead have none."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended since the listing, or another user's
            if environment := (folder / "environ").read_bytes():
                yield int(folder.name), set(environment.split(b"\0"))


def _is_supervisor(process: int) -> bool:
    try:
        return supervisor.__file__.encode() in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
