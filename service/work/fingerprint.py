"""When a build may be reused: the same config, the same engine, the same Python give the same fingerprint.

A registry requirement counts by its text. A local engine, a folder or a wheel, counts by its content: edit one file of
it and the next build is a new one, touch it or move it and nothing happens.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote

from service.work.package import digest

_NAMED: Final = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*(\s*\[[^\]]*\])?)\s*@\s*(?P<source>\S+)")


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """An engine on this machine's disk: a project folder, a wheel or a source archive.

    `name` is what the requirement calls it, with extras, where it is of the form `name[extra] @ file:///…`.
    """

    name: str | None
    path: Path

    @classmethod
    def of(cls, engine: str) -> Self | None:
        """The local engine that this requirement means, or None for one that an index or a repository must answer."""
        named = _NAMED.fullmatch(engine)
        name, source = (named["name"], named["source"]) if named else (None, engine)
        if source.startswith("file://"):
            return cls(name, Path(unquote(source.removeprefix("file://").partition("#")[0])))
        if "://" not in source and ("/" in source or source.endswith(".whl")):
            return cls(name, Path(source).expanduser().absolute())
        return None

    def digest(self) -> str:
        """SHA-256, in hex, of the content; "missing" where nothing lies: the build will say so. Raises BadPackage."""
        if self.path.is_dir():
            return digest(self.path)
        if not self.path.is_file():
            return "missing"
        with self.path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()


def fingerprint(config_digest: str, engine: str | None, python_version: str) -> str:
    """SHA-256, in hex, of all that decides what a build gives. Reads a local engine from disk: call it in a thread.

    `engine` is the resolved requirement; None or "" where the config is its own engine.
    """
    local = LocalEngine.of(engine) if engine else None
    identity = (local.name or "", local.digest()) if local else (engine or "",)
    return hashlib.sha256("\0".join((config_digest, python_version, *identity)).encode()).hexdigest()
