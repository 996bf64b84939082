"""``python -m actor OUTPUT_DIR [SCRIPT]``: the script sees the names below."""

import json
import os  # noqa: F401 - the script's
import signal  # noqa: F401 - the script's
import subprocess  # noqa: F401 - the script's
import sys
import time
from pathlib import Path


def wait_for(path: str) -> None:
    """Until the test makes this file."""
    while not Path(path).exists():
        time.sleep(0.005)


def tell(**members: object) -> None:
    """A line of telemetry."""
    print(json.dumps(members), file=sys.stderr)


def write(data: bytes) -> None:
    """Bytes to stdout, as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


output = Path(sys.argv[1])
for script in sys.argv[2:]:
    exec(compile(script, "script", "exec"))
