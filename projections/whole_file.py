"""A file that is whole or absent: it is made under another name, and renamed last."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventstore.errors import CallerMistake


class FileIsThere(CallerMistake):
    """There is a file of this name already; --force replaces it."""


class NotWritable(CallerMistake):
    """The file cannot be written."""


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Iterator[Path]:
    """The name to write under; what lies there when the block ends without an error takes the place of ``path``.

    Raises FileIsThere, unless it is to be replaced, and NotWritable.
    """
    if path.exists() and not replace:
        raise FileIsThere(path=str(path))
    making = path.with_name(f"{path.name}.making")
    try:
        making.unlink(missing_ok=True)  # of one that was broken off
        making.touch(0o600)  # as private as the database that it is a copy of
        yield making
        _sync(making)
        making.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise NotWritable(path=str(path), reason=error.strerror or str(error)) from error
    finally:
        making.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
