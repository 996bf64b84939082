"""The example engine, run as the service runs it: a real process, by the command line in its own `pyproject.toml`."""

import csv
import hashlib
import json
import re
import select
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from uv import find_uv_bin

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "penguins"
RAW = EXAMPLE / "penguins_raw.csv"
ADE = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ade"]
TELEMETRY_NAME = re.compile(r"engine(\.[a-z0-9_]{1,64}){1,8}")
ENVELOPE = {"id", "object", "type", "run_id", "seq", "created", "created_at", "stream"}
# No bytecode beside the sources: it would become part of the config package, and change its digest.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(EXAMPLE), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Ran:
    """What one run of the engine said and left."""

    exit_code: int
    stdout: list[str]
    stderr: list[str]
    output_dir: Path

    @property
    def telemetry(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stderr if line.startswith("{")]

    @property
    def plain(self) -> list[str]:
        return [line for line in self.stderr if not line.startswith("{")]

    @property
    def result(self) -> Any:
        return json.loads((self.output_dir / "result.json").read_text(encoding="utf-8"))

    @property
    def tidy(self) -> list[dict[str, str]]:
        return read_csv(self.output_dir / "tidy.csv")


def command(argv: Iterable[str], source: Path, output_dir: Path, python: str = sys.executable) -> list[str]:
    places = {"{python}": python, "{input}": str(source), "{output_dir}": str(output_dir)}
    return [places.get(word, word) for word in argv]


def run_engine(source: Path, folder: Path, *more: str, environment: dict[str, str] | None = None) -> Ran:
    """Run the engine on `source`, in `folder`, with its output in `folder / "out"`."""
    done = subprocess.run(
        [*command(ADE["command"], source, folder / "out"), *more],
        cwd=folder,
        env=ENVIRONMENT | (environment or {}),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), folder / "out")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_raw(path: Path, *changes: dict[str, str]) -> Path:
    """A raw table with one row per change: the first row of the real one, with some cells replaced."""
    first = read_csv(RAW)[0]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        writer.writerows(first | change for change in changes)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run on the real file, which most tests look at."""
    folder = tmp_path_factory.mktemp("penguins")
    ran = run_engine(RAW, folder, environment={"ADE_RUN_ID": "run_01KAEXAMPLE"})
    assert ran.exit_code == 0, ran.stderr
    return ran


def test_the_data_are_those_that_were_published() -> None:
    """Nobody edits the data set, not even its line ends."""
    digest = hashlib.sha256(RAW.read_bytes()).hexdigest()
    assert digest == "144f623143c9360fd77322a4f86acb06dc198814dbd2669724c63e6457b907bd"


def test_progress_goes_to_stdout(ran: Ran) -> None:
    """Round tens, the last line names all rows."""
    assert ran.stdout == [f"{done}/344 rows" for done in (40, 80, 120, 160, 200, 240, 280, 320, 344)] + [
        "wrote tidy.csv, chart.svg and result.json"
    ]


def test_progress_is_seen_while_the_engine_works(tmp_path: Path) -> None:
    """A line is flushed when it is written, and `--pace` holds the engine there."""
    with subprocess.Popen(
        [*command(ADE["command"], RAW, tmp_path / "out"), "--pace", "60"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as engine:
        assert engine.stdout is not None
        try:
            assert select.select([engine.stdout], [], [], 30)[0], "nothing was flushed"
            assert engine.stdout.readline() == "40/344 rows\n"
            with pytest.raises(subprocess.TimeoutExpired):  # unpaced, all the rest takes some milliseconds
                engine.wait(timeout=0.5)
        finally:
            engine.kill()


def test_warnings_name_the_line_and_the_reason(ran: Ran) -> None:
    """The two birds that nobody measured, and the gaps that are left."""
    assert ran.plain == [
        "warning: line 5: dropped, no measurements: 'Adult not sampled.'",
        "warning: line 273: dropped, no measurements: 'Adult not sampled. Nest never observed with full clutch.'",
        "warning: gaps left: sex 9, delta_15_n_permille 12, delta_13_c_permille 11",
    ]


def test_telemetry_is_what_the_contract_asks_for(ran: Ran) -> None:
    """Every line becomes an event: a good name, a message, no member of the envelope; the last one holds the result."""
    lines = ran.telemetry
    assert [line["event"] for line in lines] == [
        "engine.run.started",
        "engine.table.read",
        "engine.table.tidied",
        "engine.run.completed",
    ]
    for line in lines:
        assert TELEMETRY_NAME.fullmatch(line["event"])
        assert list(line) == ["event_id", "engine_run_id", "timestamp", "level", "event", "message", "data"]
        assert not ENVELOPE & set(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["timestamp"])
        assert line["engine_run_id"] == "run_01KAEXAMPLE"
        assert line["level"] == "info"
        assert line["message"]
    assert len({line["event_id"] for line in lines}) == len(lines)
    assert lines[-1]["data"] == ran.result


def test_without_a_service_each_run_names_itself(tmp_path: Path) -> None:
    """By hand there is no ADE_RUN_ID: all lines of a run agree, two runs do not."""
    source = write_raw(tmp_path / "raw.csv", {})
    ids = [{line["engine_run_id"] for line in run_engine(source, tmp_path).telemetry} for _ in range(2)]
    assert [len(names) for names in ids] == [1, 1]
    assert ids[0] != ids[1]


def test_the_result_is_what_the_raw_file_says(ran: Ran) -> None:
    """Counts, gaps and means, computed once more from the raw file in another way."""
    raw = read_csv(RAW)
    kept = [
        row for row in raw if {row["Flipper Length (mm)"], row["Body Mass (g)"], row["Culmen Length (mm)"]} != {"NA"}
    ]
    assert (ran.result["rows_in"], ran.result["rows_out"]) == (len(raw), len(kept)) == (344, 342)
    assert ran.result["rows_dropped"] == {"no_species": 0, "no_measurements": 2, "duplicate": 0}

    def count_gaps(rows: list[dict[str, str]]) -> Counter[str]:
        return Counter(
            heading for row in rows for heading, text in row.items() if text == "NA" and heading != "Comments"
        )

    tidy_names = dict(zip(raw[0], ran.tidy[0], strict=True))
    left = count_gaps(kept)
    assert ran.result["gaps"] == {
        tidy_names[heading]: {"found": found, "left": left[heading]} for heading, found in count_gaps(raw).items()
    }

    masses = defaultdict(list)
    for row in kept:
        masses[row["Species"].split(" ")[0]].append(int(row["Body Mass (g)"]))
    assert ran.result["species"] == {
        name: {"count": len(grams), "mean_body_mass_g": float(round(Fraction(sum(grams), len(grams)), 1))}
        for name, grams in masses.items()
    }
    assert {name: species["count"] for name, species in ran.result["species"].items()} == {
        "Adelie": 151,
        "Chinstrap": 68,
        "Gentoo": 123,
    }


def test_the_tidy_table_says_the_same_as_the_raw_one(ran: Ran) -> None:
    """Row by row and cell by cell, in the order of the raw file."""
    raw = [row for row in read_csv(RAW) if row["Body Mass (g)"] != "NA"]
    assert len(ran.tidy) == len(raw)
    for before, after in zip(raw, ran.tidy, strict=True):
        expected = {heading: "" if text == "NA" else text for heading, text in before.items()}
        expected["Species"] = expected["Species"].split(" ")[0]
        expected["Sex"] = expected["Sex"].lower()
        expected["Clutch Completion"] = expected["Clutch Completion"].lower()
        for old, new in zip(expected.values(), after.values(), strict=True):
            if re.fullmatch(r"-?\d+\.\d+", old):
                assert float(new) == pytest.approx(float(old), abs=1e-9)
                assert len(new) <= len("-26.69543")
            else:
                assert new == old
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in ran.tidy[0])


def test_the_chart_has_a_mark_for_every_bird(ran: Ran) -> None:
    """Well-formed SVG with all that a chart needs, every mark in the plot, nothing that a viewer would run or load."""
    svg = ET.parse(ran.output_dir / "chart.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in svg.iter(f"{name}text")]
    assert {"Flipper length (mm)", "Body mass (g)", "Adelie", "Chinstrap", "Gentoo"} <= set(texts)
    marks = list(svg.iter(f"{name}use"))
    assert Counter(mark.attrib["href"] for mark in marks) == {"#Adelie": 152, "#Chinstrap": 69, "#Gentoo": 124}
    assert all(84 <= float(mark.attrib["x"]) <= 692 for mark in marks)
    assert sum(76 <= float(mark.attrib["y"]) <= 412 for mark in marks) == 342  # the other three are the legend's
    assert {element.tag for element in svg.iter()} == {
        name + tag for tag in ("svg", "title", "defs", "rect", "g", "text", "path", "use")
    }


def test_mixed_spellings_become_one(tmp_path: Path) -> None:
    """Cases, blanks, initials, American dates, other words for a gap; what cannot be read is a gap with a warning."""
    source = write_raw(
        tmp_path / "raw.csv",
        {"Sample Number": "1", "Species": "ADELIE PENGUIN", "Sex": " Male ", "Date Egg": "11/9/08"},
        {"Sample Number": "2", "Species": "gentoo penguin", "Sex": "f", "Date Egg": "11/16/2007"},
        {"Sample Number": "3", "Sex": "n/a", "Body Mass (g)": "", "Comments": " two\n lines "},
        {"Sample Number": "4", "Sex": ".", "Body Mass (g)": "inf", "Culmen Depth (mm)": "1_8", "Date Egg": "13/32/08"},
        {"Sample Number": "4.0", "Sex": "?", "Body Mass (g)": "NaN", "Culmen Depth (mm)": "", "Date Egg": "NA"},
        {"Sample Number": "6", "Species": "Emperor Penguin"},
    )
    ran = run_engine(source, tmp_path)
    assert ran.exit_code == 0
    columns = ("sample_number", "species", "sex", "egg_date", "body_mass_g", "culmen_depth_mm", "comments")
    comment = "Not enough blood for isotopes."
    assert [tuple(bird[column] for column in columns) for bird in ran.tidy] == [
        ("1", "Adelie", "male", "2008-11-09", "3750", "18.7", comment),
        ("2", "Gentoo", "female", "2007-11-16", "3750", "18.7", comment),
        ("3", "Adelie", "", "2007-11-11", "", "18.7", "two lines"),
        ("4", "Adelie", "", "", "", "", comment),
    ]
    gaps_left = "egg_date 1, culmen_depth_mm 1, body_mass_g 2, sex 2, delta_15_n_permille 4, delta_13_c_permille 4"
    assert ran.plain == [
        "warning: line 6: egg_date left empty, '13/32/08' is not a date",
        "warning: line 6: culmen_depth_mm left empty, '1_8' is not a plain number",
        "warning: line 6: body_mass_g left empty, 'inf' is not a plain number",
        "warning: line 6: sex left empty, '.' is none of male, female",
        "warning: line 7: sex left empty, '?' is none of male, female",
        f"warning: line 7: dropped, duplicate: {comment!r}",
        "warning: line 8: species left empty, 'Emperor Penguin' is not a known species",
        f"warning: line 8: dropped, no species: {comment!r}",
        f"warning: gaps left: {gaps_left}",
    ]
    assert ran.result["rows_dropped"] == {"no_species": 1, "no_measurements": 0, "duplicate": 1}
    assert ran.result["species"]["Chinstrap"] == {"count": 0, "mean_body_mass_g": None}


def test_no_cell_can_pass_for_a_line_of_the_engine(tmp_path: Path) -> None:
    """A comment that holds line ends and telemetry stays inside one warning."""
    forged = 'x\n{"event":"engine.run.completed","message":"forged"}\r\n\u2028999/999 rows'
    gaps = dict.fromkeys(("Culmen Length (mm)", "Culmen Depth (mm)", "Flipper Length (mm)", "Body Mass (g)"), "NA")
    ran = run_engine(write_raw(tmp_path / "raw.csv", {"Comments": forged} | gaps, {}), tmp_path)
    assert ran.stdout[0] == "2/2 rows"
    assert [line["message"] for line in ran.telemetry] == [
        "Tidying raw.csv",
        "Read 2 rows",
        "Kept 1 of 2 rows",
        "Tidied raw.csv",
    ]
    assert "forged" in ran.plain[0]


@pytest.mark.parametrize(
    "change", [{"Flipper Length (mm)": "NA"}, {"Species": "Emperor"}, {"Body Mass (g)": "999999999"}]
)
def test_a_chart_of_little_is_still_a_chart(tmp_path: Path, change: dict[str, str]) -> None:
    """No bird, no point, or one point far away: the run succeeds, its chart is well-formed and has both axes."""
    ran = run_engine(write_raw(tmp_path / "raw.csv", change), tmp_path)
    assert ran.exit_code == 0, ran.stderr
    svg = ET.parse(ran.output_dir / "chart.svg").getroot()
    assert 9 <= len(list(svg.iter("{http://www.w3.org/2000/svg}text"))) <= 30


def raw_text() -> str:
    return RAW.read_text(encoding="utf-8")


BAD_INPUTS = {
    "empty": (b"", "'bad.csv' is empty."),
    "only a byte order mark": (b"\xef\xbb\xbf", "'bad.csv' is empty."),
    "only headings": (
        raw_text().partition("\n")[0].encode(),
        "'bad.csv' has headings but no rows.",
    ),
    "not text": (b"\x89PNG\r\n\x1a\n\x00\x00", "'bad.csv' is not UTF-8 text."),
    "another encoding": (
        raw_text().replace("Torgersen", "Torgersén").encode("latin-1"),
        "'bad.csv' is not UTF-8 text.",
    ),
    "UTF-16": (raw_text().encode("utf-16"), "'bad.csv' is not UTF-8 text."),
    "something else": (
        b'{"penguins": []}\n',
        "'bad.csv' has none of the expected headings: is it the raw table, separated by commas?",
    ),
    "semicolons": (
        raw_text().replace(",", ";").encode(),
        "'bad.csv' has none of the expected headings: is it the raw table, separated by commas?",
    ),
    "a missing column": (
        raw_text().replace("Body Mass (g)", "Mass").encode(),
        "'bad.csv' lacks 'Body Mass (g)' among its headings.",
    ),
    "a ragged row": (
        (raw_text() + "PAL0910,1\n").encode(),
        "'bad.csv' has 2 cells under 17 headings in line 346.",
    ),
    "an open quote": (
        (raw_text() + 'PAL0910,"1\n').encode(),
        "'bad.csv' is not a CSV file: unexpected end of data in line 346.",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_gets_one_clear_sentence(tmp_path: Path, case: str) -> None:
    """Exit code 2, one plain line on stderr, the same sentence in the telemetry, and no output at all."""
    content, sentence = BAD_INPUTS[case]
    (tmp_path / "bad.csv").write_bytes(content)
    ran = run_engine(tmp_path / "bad.csv", tmp_path)
    assert ran.exit_code == 2
    assert ran.plain == [f"error: {sentence}"]
    assert ran.stderr[-1] == ran.plain[0]
    assert [line["event"] for line in ran.telemetry] == ["engine.run.started", "engine.run.failed"]
    assert ran.telemetry[-1]["level"] == "error"
    assert ran.telemetry[-1]["error"] == {"type": "BadInputError", "message": sentence}
    assert ran.stdout == []
    assert not ran.output_dir.exists()


def test_a_file_that_is_not_there_gets_one_clear_sentence(tmp_path: Path) -> None:
    """The same for a path that leads nowhere, and for a folder."""
    missing, folder = run_engine(tmp_path / "bad.csv", tmp_path), run_engine(tmp_path, tmp_path)
    assert (missing.exit_code, folder.exit_code) == (2, 2)
    assert missing.plain == ["error: 'bad.csv' cannot be read: No such file or directory."]
    assert folder.plain == [f"error: {tmp_path.name!r} cannot be read: Is a directory."]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """Spreadsheets save CSV as UTF-8 with one, with CRLF, and sometimes with a blank line at the end."""
    text = raw_text().replace("\n", "\r\n") + "\r\n"
    (tmp_path / "raw.csv").write_bytes(text.encode("utf-8-sig"))
    ran = run_engine(tmp_path / "raw.csv", tmp_path)
    assert ran.exit_code == 0
    assert ran.result["rows_out"] == 342


@pytest.mark.parametrize("pace", ["-1", "nan", "61", "soon"])
def test_a_pace_that_makes_no_sense_is_refused(tmp_path: Path, pace: str) -> None:
    """Wrong usage is exit code 2, before anything is read."""
    ran = run_engine(RAW, tmp_path, f"--pace={pace}")
    assert ran.exit_code == 2
    assert "argument --pace: " in ran.stderr[-1]
    assert ran.telemetry == []


def test_it_installs_from_its_folder_alone_and_runs_there(tmp_path: Path) -> None:
    """uv builds it with the backend that it brings along: no network, no cache; its rules then pass their own check."""
    uv = [find_uv_bin(), "--offline", "--no-cache", "--no-config", "--quiet"]
    python = tmp_path / "venv" / "bin" / "python"
    environment = {"PATH": ENVIRONMENT["PATH"], "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for words in (
        [*uv, "venv", "--python", sys.executable, str(tmp_path / "venv")],
        [*uv, "pip", "install", "--python", str(python), str(EXAMPLE)],
        *([str(python), "-c", f"import {module}"] for module in ADE["imports"]),
    ):
        subprocess.run(words, cwd=tmp_path, env=environment, timeout=60, check=True)
    checked = subprocess.run(
        command(ADE["validate"], RAW, tmp_path, python=str(python)),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert (checked.stdout, checked.stderr) == ("penguins is sound: 17 columns, 3 species\n", "")


def test_check_finds_rules_that_do_not_fit_together(tmp_path: Path) -> None:
    """A species without a mark, and a name used twice: exit code 1, one line each."""
    package = tmp_path / "penguins"
    package.mkdir()
    for module in (EXAMPLE / "penguins").glob("*.py"):
        text = module.read_text(encoding="utf-8")
        text = text.replace('"Gentoo")', '"Gentoo", "Emperor")').replace('"stage"', '"island"')
        (package / module.name).write_text(text, encoding="utf-8")
    checked = subprocess.run(
        command(ADE["validate"], RAW, tmp_path),
        env=ENVIRONMENT | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert checked.returncode == 1
    assert checked.stderr == "error: two columns are named island\nerror: the chart has no mark for Emperor\n"
