"""The rules: which columns there are, how a cell is read, which rows are kept.

No value is ever made up: a cell that is empty or cannot be read stays empty, and the result counts it.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean

Value = str | float | None
Bird = dict[str, Value]

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
MISSING = {"", "na", "n/a", "nan"}


class BadInputError(Exception):
    """The file is no table of raw observations. The message is one sentence for the person who sent it."""


# --- one cell: a reader takes the text of a cell that is not missing, and raises ValueError when it makes no sense


def number(text: str) -> float:
    """A plain decimal number, whole ones as int. Less than `float` takes: no `inf`, no `1_000`, no `1e9`."""
    if not re.fullmatch(r"[+-]?\d{1,9}(\.\d{1,20})?", text, re.ASCII):
        raise ValueError(f"{text!r} is not a plain number")
    value = float(text)  # the shortest form of which is 8.39459 where the file has 8.3945900000000009
    return int(value) if value.is_integer() else value


def date(text: str) -> str:
    """An ISO date, also from `11/16/07` and `11/16/2007`: month first, as the station writes it."""
    for form in ("%Y-%m-%d", "%m/%d/%y", "%m/%d/%Y"):
        try:
            return datetime.strptime(text, form).date().isoformat()  # noqa: DTZ007 - a day has no zone
        except ValueError:
            continue
    raise ValueError(f"{text!r} is not a date")


def species(text: str) -> str:
    """`Adelie` from `Adelie Penguin (Pygoscelis adeliae)`, in any case."""
    name = text.split(maxsplit=1)[0].capitalize()
    if name not in SPECIES:
        raise ValueError(f"{text!r} is not a known species")
    return name


def one_of(*words: str) -> Callable[[str], str]:
    """A reader of a few known words, in any case; the first letter alone will do."""

    def read(text: str) -> str:
        for word in words:
            if text.lower() in (word, word[0]):
                return word
        raise ValueError(f"{text!r} is none of {', '.join(words)}")

    return read


# heading in the raw file -> name in the tidy one, with its unit, and the reader of its cells
COLUMNS: dict[str, tuple[str, Callable[[str], Value]]] = {
    "studyName": ("study", str),
    "Sample Number": ("sample_number", number),
    "Species": ("species", species),
    "Region": ("region", str),
    "Island": ("island", str),
    "Stage": ("stage", str),
    "Individual ID": ("individual_id", str),
    "Clutch Completion": ("clutch_complete", one_of("yes", "no")),
    "Date Egg": ("egg_date", date),
    "Culmen Length (mm)": ("culmen_length_mm", number),
    "Culmen Depth (mm)": ("culmen_depth_mm", number),
    "Flipper Length (mm)": ("flipper_length_mm", number),
    "Body Mass (g)": ("body_mass_g", number),
    "Sex": ("sex", one_of("male", "female")),
    "Delta 15 N (o/oo)": ("delta_15_n_permille", number),
    "Delta 13 C (o/oo)": ("delta_13_c_permille", number),
    "Comments": ("comments", str),
}
NAMES = [name for name, _ in COLUMNS.values()]
MEASUREMENTS = ("culmen_length_mm", "culmen_depth_mm", "flipper_length_mm", "body_mass_g")


# --- the whole file


def read_raw(path: Path) -> list[tuple[int, dict[str, str]]]:
    """All rows, each with its line in the file and its cells by heading. Raises BadInputError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = checked_header(path, next(lines, None))
            rows = []
            for cells in filter(None, lines):  # a blank line is no row
                if len(cells) != len(header):
                    raise BadInputError(
                        f"{path.name!r} has {len(cells)} cells under {len(header)} headings in line {lines.line_num}."
                    )
                rows.append((lines.line_num, dict(zip(header, cells, strict=True))))
    except OSError as error:
        raise BadInputError(f"{path.name!r} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BadInputError(f"{path.name!r} is not UTF-8 text.") from None
    except csv.Error as error:
        raise BadInputError(f"{path.name!r} is not a CSV file: {error} in line {lines.line_num}.") from None
    if not rows:
        raise BadInputError(f"{path.name!r} has headings but no rows.")
    return rows


def checked_header(path: Path, cells: list[str] | None) -> list[str]:
    """The headings, which must hold all of `COLUMNS`; further ones do no harm."""
    if cells is None:
        raise BadInputError(f"{path.name!r} is empty.")
    header = [cell.strip() for cell in cells]
    missing = [repr(heading) for heading in COLUMNS if heading not in header]
    if len(missing) == len(COLUMNS):
        raise BadInputError(
            f"{path.name!r} has none of the expected headings: is it the raw table, separated by commas?"
        )
    if missing:
        raise BadInputError(f"{path.name!r} lacks {', '.join(missing)} among its headings.")
    return header


@dataclass
class TidyTable:
    """The birds so far, in the order of the file, and the account of what was not as it should be."""

    birds: dict[tuple[Value, ...], Bird] = field(default_factory=dict)  # by all their values: no bird twice
    rows_in: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    gaps_found: Counter[str] = field(default_factory=Counter)

    def add(self, cells: dict[str, str]) -> list[str]:
        """Take in one raw row; returns what a person should know about it."""
        bird, remarks = read_bird(cells)
        self.rows_in += 1
        self.gaps_found.update(gaps([bird]))
        key = tuple(bird.values())
        if bird["species"] is None:
            reason = "no_species"
        elif all(bird[name] is None for name in MEASUREMENTS):
            reason = "no_measurements"
        elif key in self.birds:
            reason = "duplicate"
        else:
            self.birds[key] = bird
            return remarks
        self.dropped[reason] += 1
        comment = f": {bird['comments']!r}" if bird["comments"] else ""
        return [*remarks, f"dropped, {reason.replace('_', ' ')}{comment}"]

    def result(self) -> dict[str, object]:
        """What the run hands back as `result.json`."""
        birds = list(self.birds.values())
        gaps_left = gaps(birds)
        return {
            "rows_in": self.rows_in,
            "rows_out": len(birds),
            "rows_dropped": {reason: self.dropped[reason] for reason in ("no_species", "no_measurements", "duplicate")},
            "gaps": {
                name: {"found": self.gaps_found[name], "left": gaps_left[name]}
                for name in NAMES
                if self.gaps_found[name]
            },
            "species": {name: of_species([bird for bird in birds if bird["species"] == name]) for name in SPECIES},
        }


def read_bird(cells: dict[str, str]) -> tuple[Bird, list[str]]:
    """One row as typed values, None for a gap, and a remark on each cell that made no sense."""
    bird: Bird = {}
    remarks = []
    for heading, (name, read) in COLUMNS.items():
        text = " ".join(cells[heading].split())  # one line, so that no cell can pass for a line of our own output
        bird[name] = None
        if text.lower() not in MISSING:
            try:
                bird[name] = read(text)
            except ValueError as error:
                remarks.append(f"{name} left empty, {error}")
    return bird, remarks


def gaps(birds: Sequence[Bird]) -> Counter[str]:
    """How often each column has no value. A bird without comments lacks nothing."""
    return Counter(name for name in NAMES for bird in birds if bird[name] is None and name != "comments")


def of_species(birds: list[Bird]) -> dict[str, object]:
    """The count of some birds and their mean body mass in grams, None where nobody was weighed."""
    masses = [bird["body_mass_g"] for bird in birds if isinstance(bird["body_mass_g"], int | float)]
    return {"count": len(birds), "mean_body_mass_g": round(fmean(masses), 1) if masses else None}


def write_tidy(path: Path, birds: Iterable[Bird]) -> None:
    """A UTF-8 CSV file with the columns of `NAMES`; gaps are empty cells."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(birds)
