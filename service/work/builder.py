"""Builds: from a config package and an engine to a venv that imports both.

`build` and `hydrate` tell facts through an awaited callback and know no log. What holds for `plan.folder`:

- its venv is usable exactly when the marker is in it; the marker is written under another name and renamed last;
- a build that fails, is canceled or takes too long leaves no process and no folder; one whose worker was killed leaves
  a venv without a marker, and perhaps processes, which the next attempt ends and deletes;
- beside the venv lie `pylock.toml` and the wheels made from local sources: the same venv can be made again.

The venv is made in its place, because one that is moved loses its console scripts. Wheels are made as the service's
user, with the code of config and engine: that takes the index, with its passwords, and the cache. They are imported
under `plan.account`.
"""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final, Literal

import anyio
import orjson
from anyio import to_thread

from service.work import leftovers, package
from service.work.archive import BadPackage
from service.work.execution import Gap
from service.work.fingerprint import LocalEngine
from service.work.installer import LOCK, VENV, BuildLimits, CommandFailed, Commands, Installer, Said, Stopped
from service.work.inventory import InstalledPackage, installed_packages, interpreter_version, top_level_modules
from service.work.lines import Line, Telemetry
from service.work.manifest import Manifest
from service.work.process import Account, Command, Signaled

LOCK_POLL_S: Final = 0.05
MARKER: Final = "ade_build.json"
WHEELS: Final = "wheels"

Step = Literal["create_venv", "install_engine", "install_config", "verify_imports", "collect_metadata"]

_FAILURES: Final[Mapping[Step, str]] = {
    "create_venv": "The venv could not be made",
    "install_engine": "The engine could not be installed",
    "install_config": "The config could not be installed",
    "verify_imports": "The imports failed",
    "collect_metadata": "The installed packages could not be locked",
}
_IMPORT: Final = """
import importlib, sys, traceback
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        traceback.print_exc()
        said = " ".join(str(error).split())
        sys.exit(f"cannot import {name}: {type(error).__name__}: {said}")
"""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What to build, from what, where; all paths are absolute.

    `engine` is the resolved requirement, None or "" when the config is its own.
    """

    build_id: str
    folder: Path  # `<venvs>/<workspace>/<config>/<build>`, which belongs to this build alone
    package: Path  # the unpacked config package
    manifest: Manifest
    engine: str | None
    python: Path
    installer_env: Mapping[str, str]  # see `installer_environment`
    cache_dir: Path  # uv's, shared by all builds
    account: Account | None = None  # that runs will have


@dataclass(frozen=True, slots=True)
class StepStarted:
    step: Step


@dataclass(frozen=True, slots=True)
class StepCompleted:
    step: Step
    duration_ms: int
    message: str | None


@dataclass(frozen=True, slots=True)
class StepFailed:
    step: Step
    message: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a command of this step wrote."""

    step: Step
    line: Line | Telemetry


Fact = StepStarted | StepCompleted | StepFailed | Output | Signaled | Gap
Emit = Callable[[Fact], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Built:
    """A usable venv: what is installed in it, and the full version of its Python."""

    packages: tuple[InstalledPackage, ...]
    python: str


class BuildFailed(Exception):
    """A build, or a hydration, that gave no usable venv; `message` is one sentence that carries the reason."""

    StopReason = Literal["failed", "timeout", "canceled"]

    def __init__(self, message: str, *, exit_code: int | None = None, stop_reason: StopReason = "failed") -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.stop_reason = stop_reason


def venv_python(folder: Path) -> Path:
    """The interpreter of the build in this folder."""
    return folder / VENV / "bin" / "python"


def usable(folder: Path) -> bool:
    """Whether the build in this folder was finished, and the Python that it was made with is still there."""
    return (folder / VENV / MARKER).is_file() and venv_python(folder).exists()


async def build(plan: BuildPlan, emit: Emit, limits: BuildLimits, canceled: anyio.Event) -> Built:
    """Make the venv of this build, or find it finished. Raises BuildFailed, also when `canceled` is set."""
    work = _Work(plan, emit, limits, canceled)
    async with work.alone():
        if usable(plan.folder):  # the worker died between the marker and the end of the build's log
            return _read_marker(plan)
        await to_thread.run_sync(_delete, plan.folder)
        return await work.within(work.build, unfinished=plan.folder)


async def hydrate(plan: BuildPlan, emit: Emit, limits: BuildLimits, canceled: anyio.Event) -> Built:
    """Make the missing venv of a finished build again, from its lock and wheels. Raises BuildFailed, as `build`."""
    work = _Work(plan, emit, limits, canceled)
    async with work.alone():
        if usable(plan.folder):  # another run needed it too, and has made it
            return _read_marker(plan)
        if not await to_thread.run_sync((plan.folder / LOCK).is_file):
            raise BuildFailed(
                f"The venv of {plan.build_id} is gone, and its lock too: build the config again, with force."
            )
        await to_thread.run_sync(_delete, plan.folder / VENV)
        return await work.within(work.hydrate, unfinished=plan.folder / VENV)


async def discard(folder: Path, needed: Callable[[], Awaitable[bool]], *, whole: bool = False) -> bool:
    """Delete the venv of the build in this folder, or the `whole` of it, unless somebody works there or it is `needed`:
    whether it is gone.

    The marker goes first, then `needed` is asked. A run that begins afterwards finds no usable venv, and waits for our
    lock before it makes one; one that began before has said so in the log, and is seen. Asked before, a run could begin
    after the answer, and the venv would be deleted under its engine.
    """
    with _lock_of(folder).open("wb") as lock:
        if not _locked(lock):
            return False
        marker, hidden = folder / VENV / MARKER, folder / VENV / f"{MARKER}.hidden"
        if marker.is_file():
            marker.rename(hidden)
        gone = False
        try:
            gone = not await needed()
        finally:
            if not gone and hidden.is_file():
                hidden.rename(marker)
        if gone:
            await to_thread.run_sync(_delete, folder if whole else folder / VENV)
        return gone


def _lock_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.lock"


def _locked(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Work:
    """One attempt at one plan, and the step that it is in."""

    def __init__(self, plan: BuildPlan, emit: Emit, limits: BuildLimits, canceled: anyio.Event) -> None:
        self._plan = plan
        self._emit = emit
        self._step: Step = "create_venv"
        self._mark = leftovers.mark_of_stream(plan.build_id)
        self._commands = Commands(limits, canceled, self._say)
        self._installer = Installer(
            plan.folder, {**plan.installer_env, **self._mark}, plan.cache_dir, self._commands, self._say
        )
        # Runs under another account cannot write bytecode, and would compile everything that they import every time.
        self._compile_bytecode = plan.account is not None
        self._requirements: list[str] = []
        self._config_wheel: Path

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else on this disk works in the folder meanwhile: neither a run that misses the same venv, nor a worker
        that lost its lease and does not know it yet. A worker that dies lets go of it; what it left running is ended.
        """
        folder = self._plan.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(folder).open("wb") as lock:
            try:
                while not _locked(lock):  # the kernel sends no event when a lock is free
                    self._commands.check()
                    await anyio.sleep(LOCK_POLL_S)
                if killed := await to_thread.run_sync(leftovers.kill, self._mark):
                    await self._emit(Signaled("SIGKILL", killed.survivors))
                yield
            except Stopped as stopped:
                raise BuildFailed(stopped.message, stop_reason=stopped.why) from stopped

    async def within(self, work: Callable[[], Awaitable[Built]], unfinished: Path) -> Built:
        """Its result; where there is none, `unfinished` is deleted."""
        try:
            return await work()
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_delete, unfinished)
            if isinstance(error, BuildFailed | Stopped):
                await self._emit(StepFailed(self._step, error.message))
            raise

    async def build(self) -> Built:
        await self._take("create_venv", self._create_venv)
        await self._take("install_engine", self._install_engine)
        await self._take("install_config", self._install_config)
        await self._take("verify_imports", self._verify_imports)
        await self._take("collect_metadata", self._installer.lock)
        return await to_thread.run_sync(_commit, self._plan)

    async def hydrate(self) -> Built:
        await self._take("create_venv", self._create_venv)
        await self._take("install_config", self._sync)
        return await to_thread.run_sync(_commit, self._plan)

    async def _take(self, step: Step, work: Callable[[], Awaitable[str | None]]) -> None:
        self._step = step
        self._commands.begin(step)
        self._commands.check()
        await self._emit(StepStarted(step))
        started = time.monotonic()
        try:
            message = await work()
        except CommandFailed as failure:
            raise BuildFailed(f"{_FAILURES[step]}: {failure.reason}", exit_code=failure.exit_code) from failure
        except (BadPackage, OSError) as error:  # a link out of a local engine; a full disk
            raise BuildFailed(f"{_FAILURES[step]}: {error}") from error
        await self._emit(StepCompleted(step, round((time.monotonic() - started) * 1000), message))

    async def _say(self, said: Said) -> None:
        await self._emit(said if isinstance(said, Signaled | Gap) else Output(self._step, said))

    async def _create_venv(self) -> None:
        await self._installer.create_venv(self._plan.python)

    async def _install_engine(self) -> str | None:
        if not self._plan.engine:
            return "the config is its own engine"
        self._requirements.append(await self._engine_requirement(self._plan.engine))
        await self._installer.install(self._requirements, compile_bytecode=self._compile_bytecode)
        return None

    async def _engine_requirement(self, engine: str) -> str:
        """What to ask uv for; a local engine becomes a wheel of ours first."""
        local = LocalEngine.of(engine)
        if local is None:
            return engine
        wheels = self._plan.folder / WHEELS / "engine"
        if local.path.is_dir():
            wheel = await self._build_wheel(local.path, wheels)
        elif not local.path.is_file():
            raise CommandFailed(None, f"there is nothing at {local.path}")
        elif local.path.suffix == ".whl":
            wheels.mkdir(parents=True)
            wheel = Path(await to_thread.run_sync(shutil.copy, local.path, wheels))
        else:
            wheel = await self._installer.build_wheel(local.path, wheels)
        return f"{local.name} @ {wheel.as_uri()}" if local.name else str(wheel)

    async def _install_config(self) -> None:
        self._config_wheel = await self._build_wheel(self._plan.package, self._plan.folder / WHEELS / "config")
        self._requirements.append(str(self._config_wheel))
        # With the engine once more, so that what the config asks for is resolved together with what the engine needs.
        await self._installer.install(self._requirements, compile_bytecode=self._compile_bytecode)
        await self._open_to_account()

    async def _build_wheel(self, source: Path, into: Path) -> Path:
        """From a copy of what the digest counts: build code writes beside its sources, and reads what is left there."""
        copied = self._plan.folder / "source"
        await to_thread.run_sync(package.copy, source, copied)
        wheel = await self._installer.build_wheel(copied, into)
        await to_thread.run_sync(_delete, copied)
        return wheel

    async def _sync(self) -> None:
        await self._installer.sync(compile_bytecode=self._compile_bytecode)
        await self._open_to_account()

    async def _open_to_account(self) -> None:
        if self._plan.account:
            await to_thread.run_sync(_make_readable, self._plan.folder)

    async def _verify_imports(self) -> str:
        plan = self._plan
        modules = plan.manifest.imports
        if modules is None:
            modules = await to_thread.run_sync(top_level_modules, plan.folder / VENV, self._config_wheel)
        scratch = plan.folder / "scratch"  # of whoever runs the imports, so that they have a home to write to
        scratch.mkdir()
        if plan.account:
            os.chown(scratch, plan.account.uid, plan.account.gid)
        environment = {"PATH": plan.installer_env.get("PATH", os.defpath), "HOME": str(scratch), "LANG": "C.UTF-8"}
        environment |= self._mark
        argv = (str(venv_python(plan.folder)), "-I", "-c", _IMPORT, *modules)
        await self._commands.run(Command(argv, scratch, environment, account=plan.account))
        await to_thread.run_sync(_delete, scratch)
        return f"imported {', '.join(modules)}" if modules else "there is nothing to import"


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _make_readable(folder: Path) -> None:
    """For every account, whatever the umask was, here or when uv's cache got the file that a link leads to."""
    for here, folders, files in os.walk(folder):
        for path in (Path(here), *(Path(here, name) for name in [*folders, *files])):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                path.chmod(mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0))


def _commit(plan: BuildPlan) -> Built:
    venv = plan.folder / VENV
    built = Built(installed_packages(venv, plan.folder / LOCK), interpreter_version(venv))
    draft = venv / f"{MARKER}.draft"
    draft.write_bytes(orjson.dumps({"build_id": plan.build_id, **asdict(built)}))
    draft.rename(venv / MARKER)
    return built


def _read_marker(plan: BuildPlan) -> Built:
    marker = orjson.loads((plan.folder / VENV / MARKER).read_bytes())
    return Built(tuple(InstalledPackage(**found) for found in marker["packages"]), marker["python"])
