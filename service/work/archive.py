"""An archive from a stranger, opened with care.

Nothing in it is trusted: names are checked before they touch the disk, sizes are counted while bytes are written and
never read from a header, and no link is ever made on disk: one that stays inside comes out as a copy of its file, any
other is refused. Owners, times and modes are dropped, except for the executable bit.
"""

import gzip
import io
import posixpath
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, Self

CHUNK_BYTES: Final = 64 * 1024
MAX_PATH_BYTES: Final = 1024
MAX_PART_BYTES: Final = 255  # of one name between slashes; what Linux file systems take
MAX_DEPTH: Final = 32  # deleting a tree holds one file descriptor a level
MAX_TAR_HEADER_BYTES: Final = 16 * 1024  # tarfile holds an extended header in memory
MAX_ZIP_DIRECTORY_BYTES: Final = 4 * 1024 * 1024  # zipfile holds the whole directory in memory
EXTENDED_HEADERS: Final = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class BadPackage(Exception):
    """A config package that cannot be taken, by its sender's mistake.

    `slug` names the problem for programs, `detail` is one sentence for people: what is wrong and where.
    """

    Slug = Literal["bad-archive", "unsafe-entry", "package-too-large", "bad-manifest"]

    def __init__(self, slug: Slug, detail: str) -> None:
        super().__init__(detail)
        self.slug = slug
        self.detail = detail


@dataclass(frozen=True, slots=True)
class PackageLimits:
    """What one package may hold: ample for code and settings; data goes into documents."""

    entries: int = 10_000  # files and folders
    unpacked_bytes: int = 256 * 1024 * 1024

    def exceeded(self) -> BadPackage:
        return BadPackage(
            "package-too-large",
            f"Unpacked, the package has more than {self.entries} entries or {self.unpacked_bytes} bytes.",
        )


def extract(archive: Path, into: Path, limits: PackageLimits) -> None:
    """Open a tar.gz or a zip, told apart by content, as the new folder `into`.

    Raises BadPackage; what is in `into` then is the caller's to delete.
    """
    with archive.open("rb") as opened:
        start = opened.read(4)
    unpacked = _Unpacked(into, limits)
    if start[:2] == b"\x1f\x8b":
        _read_tar(archive, unpacked, limits)
    elif start in (b"PK\x03\x04", b"PK\x05\x06"):
        _read_zip(archive, unpacked)
    else:
        raise BadPackage("bad-archive", "The body is neither a gzip-compressed tar archive nor a zip archive.")
    unpacked.resolve_links()


class _Unpacked:
    """The folder that an archive is written to, entry by entry, within the limits."""

    def __init__(self, folder: Path, limits: PackageLimits) -> None:
        self._folder = folder
        self._limits = limits
        self._bytes = 0
        self._is_folder: dict[str, bool] = {}  # every name so far
        self._links: dict[str, str] = {}  # name → the name that it points at
        self._make(folder)

    def add_folder(self, name: str) -> None:
        parts = _parts(name)
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in self._is_folder:
                self._claim(name, is_folder=True)
                self._make(self._folder / name)
            elif not self._is_folder[name]:
                raise BadPackage("unsafe-entry", f"{name!r} is in the archive as a file and as a folder.")

    def add_file(self, name: str, content: IO[bytes], *, executable: bool) -> None:
        self._write(self._place(name), content, executable=executable)

    def add_link(self, name: str, target: str) -> None:
        """`target` is meant from the top. What comes out is a copy, made when all files are there."""
        target = posixpath.normpath(target)
        if target.split("/")[0] in ("", ".."):
            raise BadPackage("unsafe-entry", f"The link {name!r} leads out of the package.")
        self._links[self._place(name)] = target

    def resolve_links(self) -> None:
        for name, target in self._links.items():
            if self._is_folder.get(target, True) or target in self._links:
                raise BadPackage("unsafe-entry", f"The link {name!r} does not point at a regular file of the package.")
            path = self._folder / target
            with path.open("rb") as content:
                self._write(name, content, executable=bool(path.stat().st_mode & stat.S_IXUSR))

    def _place(self, name: str) -> str:
        """The clean name of a new file, whose folder is there from now on."""
        *folders, last = _parts(name) or [""]
        self.add_folder("/".join(folders))
        clean = "/".join([*folders, last])
        if not last or clean in self._is_folder:
            raise BadPackage("unsafe-entry", f"{name!r} is in the archive twice.")
        self._claim(clean, is_folder=False)
        return clean

    def _claim(self, name: str, *, is_folder: bool) -> None:
        if len(self._is_folder) >= self._limits.entries:
            raise self._limits.exceeded()
        self._is_folder[name] = is_folder

    def _make(self, folder: Path) -> None:
        folder.mkdir()
        folder.chmod(_mode(executable=True))  # engines may run under another account, whatever our umask is

    def _write(self, name: str, content: IO[bytes], *, executable: bool) -> None:
        path = self._folder / name
        with path.open("xb") as file:
            while block := content.read(CHUNK_BYTES):
                self._bytes += len(block)
                if self._bytes > self._limits.unpacked_bytes:
                    raise self._limits.exceeded()
                file.write(block)
        path.chmod(_mode(executable))


def _parts(name: str) -> list[str]:
    """A member's name as the parts of a path below the top, or a refusal."""
    if not name.isprintable() or "\\" in name:
        raise BadPackage("unsafe-entry", f"The name {name!r} has characters that a package's paths may not have.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise BadPackage("unsafe-entry", f"The path {name!r} leads out of the package.")
    sizes = [len(part.encode()) + 1 for part in parts]
    if len(parts) > MAX_DEPTH or sum(sizes) > MAX_PATH_BYTES or max(sizes, default=0) > MAX_PART_BYTES:
        raise BadPackage("unsafe-entry", f"The path {name[:80]!r}… is too long or too deep.")
    return parts


def _mode(executable: bool) -> int:
    return 0o755 if executable else 0o644


class _TarHeader(tarfile.TarInfo):
    """A header that says when it is broken: tarfile takes a broken one after the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark of a true end
            raise BadPackage("bad-archive", f"The tar archive is truncated or damaged: {error}.") from error
        if header.size < 0 or (header.type in EXTENDED_HEADERS and header.size > MAX_TAR_HEADER_BYTES):
            raise BadPackage("bad-archive", "The tar archive has a header of an impossible size.")
        return header


class _TarStream(gzip.GzipFile):
    """The unpacked bytes of a tar.gz, counted: what tarfile skips or keeps in memory meets the limit too."""

    def __init__(self, archive: Path, limits: PackageLimits) -> None:
        super().__init__(archive)
        self._limits = limits
        self._bytes_left = limits.unpacked_bytes + 4096 * limits.entries  # headers and padding, generously

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(size)
        self._bytes_left -= len(block)
        if self._bytes_left < 0:
            raise self._limits.exceeded()
        return block


def _read_tar(archive: Path, unpacked: _Unpacked, limits: PackageLimits) -> None:
    try:
        with _TarStream(archive, limits) as stream:
            # "r|" reads forward only, so that no header can send it back and forth for ever (CVE-2025-8194).
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_TarHeader) as tar:
                for member in tar:
                    _add_tar_member(tar, member, unpacked)
            while stream.read(CHUNK_BYTES):  # gzip proves length and checksum at its very end
                pass
    except EOFError:
        raise BadPackage("bad-archive", "The gzip file is truncated.") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, ValueError) as error:
        raise BadPackage("bad-archive", f"The tar archive is truncated or damaged: {error}.") from error


def _add_tar_member(tar: tarfile.TarFile, member: tarfile.TarInfo, unpacked: _Unpacked) -> None:
    if member.isdir():
        unpacked.add_folder(member.name)
    elif member.issym():
        unpacked.add_link(member.name, posixpath.join(posixpath.dirname(member.name), member.linkname))
    elif member.islnk():
        unpacked.add_link(member.name, member.linkname)
    elif member.isreg() and not member.issparse() and (content := tar.extractfile(member)):
        unpacked.add_file(member.name, content, executable=bool(member.mode & stat.S_IXUSR))
    else:
        raise BadPackage("unsafe-entry", f"{member.name!r} is neither a file nor a folder nor a link.")


class _ZipReader(io.BufferedReader):
    """Refuses what a crafted directory makes zipfile ask for: a million entries at once, a place before the start."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_DIRECTORY_BYTES:
            raise BadPackage("package-too-large", "The zip archive has too large a directory.")
        return super().read(size)

    def seek(self, target: int, whence: int = io.SEEK_SET, /) -> int:
        if target < 0 and whence == io.SEEK_SET:
            raise zipfile.BadZipFile("an offset points before the start")
        return super().seek(target, whence)


def _read_zip(archive: Path, unpacked: _Unpacked) -> None:
    try:
        with _ZipReader(io.FileIO(archive)) as opened, zipfile.ZipFile(opened) as box:
            for member in box.infolist():
                _add_zip_member(box, member, unpacked)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise BadPackage("bad-archive", f"The zip archive is truncated or damaged: {error}.") from error


def _add_zip_member(box: zipfile.ZipFile, member: zipfile.ZipInfo, unpacked: _Unpacked) -> None:
    name = member.orig_filename  # `filename` was cut at the first NUL
    mode = member.external_attr >> 16
    if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadPackage("bad-archive", f"{name!r} is encrypted, or compressed in another way than with deflate.")
    if name.endswith("/"):
        unpacked.add_folder(name)
    elif stat.S_ISLNK(mode):
        with box.open(member) as content:
            target = content.read(MAX_PATH_BYTES).decode()
        unpacked.add_link(name, posixpath.join(posixpath.dirname(name), target))
    elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
        with box.open(member) as content:
            unpacked.add_file(name, content, executable=bool(mode & stat.S_IXUSR))
    else:
        raise BadPackage("unsafe-entry", f"{name!r} is neither a file nor a folder nor a link.")
