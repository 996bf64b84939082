"""``ade builds``: make the venv of a config, and follow the making."""

from dataclasses import asdict
from typing import Annotated

import typer

from service.cli import feeds, output
from service.cli.connection import connected, find_config
from service.cli.feeds import PAGE, AroundEntry, IgnoreCase, LastEntries, LastLines, Reason, WithText
from service.cli.options import AsJson, Limit, Workspace
from service.cli.output import Screen
from service.client import Consumer

app = typer.Typer(no_args_is_help=True)

Build = Annotated[str, typer.Argument(help="The id of a build.")]


@app.command()
def start(
    config: Annotated[str, typer.Argument(help="The id or the name of a config.")],
    workspace: Workspace = "default",
    force: Annotated[bool, typer.Option("--force", help="A new build, even where one could be reused.")] = False,
    wait: Annotated[bool, typer.Option(help="Follow the build to its end, or only start it.")] = True,
    as_json: AsJson = False,
) -> None:
    """Make sure that a config has a build, and follow it; exit code 0 when it is active, 1 when it failed."""
    with connected() as client:
        found = find_config(client, workspace, config)
        steps = ("workspaces", found["workspace_id"], "configs", found["id"], "builds")
        if wait:
            consumer = Consumer.creating("/".join(steps), {"force": force}, on_pause=feeds.say_pause)
            feeds.to_the_end(client, consumer, as_json=as_json)
        snapshot = client.post(*steps, body={"options": {"force": force}})
    if as_json:
        output.json(snapshot)
    else:
        Screen().print(f"{snapshot['id']} is {snapshot['status']}; `ade builds tail {snapshot['id']}` follows it.")


@app.command("list")
def list_builds(
    workspace: Workspace = "default",
    status: Annotated[str | None, typer.Option(help="Only those that are queued, building, active …")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List the builds of a workspace, newest first."""
    with connected() as client:
        found = client.listed("builds", workspace_id=workspace, status=status, limit=min(limit, PAGE))
        columns = {
            "ID": lambda build: build["id"],
            "STATUS": lambda build: build["status"],
            "CONFIG": lambda build: f"{build['config_id']} v{build['config_version']}",
            "CREATED": lambda build: output.ago(build["created"]),
            "TOOK": output.took,
            "SUMMARY": lambda build: build["error_message"] or build["summary"] or "",
        }
        nothing = f"No builds in the workspace {workspace}; `ade builds start CONFIG` makes one."
        feeds.listing(found, limit, columns, as_json=as_json, nothing=nothing)


@app.command()
def show(build: Build, as_json: AsJson = False) -> None:
    """Show a build as it is now."""
    feeds.show("build", build, as_json=as_json)


@app.command()
def logs(
    build: Build,
    last: LastEntries = None,
    around: AroundEntry = None,
    text: WithText = None,
    ignore_case: IgnoreCase = False,
    as_json: AsJson = False,
) -> None:
    """Print what the build wrote so far."""
    feeds.logs("build", build, last, around, text, ignore_case=ignore_case, as_json=as_json)


@app.command()
def tail(build: Build, lines: LastLines = 10, as_json: AsJson = False) -> None:
    """Follow a build to its end; exit code 0 when it is active, 1 when it failed."""
    feeds.tail("build", build, lines, as_json=as_json)


@app.command()
def cancel(build: Build, reason: Reason = None, as_json: AsJson = False) -> None:
    """Ask a build to stop."""
    feeds.cancel("build", build, reason, as_json=as_json)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(min=0, help="Of each config, so many besides the one that new runs use.")] = 1,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="DAYS", help="Only what was not used for so many days.")
    ] = 7,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the venvs of this machine that nobody needs; a run that needs one later makes it again."""
    from service.cli.prune import pruned  # what follows needs the database; what stands above needs a client

    verdicts = pruned(keep, older_than, dry_run=dry_run)
    if as_json:
        output.json({"dry_run": dry_run, "builds": [asdict(verdict) for verdict in verdicts]})
        return
    screen, gone = Screen(), "to be removed" if dry_run else "removed"
    for verdict in verdicts:
        screen.print(f"{verdict.build_id}  {gone if verdict.action == 'remove' else 'kept'}: {verdict.why}")
    removed = [verdict.bytes for verdict in verdicts if verdict.action == "remove"]
    screen.print(f"{len(removed)} {gone}, {output.size(sum(removed))}; {len(verdicts) - len(removed)} kept")
