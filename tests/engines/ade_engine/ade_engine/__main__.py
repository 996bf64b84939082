"""``python -m ade_engine process file …`` and ``… config validate …``."""

import argparse
import json
import os
import sys
import uuid
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any


def report(event: str, message: str, **members: Any) -> None:
    line = {
        "event_id": uuid.uuid4().hex,
        "engine_run_id": os.environ["ADE_RUN_ID"],
        "timestamp": datetime.now(UTC).isoformat(),
        "level": "info",
        "event": event,
        "message": message,
        **members,
    }
    print(json.dumps(line), file=sys.stderr)


def process(options: argparse.Namespace) -> None:
    text = Path(options.input).read_text()
    report("engine.file.read", f"Read {Path(options.input).name}", data={"lines": text.count("\n")})
    Path(options.output_dir, "output.txt").write_text(import_module("ade_config").change(text))
    report("engine.run.completed", "All changed", data={"characters": len(text)})


def validate(options: argparse.Namespace) -> None:
    known = (Path(options.config_package) / "pyproject.toml").is_file()
    report("engine.config.validated", "The config is fine" if known else "There is no config", data={"ok": known})
    sys.exit(0 if known else 1)


parser = argparse.ArgumentParser(prog="ade_engine")
nouns = parser.add_subparsers(required=True)
commands = (("process", "file", process), ("config", "validate", validate))
for noun, verb, work in commands:
    command = nouns.add_parser(noun).add_subparsers(required=True).add_parser(verb)
    command.add_argument("--config-package", required=True)
    command.add_argument("--log-format", choices=["ndjson"], required=True)
    command.set_defaults(work=work)
    if work is process:
        command.add_argument("--input", required=True)
        command.add_argument("--output-dir", required=True)
given = parser.parse_args()
report("engine.run.started", "Starting", data={"python": sys.version})
given.work(given)
