"""``ade stats``: how runs and builds fare."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from eventstore.clock import now
from service.cli import output
from service.cli.connection import connected
from service.cli.options import AsJson
from service.cli.output import Screen


def stats(
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Only this workspace.")] = None,
    hours: Annotated[float, typer.Option(min=0, help="Of what was created in the last so many hours.")] = 24,
    as_json: AsJson = False,
) -> None:
    """Show how runs and builds fare: how they ended, how long they took, what is queued, why they failed."""
    steps = ("stats",) if workspace is None else ("workspaces", workspace, "stats")
    with connected() as client:
        found = client.get(*steps, created_after=now() - hours * 3600)
    if as_json:
        output.json(found)
        return
    screen = Screen()
    for kind in ("runs", "builds"):
        _show(screen, kind, found[kind])


def _show(screen: Screen, kind: str, told: Mapping[str, Any]) -> None:
    queue, durations = told["queue"], told["durations"]
    ended = ", ".join(f"{count:,} {status}" for status, count in sorted(told["by_status"].items()))
    screen.print(f"{kind}: {told['total']:,}{f' ({ended})' if ended else ''}")
    if durations["p50_ms"] is not None:
        p50, p95 = (output.elapsed(durations[name] / 1000) for name in ("p50_ms", "p95_ms"))
        screen.print(f"  half of those that went well took at most {p50}, 95 % at most {p95}")
    if queue["queued"]:
        screen.print(f"  {queue['queued']:,} queued now, the oldest for {output.elapsed(queue['oldest_s'])}")
    for failure in told["failures"]:
        said = f": {output.clean(failure['error_message'])}" if failure["error_message"] else ""
        screen.print(f"  {failure['count']:,} × {failure['stop_reason']}{said} ({failure['newest_id']})")
