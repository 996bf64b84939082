"""``ade configs``: put a config package into the service, and see what is there."""

import mimetypes
from pathlib import Path
from typing import Annotated

import typer

from service.cli import output
from service.cli.connection import Wrong, connected
from service.cli.feeds import PAGE, listing
from service.cli.options import AsJson, Limit, Workspace
from service.cli.output import Screen
from service.work.archive import BadPackage
from service.work.package import pack

app = typer.Typer(no_args_is_help=True)


@app.command()
def add(
    package: Annotated[Path, typer.Argument(exists=True, help="A folder with pyproject.toml, or its tar.gz or zip.")],
    workspace: Workspace = "default",
    name: Annotated[str | None, typer.Option(help="Its name; that of its pyproject.toml when not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Register a config package: a new config, the next version of one, or what is there already."""
    with connected() as client:
        content, media_type = read_package(package)
        config = client.upload("workspaces", workspace, "configs", content=content, media_type=media_type, name=name)
    if as_json:
        output.json(config)
    else:
        screen = Screen()
        what = {"created": "is new", "updated": "has a new version", "unchanged": "is unchanged"}[config["outcome"]]
        screen.print(screen.paint(f"{config['name']} {what}: {config['id']} version {config['version']}", ""))


def read_package(package: Path) -> tuple[bytes, str]:
    """The archive to send, and its media type. Raises Wrong for a folder that is no package."""
    if not package.is_dir():
        zipped = mimetypes.guess_type(package.name)[0] == "application/zip"
        return package.read_bytes(), "application/zip" if zipped else "application/gzip"
    try:
        return pack(package), "application/gzip"
    except BadPackage as error:
        raise Wrong(str(error)) from error


@app.command("list")
def list_configs(workspace: Workspace = "default", limit: Limit = 100, as_json: AsJson = False) -> None:
    """List the configs of a workspace, newest first."""
    with connected() as client:
        found = client.listed("workspaces", workspace, "configs", limit=min(limit, PAGE))
        columns = {
            "ID": lambda config: config["id"],
            "NAME": lambda config: config["name"],
            "VERSION": lambda config: str(config["version"]),
            "ACTIVE BUILD": lambda config: config["active_build_id"] or "-",
            "UPDATED": lambda config: output.ago(config["updated"]),
        }
        nothing = f"No configs in the workspace {workspace} yet; `ade configs add FOLDER` registers one."
        listing(found, limit, columns, as_json=as_json, nothing=nothing)
