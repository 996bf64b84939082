"""uv, pointed at the venv of one build: the commands that make it, within limits, and why one of them failed.

uv obeys the machine's own settings (`~/.config/uv/uv.toml`, `/etc/uv/uv.toml`) and the variables that
`installer_environment` lets through, and nothing else. Engines get none of these: index addresses hold passwords.
"""

import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import anyio
from anyio import to_thread
from uv import find_uv_bin

from service.work import execution
from service.work.execution import Execution, Gap, Task
from service.work.lines import Line, Telemetry
from service.work.masking import NOTHING, Mask
from service.work.process import Command, Signaled

VENV: Final = ".venv"
LOCK: Final = "pylock.toml"
ANSWER_S: Final = 30  # for an interpreter to say what it is
REMEMBERED_LINES: Final = 500  # of a command's stderr, to find its reason in
MAX_REASON_CHARS: Final = 2000

Said = Line | Telemetry | Signaled | Gap
Say = Callable[[Said], Awaitable[None]]

_FORWARDED: Final = re.compile(
    r"UV_(DEFAULT_INDEX|INDEX\w*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|INSECURE_HOST|KEYRING_PROVIDER|OFFLINE|EXCLUDE_NEWER)"
    r"|UV_(HTTP_\w+|CONCURRENT_\w+|SYSTEM_CERTS|TORCH_BACKEND)|(https?|all|no)_proxy"
    r"|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT|REQUESTS_CA_BUNDLE|NETRC|PATH|HOME|TMPDIR",
    re.IGNORECASE,
)
_FROM_PIP: Final = (
    ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
    ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
    ("SSL_CERT_FILE", "PIP_CERT"),
    ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)


def installer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` the installer gets: PATH, HOME, TMPDIR, and the index, proxy and certificate variables.

    uv does not read pip's variables; they are handed on under uv's names where those are not set.
    """
    picked = {name: value for name, value in environ.items() if value and _FORWARDED.fullmatch(name)}
    for ours, theirs in _FROM_PIP:
        if environ.get(theirs):
            picked.setdefault(ours, environ[theirs])
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "UV_SYSTEM_CERTS": "1", **picked}


class CommandFailed(Exception):
    """A command did not end with exit code 0; `reason` is what it said about that, as one sentence."""

    def __init__(self, exit_code: int | None, reason: str) -> None:
        super().__init__(reason)
        self.exit_code = exit_code
        self.reason = reason


class Stopped(Exception):
    """The commands were ended before they were done; `message` says why, as a sentence."""

    def __init__(self, why: Literal["timeout", "canceled"], message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """How far a build may go: the whole, each step of it, its end after SIGTERM, and what it writes."""

    timeout_s: float
    step_timeout_s: float | None = None
    grace_s: float = 10
    line_max_bytes: int = 16 * 2**20
    log_max_bytes: int = 2**30
    mask: Mask = NOTHING


class Commands:
    """Runs the commands of one build, one after the other, within its limits. `canceled`: it is asked to stop."""

    def __init__(self, limits: BuildLimits, canceled: anyio.Event, say: Say) -> None:
        self.limits = limits
        self._canceled = canceled
        self._say = say
        self._step: str | None = None
        self._step_until = self._until = time.monotonic() + limits.timeout_s
        self._bytes = 0

    def begin(self, step: str) -> None:
        """From here on it is in this step."""
        self._step = step
        most = self.limits.step_timeout_s
        self._step_until = self._until if most is None else min(self._until, time.monotonic() + most)

    def check(self) -> None:
        """Raises Stopped where nothing more may be begun."""
        if self._canceled.is_set():
            raise Stopped("canceled", "It was canceled.")
        if time.monotonic() >= self._step_until:
            raise Stopped("timeout", self._too_long())

    async def run(self, command: Command, say: Say | None = None) -> None:
        """Runs one to its end and says every line as it comes. Raises CommandFailed, or Stopped.

        What is said to ``say`` is data for us, and not masked yet.
        """
        self.check()
        stderr: deque[str] = deque(maxlen=REMEMBERED_LINES)

        async def hand_on(fact: execution.Fact) -> None:
            if isinstance(fact, Signaled | Gap):
                await self._say(fact)
                return
            for item in fact:
                if isinstance(item, Line) and item.stream == "stderr":
                    stderr.append(item.message)
                await (say or self._say)(item)

        limits = self.limits
        task = Task(
            command,
            timeout_s=self._step_until - time.monotonic(),
            grace_s=limits.grace_s,
            line_max_bytes=limits.line_max_bytes,
            log_max_bytes=limits.log_max_bytes,
            log_bytes=self._bytes,
            mask=NOTHING if say else limits.mask,
        )
        ended = await Execution(task, hand_on, self._canceled).run()
        self._bytes += ended.bytes
        if ended.why == "canceled":
            raise Stopped("canceled", "It was canceled.")
        if ended.why == "timeout":
            raise Stopped("timeout", self._too_long())
        exit_ = ended.exit
        if exit_.error or exit_.signal:
            raise CommandFailed(exit_.code, exit_.error or f"it was ended by {exit_.signal}")
        if exit_.code != 0:
            raise CommandFailed(exit_.code, limits.mask.text(_reason(list(stderr))))

    def _too_long(self) -> str:
        if self._step is None:
            return f"Another worker kept its folder for {self.limits.timeout_s:g} s."
        if self._step_until < self._until:
            return f"The step {self._step} took longer than {self.limits.step_timeout_s:g} s."
        return f"It took longer than {self.limits.timeout_s:g} s, and was in {self._step}."


async def python_version(python: Path) -> str:
    """The full version of an interpreter, such as 3.11.7. Raises CommandFailed where there is none."""
    said: list[str] = []

    async def keep(fact: Said) -> None:
        if isinstance(fact, Line) and fact.stream == "stdout":
            said.append(fact.message)

    script = "import platform; print(platform.python_version())"
    asking = Command((str(python), "-I", "-S", "-c", script), cwd=Path("/"), env={"PATH": os.defpath})
    try:
        await Commands(BuildLimits(timeout_s=ANSWER_S), anyio.Event(), keep).run(asking)
    except Stopped as stopped:
        raise CommandFailed(None, f"it did not answer within {ANSWER_S} s") from stopped
    return said[0]


@dataclass(frozen=True, slots=True)
class Installer:
    """uv in one build folder. Every command says its lines and raises CommandFailed, or Stopped."""

    folder: Path
    environment: Mapping[str, str]
    cache_dir: Path
    commands: Commands
    say: Say

    async def create_venv(self, python: Path) -> None:
        """A new venv of this interpreter, never of another one, and never of a downloaded one."""
        for folder in (self.cache_dir, self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        # uv obeys the nearest file of this name upwards; without it, that of a project around the data folder.
        (self.folder / "uv.toml").write_text("# Ends the search for the settings of a project around this folder.\n")
        await self._uv("venv", "--no-project", "--python", str(python), VENV)

    async def build_wheel(self, source: Path, into: Path) -> Path:
        """The wheel of a project folder or of a source archive, built by the project's own code."""
        flags = ("--python", VENV, "--no-create-gitignore", "--out-dir", str(into))
        await self._uv("build", "--wheel", *flags, "--", str(source))
        (wheel,) = await to_thread.run_sync(lambda: list(into.glob("*.whl")))
        return wheel

    async def install(self, requirements: Sequence[str], *, compile_bytecode: bool) -> None:
        """These, resolved together; what is installed already stays as it is where that is possible."""
        compiling = ("--compile-bytecode",) if compile_bytecode else ()
        await self._uv("pip", "install", "--python", VENV, *compiling, "--", *requirements)

    async def lock(self) -> None:
        """Write what is installed to `pylock.toml`: exact versions, hashes, and our own wheels by relative path."""
        installed: list[str] = []

        async def keep(fact: Said) -> None:
            if isinstance(fact, Line):
                if fact.stream == "stdout":
                    installed.append(fact.message.replace(self.folder.as_uri(), "."))
                fact = fact._replace(message=self.commands.limits.mask.text(fact.message))
            await self.say(fact)

        await self._uv("pip", "freeze", "--python", VENV, say=keep)
        (self.folder / "installed.txt").write_text("\n".join(installed) + "\n")
        flags = ("--quiet", "--no-deps", "--no-header", "--python", VENV)
        await self._uv("pip", "compile", *flags, "--format", "pylock.toml", "--output-file", LOCK, "installed.txt")

    async def sync(self, *, compile_bytecode: bool) -> None:
        """Make the venv what `pylock.toml` says; a file whose hash is another one is refused."""
        compiling = ("--compile-bytecode",) if compile_bytecode else ()
        await self._uv("pip", "sync", "--preview-features", "pylock", "--python", VENV, *compiling, LOCK)

    async def _uv(self, *arguments: str, say: Say | None = None) -> None:
        environment = {
            **self.environment,
            "UV_CACHE_DIR": str(self.cache_dir),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_NO_PROGRESS": "1",
            "NO_COLOR": "1",
        }
        if self.cache_dir.stat().st_dev != self.folder.stat().st_dev:
            environment["UV_LINK_MODE"] = "copy"  # no links between file systems; uv would try, and warn
        try:
            await self.commands.run(Command((find_uv_bin(), *arguments), self.folder, environment), say)
        except CommandFailed as failure:
            failure.reason = failure.reason.replace(f"{self.folder}/", "")
            raise


def _reason(stderr: Sequence[str]) -> str:
    """uv ends with `error: …` and `cause: …` lines; the exception of a build backend stands above them."""
    start = max((at for at, line in enumerate(stderr) if line.startswith("error: ")), default=None)
    if start is None:
        return next((line for line in reversed(stderr) if line.strip()), "it said nothing")[:MAX_REASON_CHARS]
    reason = ""
    for line in stderr[start:]:
        if line.startswith("hint:"):
            break
        if any(map(str.isalnum, line)):  # not a rule or a caret below a line of TOML
            reason += ": " + line.strip()[7:] if line.startswith("  cause: ") else " " + line.strip()
    traceback = max((at for at, line in enumerate(stderr[:start]) if line.startswith("Traceback (")), default=start)
    exception = next((line for line in stderr[traceback + 1 : start] if line.strip() and line[0] != " "), None)
    reason = re.sub(r"^ error: (Failed to build `[^`]*`: )?", "", reason)
    return (f"{reason}: {exception}" if exception else reason)[:MAX_REASON_CHARS]
