"""Control groups (v2): whether the service may make some, and those that its engines have.

The kernel limits only groups beside which no process is. So the service moves into a group of its own below the one
that it was started in, and each engine gets one beside it, from its supervisor. Nothing remembers whether that is in
force: a process that is in such a group can see it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from service.work import supervisor

OWN: Final = "ade.own"
"""The group of the service's own processes."""
CONTROLLERS: Final = frozenset({"memory", "pids"})
"""What must be delegated. CPU time is counted without a controller."""
KERNEL: Final = 5, 14
"""The first one with `cgroup.kill`."""
_ENGINE: Final = re.compile(r"((?:run|build)_\w+)\.\d+")
"""The group of an engine: its run or build, and the process id of its supervisor."""


class NotDelegated(Exception):
    """Engines cannot have control groups; the message says why, and what to do."""


def claim() -> Path:
    """Make room for engines' groups: below which one they will be. Harmless when repeated. Raises NotDelegated.

    To be called before any process is started, since what is there already would be in the way.
    """
    home = delegated()
    own = home / OWN
    try:
        own.mkdir(exist_ok=True)
        (own / "cgroup.procs").write_text("0")
        (home / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(CONTROLLERS)))
    except OSError as error:
        with suppress(OSError):  # where we were not let in
            (home / "cgroup.procs").write_text("0")
        remove(own)
        raise NotDelegated(f"{home} is not for the service alone ({error.strerror}). Start it as a unit.") from error
    return home


def delegated() -> Path:
    """The group that was given to this process, as far as can be told by looking. Raises NotDelegated."""
    here = group_of("self")
    if here is None:
        raise NotDelegated("There are no control groups (v2) here.")
    if tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < KERNEL:
        raise NotDelegated("This kernel is older than 5.14.")
    home = here.parent if here.name == OWN else here
    if missing := CONTROLLERS - _words(home / "cgroup.controllers"):
        raise NotDelegated(f"{home} lacks the controllers {', '.join(sorted(missing))}: not delegated, or used by v1.")
    if not (os.access(home, os.W_OK) and os.access(home / "cgroup.procs", os.W_OK) and _is_given(home)):
        raise NotDelegated(f"{home} is not delegated. `Delegate=yes` in a systemd unit does that.")
    return home


def _is_given(home: Path) -> bool:
    """Who may write above it as well may not just take it: systemd marks what it gives, and takes the rest back."""
    if not os.access(home.parent, os.W_OK) or not Path("/run/systemd/system").exists():
        return True
    return not {"trusted.delegate", "user.delegate"}.isdisjoint(os.listxattr(home))


def home_of(process: str = "self") -> Path | None:
    """The group below which the engines of that process get theirs; None where they get none."""
    here = group_of(process)
    if here is None or here.name != OWN or not _words(here.parent / "cgroup.subtree_control") >= CONTROLLERS:
        return None
    return here.parent


def homes() -> set[Path]:
    """The same of every process of this machine."""
    found = {home_of(folder.name) for folder in Path("/proc").glob("[0-9]*")}
    return {home for home in found if home is not None}


def groups(stream: str | None = None) -> Iterator[tuple[str, Path]]:
    """The groups of this service's engines, of one run or build or of all: whose it is, and where."""
    home = home_of()
    for folder in home.iterdir() if home else ():
        named = _ENGINE.fullmatch(folder.name)
        if named and stream in (None, named[1]):
            yield named[1], folder


def members(group: Path) -> set[int]:
    """The processes in a group and in those that an engine made in it."""
    return {int(process) for folder, _, _ in os.walk(group) for process in _words(Path(folder, "cgroup.procs"))}


def kill(group: Path) -> None:
    """SIGKILL to all of them, at one stroke."""
    with suppress(FileNotFoundError):  # its supervisor was faster, and has removed it
        (group / "cgroup.kill").write_text("1")


def remove(group: Path) -> None:
    """It is gone, unless something in it hangs."""
    supervisor.remove_group(os.fsencode(group))


def group_of(process: str) -> Path | None:
    """The folder of the group that a process is in; None where it cannot be seen from here."""
    try:
        return place(Path("/proc/self/mountinfo").read_text(), Path("/proc", process, "cgroup").read_text())
    except OSError:  # it has ended
        return None


def place(mountinfo: str, cgroup: str) -> Path | None:
    """The folder of a group, by what `/proc` says of mounts and of a process. None: no mount shows it."""
    group = next((PurePosixPath(line[3:]) for line in cgroup.splitlines() if line.startswith("0::")), None)
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        if group is None or not after.startswith("cgroup2 "):
            continue
        root, mount = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), word) for word in before.split()[3:5])
        if group.is_relative_to(root) and ".." not in group.parts:
            return Path(mount, group.relative_to(root))
    return None


def _words(file: Path) -> set[str]:
    """What a file of the kernel lists; nothing where there is no such file."""
    try:
        return set(file.read_text().split())
    except OSError:
        return set()
