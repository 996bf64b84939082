"""Greets on stdout and leaves a greeting as an artifact."""

import sys
from pathlib import Path

print("hello", flush=True)
Path(sys.argv[1], "greeting.txt").write_text("hello\n")
