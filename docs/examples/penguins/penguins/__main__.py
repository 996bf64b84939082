"""The command line: `tidy` makes three files of one, `check` looks at the rules themselves."""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from penguins import chart
from penguins.telemetry import Telemetry
from penguins.tidy import COLUMNS, NAMES, SPECIES, BadInputError, TidyTable, gaps, read_raw, write_tidy


def main() -> int:
    """Exit code 0 when done, 1 when the rules do not fit together, 2 for input or arguments that are no good."""
    purpose = "Tidies the raw penguin observations of Palmer Station."
    parser = argparse.ArgumentParser(prog="python -m penguins", description=purpose)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="check the rules of this package, without any input")
    tidy_parser = commands.add_parser("tidy", help="make tidy.csv, result.json and chart.svg of a raw table")
    tidy_parser.add_argument("--input", type=Path, required=True, help="the raw table, a CSV file")
    tidy_parser.add_argument("--output-dir", type=Path, required=True, help="the folder for the three files")
    tidy_parser.add_argument(
        "--pace", type=seconds, default=0, help="seconds to wait at each progress line, for viewers"
    )
    arguments = parser.parse_args()
    if arguments.command == "check":
        return check()
    return run(arguments.input, arguments.output_dir, arguments.pace)


def seconds(text: str) -> float:
    """The value of `--pace`."""
    value = float(text)
    if not 0 <= value <= 60:  # also refuses nan
        raise argparse.ArgumentTypeError("must be between 0 and 60 seconds")
    return value


def run(source: Path, output_dir: Path, pace: float) -> int:
    """One run from its first line to its last, whatever comes of it."""
    telemetry = Telemetry()
    telemetry.emit("engine.run.started", f"Tidying {source.name}", data={"input": source.name})
    try:
        result = tidy_file(source, output_dir, pace, telemetry)
    except (BadInputError, OSError) as error:
        failure = {"type": type(error).__name__, "message": str(error)}
        telemetry.emit("engine.run.failed", "Nothing was tidied", level="error", error=failure)
        print(f"error: {error}", file=sys.stderr)
        return 2
    telemetry.emit("engine.run.completed", f"Tidied {source.name}", data=result)
    return 0


def tidy_file(source: Path, output_dir: Path, pace: float, telemetry: Telemetry) -> dict[str, object]:
    """Read, tidy, draw, write; what there is to say goes to stdout and stderr on the way."""
    rows = read_raw(source)
    telemetry.emit("engine.table.read", f"Read {len(rows)} rows", data={"rows": len(rows), "columns": len(COLUMNS)})

    table = TidyTable()
    step = 10 * math.ceil(len(rows) / 100)  # progress in round tens, ten lines or fewer
    for done, (line, cells) in enumerate(rows, start=1):
        for remark in table.add(cells):
            print(f"warning: line {line}: {remark}", file=sys.stderr)
        if done % step == 0 or done == len(rows):
            print(f"{done}/{len(rows)} rows", flush=True)
            time.sleep(pace)
    birds = list(table.birds.values())
    result = table.result()
    if gaps_left := gaps(birds):
        print("warning: gaps left:", ", ".join(f"{name} {count}" for name, count in gaps_left.items()), file=sys.stderr)
    telemetry.emit("engine.table.tidied", f"Kept {len(birds)} of {len(rows)} rows", data={"rows": len(birds)})

    output_dir.mkdir(parents=True, exist_ok=True)
    write_tidy(output_dir / "tidy.csv", birds)
    (output_dir / "chart.svg").write_text(chart.draw(birds), encoding="utf-8")
    (output_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("wrote tidy.csv, chart.svg and result.json", flush=True)
    return result


def check() -> int:
    """Whether the rules fit together: no name twice, a mark for every species. Exit code 0 or 1."""
    faults = [f"two columns are named {name}" for name in sorted({name for name in NAMES if NAMES.count(name) > 1})]
    faults += [f"the chart has no mark for {species}" for species in SPECIES if species not in chart.MARKS]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if not faults:
        print(f"penguins is sound: {len(NAMES)} columns, {len(SPECIES)} species")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
