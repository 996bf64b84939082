"""A config package as a folder: what belongs to it, and the digest, the archive and the copy that follow from that.

`source_files` is the one rule. `digest`, `pack` and `copy` obey it, so what is counted, what is sent and what is built
are the same files, and the build output that an earlier build left in a working folder takes part in none of them.
"""

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from service.work.archive import BadPackage, PackageLimits, extract

MANIFEST: Final = "pyproject.toml"
LIMITS: Final = PackageLimits()

# Tools leave these in a working folder. They are never part of a package, at any depth ...
LEFTOVERS: Final = frozenset(
    {".git", ".hg", ".svn", ".venv", ".tox", ".nox", "node_modules", "__pycache__", "__MACOSX", ".DS_Store"}
    | {".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis"}
)
LEFTOVER_SUFFIXES: Final = (".pyc", ".egg-info")
# ... and these only at the top, because further down `build` may be somebody's module.
LEFTOVERS_AT_TOP: Final = frozenset({"build", "dist"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file that belongs to a package: its name with `/` from the top, where it lies, whether it may be executed."""

    name: str
    path: Path
    executable: bool


def unpack(archive: Path, into: Path, limits: PackageLimits = LIMITS) -> None:
    """Open a tar.gz or a zip as the new folder `into`; a single top folder is taken off.

    Raises BadPackage, after which nothing is left.
    """
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=into.parent) as room:
        extracted = Path(room, "package")
        extract(archive, extracted, limits)
        _top(extracted).rename(into)


def source_files(folder: Path) -> Sequence[SourceFile]:
    """The files that belong to the package in `folder`, by name; leftovers of tools and builds do not.

    A link counts as the file that it points at; one that leaves the folder or points at a folder raises BadPackage.
    """
    return sorted(_walk(folder, "", folder.resolve()), key=lambda file: os.fsencode(file.name))


def digest(folder: Path) -> str:
    """SHA-256, in hex, over names, executable bits and content: the same whichever way the files came here."""
    total = hashlib.sha256()
    for file in source_files(folder):
        with file.path.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        total.update(os.fsencode(file.name) + (b"\0x" if file.executable else b"\0-") + content)
    return total.hexdigest()


def pack(folder: Path, limits: PackageLimits = LIMITS) -> bytes:
    """The package in `folder` as a tar.gz, byte for byte the same for the same files. Raises BadPackage."""
    if not (folder / MANIFEST).is_file():
        raise BadPackage("bad-manifest", f"{folder} is not a config package: it has no {MANIFEST}.")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for count, file in enumerate(source_files(folder), start=1):
            header = tarfile.TarInfo(file.name)
            header.size = file.path.stat().st_size
            header.mode = 0o755 if file.executable else 0o644
            if count > limits.entries or packed.tell() + header.size > limits.unpacked_bytes:
                raise limits.exceeded()
            with file.path.open("rb") as content:
                tar.addfile(header, content)
    return gzip.compress(packed.getvalue(), mtime=0)


def copy(folder: Path, into: Path) -> None:
    """The package in `folder` once more, as the new folder `into`."""
    into.mkdir(parents=True)
    for file in source_files(folder):
        target = into / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)
        target.chmod(0o755 if file.executable else 0o644)


def _walk(root: Path, prefix: str, inside: Path) -> Iterator[SourceFile]:
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            path, name = Path(entry.path), prefix + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name in LEFTOVERS or entry.name.endswith(LEFTOVER_SUFFIXES):
                continue
            if is_folder and (name in LEFTOVERS_AT_TOP or (path / "pyvenv.cfg").exists()):
                continue
            if is_folder:
                yield from _walk(root, name + "/", inside)
            elif path.is_file() and path.resolve().is_relative_to(inside):
                yield SourceFile(name, path, executable=bool(path.stat().st_mode & stat.S_IXUSR))
            else:
                raise BadPackage(
                    "unsafe-entry", f"{name!r} is neither a regular file of the package nor a link to one."
                )


def _top(extracted: Path) -> Path:
    """The folder that holds the manifest: this one, or the only one in it."""
    inner = [path for path in extracted.iterdir() if path.name not in LEFTOVERS]
    for folder in [extracted, *inner] if len(inner) == 1 else [extracted]:
        if (folder / MANIFEST).is_file():
            return folder
    raise BadPackage("bad-manifest", f"The package has no {MANIFEST} at its top.")
