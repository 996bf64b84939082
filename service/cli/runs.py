"""``ade runs``: start engines, follow them, and see what they did."""

import mimetypes
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from eventstore.clock import now
from service.cli import feeds, output
from service.cli.connection import connected, find_config
from service.cli.feeds import PAGE, AroundEntry, IgnoreCase, LastEntries, LastLines, Reason, WithText
from service.cli.http_client import Client
from service.cli.options import AsJson, Limit, Workspace
from service.cli.output import Screen
from service.client import Consumer, Event, follow

app = typer.Typer(no_args_is_help=True)

Run = Annotated[str, typer.Argument(help="The id of a run.")]


@app.command()
def start(
    config: Annotated[str, typer.Argument(help="The id or the name of a config.")],
    workspace: Workspace = "default",
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--input", "-i", exists=True, dir_okay=False, help="A file to upload and run on; repeat it."),
    ] = None,
    documents: Annotated[
        list[str] | None, typer.Option("--document", help="A document that is there already, after the inputs.")
    ] = None,
    arguments: Annotated[list[str] | None, typer.Option("--arg", help="An argument for the engine; repeat it.")] = None,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds, from when the engine starts.")] = None,
    max_attempts: Annotated[
        int | None, typer.Option(min=1, help="How often it may be begun, where its worker is lost.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="All but the engine.")] = False,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Only validate the config.")] = False,
    force_rebuild: Annotated[bool, typer.Option("--force-rebuild", help="With a new build.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start it and leave; do not follow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a run and follow it; exit code 0 when it succeeded, 1 when it did not. Ctrl-C leaves it running."""
    with connected() as client:
        found = find_config(client, workspace, config)
        uploaded = [upload(client, found["workspace_id"], path) for path in inputs or []]
        options = {
            "document_ids": [*uploaded, *(documents or [])],
            "engine_args": arguments or [],
            "dry_run": dry_run,
            "validate_only": validate_only,
            "force_rebuild": force_rebuild,
            "timeout_s": timeout,
            "max_attempts": max_attempts,
        }
        if not detach:
            consumer = Consumer.creating(f"configs/{found['id']}/runs", options, on_pause=feeds.say_pause)
            feeds.to_the_end(client, consumer, as_json=as_json)
        snapshot = client.post("configs", found["id"], "runs", body={"options": options})
    if as_json:
        output.json(snapshot)
    else:
        Screen().print(f"{snapshot['id']} is {snapshot['status']}; `ade runs tail {snapshot['id']}` follows it.")


def upload(client: Client, workspace: str, path: Path) -> str:
    """Stores a file as a document; its id."""
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    with path.open("rb") as content:
        document = client.upload(
            "workspaces", workspace, "documents", content=content, media_type=media_type, name=path.name
        )
    screen = Screen(sys.stderr)
    screen.print(screen.paint(f"uploaded {path.name} ({output.size(document['size'])}) as {document['id']}", "dim"))
    return str(document["id"])


@app.command("list")
def list_runs(
    workspace: Workspace = "default",
    status: Annotated[str | None, typer.Option(help="Only those that are queued, running, succeeded …")] = None,
    config: Annotated[str | None, typer.Option(help="Only those of this config, by id or name.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs of a workspace, newest first."""
    with connected() as client:
        config_id = find_config(client, workspace, config)["id"] if config else None
        steps = ("workspaces", workspace, "runs")
        found = client.listed(*steps, status=status, config_id=config_id, limit=min(limit, PAGE))
        columns = {
            "ID": lambda run: run["id"],
            "STATUS": lambda run: run["status"],
            "CREATED": lambda run: output.ago(run["created"]),
            "TOOK": output.took,
            "SUMMARY": lambda run: run["error_message"] or run["summary"] or _waiting(run),
        }
        nothing = f"No runs in the workspace {workspace}; `ade runs start CONFIG` begins one."
        feeds.listing(found, limit, columns, as_json=as_json, nothing=nothing)


def _waiting(run: feeds.Thing) -> str:
    return f"waiting for {run['waiting_for']}" if run["waiting_for"] else ""


@app.command()
def show(run: Run, as_json: AsJson = False) -> None:
    """Show a run as it is now."""
    feeds.show("run", run, as_json=as_json)


@app.command()
def logs(
    run: Run,
    last: LastEntries = None,
    around: AroundEntry = None,
    text: WithText = None,
    ignore_case: IgnoreCase = False,
    as_json: AsJson = False,
) -> None:
    """Print what the engine wrote so far."""
    feeds.logs("run", run, last, around, text, ignore_case=ignore_case, as_json=as_json)


@app.command()
def tail(run: Run, lines: LastLines = 10, as_json: AsJson = False) -> None:
    """Follow a run to its end; exit code 0 when it succeeded, 1 when it did not."""
    feeds.tail("run", run, lines, as_json=as_json)


@app.command()
def watch(run: Run, as_json: AsJson = False) -> None:
    """Show where a run stands, live, until it ends; elsewhere than on a terminal, a line for each change."""
    with connected() as client:
        snapshot = client.get("runs", run)
        consumer = Consumer(run, snapshot["last_event_id"], on_pause=feeds.say_pause)
        screen, standing, console = Screen(since=snapshot["created_at"]), Standing(snapshot), Console(stderr=True)
        with feeds.detaching(consumer), Live(standing, console=console, refresh_per_second=8, transient=True):
            for event in follow(client.http, consumer):
                if not standing.moved(event) or consumer.ended:
                    continue
                if as_json:
                    output.json(client.get("runs", run))
                elif not console.is_terminal:
                    screen.event(event)
        feeds.finish(client.get("runs", run), "run", as_json=as_json)


class Standing:
    """Where a run stands, as one line of a terminal that is made anew many times a second."""

    def __init__(self, run: feeds.Thing) -> None:
        self._id: str = run["id"]
        self._since: float = run["created"]
        self._where = _waiting(run) or run["status"]
        self._lines, self._last = 0, ""
        self._spinner = Spinner("dots")

    def moved(self, event: Event) -> bool:
        """Takes an event in; whether it changed where the run stands."""
        tag, _, text = output.words(event)
        if tag not in {"run", "build"} or event.type == "build.log":
            self._lines, self._last = self._lines + 1, text
            return False
        self._where = text
        return True

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        lines = f"  {self._lines} lines: {self._last}" if self._lines else ""
        shown = Text(output.clean(f"{self._id}  {output.elapsed(now() - self._since)}  {self._where}{lines}"))
        shown.truncate(options.max_width - 2, overflow="ellipsis")
        self._spinner.update(text=shown)
        yield self._spinner


@app.command()
def wait(run: Run, as_json: AsJson = False) -> None:
    """Wait until a run has ended; exit code 0 when it succeeded, 1 when it did not."""
    feeds.wait("run", run, as_json=as_json)


@app.command()
def cancel(run: Run, reason: Reason = None, as_json: AsJson = False) -> None:
    """Ask a run to stop; one that waits ends at once."""
    feeds.cancel("run", run, reason, as_json=as_json)


@app.command()
def artifacts(run: Run, as_json: AsJson = False) -> None:
    """List what a run left, and where to fetch it."""
    with connected() as client:
        found = client.get("runs", run, "artifacts")["data"]
        columns = {
            "NAME": lambda artifact: artifact["name"],
            "SIZE": lambda artifact: output.size(artifact["size"]),
            "TYPE": lambda artifact: artifact["media_type"],
            "URL": lambda artifact: f"{client.url}/api/v1/artifacts/{artifact['id']}/content",
        }
        feeds.listing(found, len(found), columns, as_json=as_json, nothing=f"{run} left no artifacts.")
