"""The command line. User verbs (configs, builds, runs, stats) speak HTTP; operator verbs (log, db, keys, doctor, builds
prune) open the database.

Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 cannot reach the service.
"""

import sys

import pydantic
import typer

from service.cli import builds, configs, db, demo, doctor, keys, log, openapi, runs, safe_mode, serve, stats, workers

app = typer.Typer(
    help="Runs and builds whose whole history is one append-only log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(serve.serve)
app.command()(serve.worker)
app.command(hidden=True)(serve.api)
app.command(hidden=True)(serve.projector)
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(openapi.openapi)
app.command()(workers.workers)
app.command()(stats.stats)
app.add_typer(configs.app, name="configs")
app.add_typer(builds.app, name="builds")
app.add_typer(runs.app, name="runs")
app.add_typer(keys.app, name="keys")
app.add_typer(log.app, name="log")
app.add_typer(db.app, name="db")
app.add_typer(safe_mode.app, name="safe-mode")


def main() -> None:
    """The program `ade`."""
    try:
        app()
    except pydantic.ValidationError as error:
        if error.title != "Settings":
            raise
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            name = "ADE_" + str(item["loc"][0]).upper() if item["loc"] else "settings"
            print(f"{name}: {item['msg']}", file=sys.stderr)
        sys.exit(2)
