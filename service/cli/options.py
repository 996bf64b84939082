"""What verbs of both kinds share: options, and the exit codes."""

from typing import Annotated

import typer

FAILED, USAGE, UNREACHABLE, DETACHED = 1, 2, 3, 130
"""Exit codes; 130 is what a shell says of Ctrl-C."""

Workspace = Annotated[str, typer.Option("--workspace", "-w", help="The workspace to look in.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most so many, the newest first.")]
