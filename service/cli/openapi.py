"""``ade openapi``: the description of the API, as files keep it."""

import json
from typing import Annotated

import typer

Markdown = Annotated[bool, typer.Option("--markdown", help="The reference for people in place of the document.")]


def openapi(markdown: Markdown = False) -> None:
    """Print the description of the API: OpenAPI 3.1."""
    from service.api import reference
    from service.api.openapi import document
    from service.api.routes import ENDPOINTS

    described = document(ENDPOINTS)
    typer.echo(
        reference.markdown(described) if markdown else json.dumps(described, indent=1, ensure_ascii=False),
        nl=not markdown,
    )
