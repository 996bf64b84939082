"""The command line. User verbs (configs, builds, runs, stats, workers, safe-mode) speak HTTP; operator verbs (log, db,
keys, doctor, builds prune) open the database.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 cannot reach the service.

A verb is imported when it is asked for: all of them together, with the driver of the database, the HTTP client and the
whole API, take half a second.
"""

import sys
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

VERBS = {
    "serve": (
        "serve.serve",
        "Run the service: API, worker and projector, with the bundled PostgreSQL where no other is given.",
    ),
    "worker": ("serve.worker", "Run a worker alone, for a deployment with several machines."),
    "api": ("serve.api", None),
    "projector": ("serve.projector", None),
    "demo": (
        "demo.demo",
        "Start everything, run the penguins example, and show what came of it. It needs nothing that runs already.",
    ),
    "doctor": (
        "doctor.doctor",
        "Look at everything that the service needs, and say what to do where something is missing.",
    ),
    "openapi": ("openapi.openapi", "Print the description of the API: OpenAPI 3.1."),
    "workers": (
        "workers.workers",
        "List the workers that hold work now, and what they hold; the projector is one of them.",
    ),
    "stats": (
        "stats.stats",
        "Show how runs and builds fare: how they ended, how long they took, what is queued, why they failed.",
    ),
    "configs": ("configs.app", "Config packages."),
    "builds": ("builds.app", "Builds: the venvs of configs."),
    "runs": ("runs.app", "Runs of engines."),
    "keys": ("keys.app", "Keys of the API."),
    "log": ("log.app", "The log: whether it is whole, its export, rebuild of what is derived."),
    "db": ("db.app", "The database: schema, shell, backup, upgrade."),
    "safe-mode": ("safe_mode.app", "Refuse new work, or take it again."),
}
"""Where each verb is, below this package, and what `ade --help` says of it; of those without a word it says nothing."""


class _Verbs(TyperGroup):
    """Lists the verbs without importing one."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        for name, (_, said) in VERBS.items():
            self.add_command(TyperCommand(name, help=said, hidden=said is None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and _imported(args[0]), rest


def _imported(name: str) -> Any:
    where, said = VERBS[name]
    module, _, attribute = where.partition(".")
    found, shelf = getattr(import_module(f"service.cli.{module}"), attribute), typer.Typer()
    if isinstance(found, typer.Typer):
        shelf.add_typer(found, name=name, help=said)
    else:
        shelf.command(name)(found)
    return get_group(shelf).commands[name]


app = typer.Typer(
    cls=_Verbs,
    help="Runs and builds whose whole history is one append-only log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ade {version('ade-runs')}")
        raise typer.Exit


@app.callback()
def _group(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which this is.")] = False,
) -> None:
    """Without it, typer would not take this for a group."""


def main() -> None:
    """The program `ade`."""
    try:
        app()
    except ValueError as error:
        from pydantic import ValidationError  # it is imported where it is raised, and there is no need to here

        if not isinstance(error, ValidationError) or error.title != "Settings":
            raise
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = "ADE_" + str(item["loc"][0]).upper() if item["loc"] else "settings"
            print(f"{name}: {item['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # the machine's, not ours: a folder that cannot be made, a full disk behind stdout
        what = f"{error.filename}: " if error.filename is not None else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr)
        with suppress(OSError):
            sys.stdout.close()  # what it holds is not tried again
        sys.exit(2)
