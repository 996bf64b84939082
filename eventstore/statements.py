"""Finds ``sql/`` and hands out its texts by name. No other module holds SQL.

A file of ``sql/statements/`` holds statements, each below a comment ``-- <name>: <what is true afterwards>``.
"""

import re
from functools import cache
from pathlib import Path

_HEADING = re.compile(r"^-- ([a-z_]+): ", re.MULTILINE)


@cache
def folder() -> Path:
    """The ``sql/`` beside the packages in a checkout, else the copy inside the installed wheel."""
    here = Path(__file__).resolve().parent
    beside = here.parent / "sql"
    return beside if (beside / "migrations").is_dir() else here / "_sql"


@cache
def statements() -> dict[str, str]:
    """Every statement by its name."""
    found: dict[str, str] = {}
    for path in sorted((folder() / "statements").glob("*.sql")):
        pieces = _HEADING.split(path.read_text("utf-8"))
        for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
            if name in found:
                raise ValueError(f"{path}: the statement {name} exists already")
            found[name] = text.split("\n", 1)[1].strip().rstrip(";")
    return found


def texts(kind: str) -> list[tuple[str, str]]:
    """The files of one folder of ``sql/`` as (name, text), in the order of their names."""
    return [(path.stem, path.read_text("utf-8")) for path in sorted((folder() / kind).glob("*.sql"))]
