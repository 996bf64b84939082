"""What every verb that speaks HTTP shares: the client, and what an error means to the shell."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from service.cli.http_client import Client
from service.cli.options import FAILED, UNREACHABLE, USAGE
from service.cli.output import Screen
from service.client import ClientError, NotFound, ProblemError, Unreachable
from service.settings import Settings

UNAUTHORIZED = 401


class Wrong(ClientError):
    """The command line makes no sense here."""


@contextmanager
def connected() -> Iterator[Client]:
    """The client of the service that the settings name; errors are :func:`reported`."""
    settings = Settings()
    with reported(), Client(settings.url, settings.api_key) as client:
        yield client


@contextmanager
def reported() -> Iterator[None]:
    """Errors of the block become lines on stderr and an exit code."""
    try:
        yield
    except ClientError as error:
        screen = Screen(sys.stderr)
        screen.problem(error)
        if isinstance(error, Unreachable):
            screen.print("Is `ade serve` running? ADE_URL says where to look for it.")
        if isinstance(error, ProblemError) and error.status == UNAUTHORIZED:
            screen.print("ADE_API_KEY holds the key that is shown; `ade keys create` makes one.")
        raise typer.Exit(_code(error)) from error


def _code(error: ClientError) -> int:
    match error:
        case Unreachable():
            return UNREACHABLE
        case ProblemError():
            return UNREACHABLE if error.temporary else USAGE
        case Wrong():
            return USAGE
        case _:
            return FAILED


def find_config(client: Client, workspace: str, wanted: str) -> Any:
    """The config with this id, or with this name in the workspace."""
    if wanted.startswith("config_"):
        try:
            return client.get("configs", wanted)
        except NotFound:
            pass  # a name may look like an id
    for config in client.listed("workspaces", workspace, "configs", limit=200):
        if config["name"] == wanted:
            return config
    raise Wrong(f"There is no config {wanted} in the workspace {workspace}; `ade configs list` shows what there is.")
