"""What runs and builds have in common on the command line: their lines, their end, their lists."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any, Literal

import typer

from service.cli import output
from service.cli.connection import connected
from service.cli.http_client import Client
from service.cli.options import DETACHED, FAILED
from service.cli.output import Screen
from service.client import ClientError, Consumer, follow

Kind = Literal["run", "build"]
Thing = Mapping[str, Any]

PAGE = 200
"""The most that the service lists at once."""
AROUND = 40
"""Lines around one: about a screen."""

LastLines = Annotated[int, typer.Option("--lines", "-n", min=0, max=1000, help="Begin with so many lines of output.")]
LastEntries = Annotated[int | None, typer.Option("--tail", min=1, max=1000, help="Only the last so many lines.")]
AroundEntry = Annotated[
    int | None, typer.Option("--around", metavar="ID", min=1, help="Only the lines around this event.")
]
WithText = Annotated[
    str | None,
    typer.Option("--grep", metavar="TEXT", help="Only lines with this text; exit code 1 where there is none."),
]
IgnoreCase = Annotated[bool, typer.Option("--ignore-case", "-i", help="With --grep: a also finds A.")]
Reason = Annotated[str | None, typer.Option(help="Why: it is kept with the request.")]


def say_pause(failure: ClientError, wait_s: float) -> None:
    """Tells whoever watches that the stream is interrupted and will go on."""
    screen = Screen(sys.stderr)
    screen.print(screen.paint(f"{failure}. Going on in {wait_s:.1f} s.", "yellow"))


@contextmanager
def detaching(consumer: Consumer) -> Iterator[None]:
    """Ctrl-C leaves the block, and leaves what is followed alone; it says how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        stream, screen = consumer.stream, Screen(sys.stderr)
        if stream:
            verb = f"ade {stream.partition('_')[0]}s"
            screen.print(f"\nDetached; {stream} goes on.")
            screen.print(f"  {verb} tail {stream}    to come back")
            screen.print(f"  {verb} cancel {stream}  to stop it")
        raise typer.Exit(DETACHED) from None


def to_the_end(client: Client, consumer: Consumer, *, as_json: bool, since: str | None = None) -> None:
    """Shows a feed until it ends, and leaves with the exit code for that end."""
    screen, event = Screen(since=since), None
    with detaching(consumer):
        for event in follow(client.http, consumer):
            if as_json:
                output.raw(event.line)
            else:
                screen.event(event)
    leave((event or client.get(*consumer.steps))["status"])  # no event: the end lay behind the cursor


def leave(status: str) -> None:
    """Ends the command: 0 for what went well, 1 for what did not."""
    raise typer.Exit(0 if status in output.GOOD_ENDS else FAILED)


def tail(kind: Kind, wanted: str, lines: int, *, as_json: bool) -> None:
    """Follows from the last lines of output on."""
    with connected() as client:
        snapshot = client.get(f"{kind}s", wanted)
        after_id = snapshot["last_event_id"]
        if lines:
            earlier = client.get(f"{kind}s", wanted, "logs", tail=lines)["previous_before_id"]
            after_id = 0 if earlier is None else earlier - 1
        consumer = Consumer(wanted, after_id, on_pause=say_pause)
        to_the_end(client, consumer, as_json=as_json, since=snapshot["created_at"])


def wait(kind: Kind, wanted: str, *, as_json: bool) -> None:
    """Is silent until the end, then says how it was."""
    with connected() as client:
        consumer = Consumer(wanted, client.get(f"{kind}s", wanted)["last_event_id"], on_pause=say_pause)
        with detaching(consumer):
            for _ in follow(client.http, consumer):
                pass
        finish(client.get(f"{kind}s", wanted), kind, as_json=as_json)


def finish(snapshot: Thing, kind: Kind, *, as_json: bool) -> None:
    """Says how something ended, and leaves with the exit code for that."""
    if as_json:
        output.json(snapshot)
    else:
        _, style, text = output.words({**snapshot, "type": f"{kind}.completed"})
        screen = Screen()
        screen.print(screen.paint(text, style))
    leave(snapshot["status"])


def logs(
    kind: Kind, wanted: str, last: int | None, around: int | None, text: str | None, *, ignore_case: bool, as_json: bool
) -> None:
    """Prints the lines of output that there are now; of these the last ones, those around one, or those with a text."""
    if sum(choice is not None for choice in (last, around, text)) > 1:
        raise typer.BadParameter("give one of --tail, --around and --grep")
    with connected() as client:
        screen, entry = Screen(), None
        if text is not None:
            entries = _entries(client, kind, wanted, "logs", "search", q=text, ignore_case=ignore_case, limit=PAGE)
        elif around is not None:
            entries = iter(client.get(f"{kind}s", wanted, "logs", around=around, limit=AROUND)["entries"])
        else:
            entries = _entries(client, kind, wanted, "logs", **({} if last is None else {"tail": last}))
        for entry in entries:
            if as_json:
                output.json(entry)
            else:
                screen.entry(entry)
    if text is not None and entry is None:
        raise typer.Exit(FAILED)  # as grep says it


def _entries(client: Client, kind: Kind, wanted: str, *steps: str, **params: Any) -> Iterator[Thing]:
    while True:
        page = client.get(f"{kind}s", wanted, *steps, **params)
        yield from page["entries"]
        if page["next_after_id"] is None:
            return
        params = {**params, "after_id": page["next_after_id"]}


def cancel(kind: Kind, wanted: str, reason: str | None, *, as_json: bool) -> None:
    """Asks to stop."""
    with connected() as client:
        snapshot = client.post(f"{kind}s", wanted, "cancel", body={"reason": reason})
    if as_json:
        output.json(snapshot)
    elif snapshot["finished"] is None:
        Screen().print(f"Asked {wanted} to stop; `ade {kind}s tail {wanted}` follows it until it has.")
    else:
        Screen().print(f"{wanted} is {snapshot['status']}.")


def show(kind: Kind, wanted: str, *, as_json: bool) -> None:
    """Prints all that is known now."""
    with connected() as client:
        snapshot = client.get(f"{kind}s", wanted)
    if as_json:
        output.json(snapshot)
        return
    twice = {"object", "created", "started", "finished", "duration_ms"}
    facts = {name: value for name, value in snapshot.items() if name not in twice}
    for name, members in (("inputs", ("document_id", "name")), ("packages", ("name", "version"))):
        if facts.get(name):
            facts[name] = ", ".join(" ".join(str(one[member]) for member in members) for one in facts[name])
    Screen().facts(facts | {"duration": output.took(snapshot)})


def listing(
    found: Iterable[Thing],
    limit: int,
    columns: Mapping[str, Callable[[Thing], str]],
    *,
    as_json: bool,
    nothing: str,
) -> None:
    """Prints the newest of a list; ``columns`` say under each heading what to show."""
    things = list(islice(found, limit))
    if as_json:
        output.json({"object": "list", "data": things})
    elif things:
        Screen().columns(list(columns), [[cell(thing) for cell in columns.values()] for thing in things])
    else:
        Screen().print(nothing)
