"""uv, pointed at the venv of one build: the commands that make it, and why one of them failed, in a sentence.

uv obeys the machine's own settings (`~/.config/uv/uv.toml`, `/etc/uv/uv.toml`) and the variables that
`installer_environment` lets through, and nothing else. Engines get none of these: index addresses hold passwords.
"""

import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anyio import to_thread
from uv import find_uv_bin

from service.work.lines import Line, LineSplitter, StreamName, Telemetry
from service.work.process import Command, running

VENV: Final = ".venv"
LOCK: Final = "pylock.toml"
REMEMBERED_LINES: Final = 500  # of a command's stderr, to find its reason in
MAX_REASON_CHARS: Final = 2000

Say = Callable[[Line | Telemetry], Awaitable[None]]

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


async def run(command: Command, say: Say) -> None:
    """Run a command to its end and say every line that it writes, as it comes. Raises CommandFailed."""
    splitters: dict[StreamName, LineSplitter] = {"stdout": LineSplitter("stdout"), "stderr": LineSplitter("stderr")}
    stderr: deque[str] = deque(maxlen=REMEMBERED_LINES)

    async def hand_on(facts: Sequence[Line | Telemetry]) -> None:
        for fact in facts:
            if isinstance(fact, Line) and fact.stream == "stderr":
                stderr.append(fact.message)
            await say(fact)

    async with running(command) as process:
        while chunks := await process.read():
            for stream, chunk in chunks:
                await hand_on(splitters[stream].feed(chunk))
        for splitter in splitters.values():
            await hand_on(splitter.close())
        ended = await process.wait()
    if ended.error or ended.signal:
        raise CommandFailed(ended.code, ended.error or f"it was ended by {ended.signal}")
    if ended.code != 0:
        raise CommandFailed(ended.code, _reason(list(stderr)))


async def python_version(python: Path) -> str:
    """The full version of an interpreter, such as 3.11.7. Raises CommandFailed where there is none."""
    said: list[str] = []

    async def keep(fact: Line | Telemetry) -> None:
        if isinstance(fact, Line) and fact.stream == "stdout":
            said.append(fact.message)

    script = "import platform; print(platform.python_version())"
    await run(Command((str(python), "-I", "-S", "-c", script), cwd=Path("/"), env={"PATH": os.defpath}), keep)
    return said[0]


@dataclass(frozen=True, slots=True)
class Installer:
    """uv in one build folder. Every command says its lines and raises CommandFailed."""

    folder: Path
    environment: Mapping[str, str]
    cache_dir: Path
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

        async def keep(fact: Line | Telemetry) -> None:
            if isinstance(fact, Line) and fact.stream == "stdout":
                installed.append(fact.message.replace(self.folder.as_uri(), "."))
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
            await run(Command((find_uv_bin(), *arguments), self.folder, environment), say or self.say)
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
