"""``ade safe-mode``: refuse new work, or take it again."""

from typing import Annotated

import typer

from service.cli import output
from service.cli.connection import connected
from service.cli.options import AsJson

app = typer.Typer(no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Why, for the log.")]


@app.command()
def on(reason: Reason = None, as_json: AsJson = False) -> None:
    """Refuse new runs and builds; queued work waits, running work runs on."""
    _switch(enabled=True, reason=reason, as_json=as_json)


@app.command()
def off(reason: Reason = None, as_json: AsJson = False) -> None:
    """Take new runs and builds again."""
    _switch(enabled=False, reason=reason, as_json=as_json)


def _switch(*, enabled: bool, reason: str | None, as_json: bool) -> None:
    with connected() as client:
        now = client.post("safe-mode", body={"enabled": enabled, "reason": reason})
    if as_json:
        output.json(now)
    elif now["enabled"] and not enabled:
        typer.echo("Safe mode stays on: ADE_SAFE_MODE forces it in the service's environment.")
    else:
        typer.echo(f"Safe mode is {'on' if now['enabled'] else 'off'}.")
