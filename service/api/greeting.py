"""What an API process says when it begins: what it is, what it stands on, and all that it answers."""

import logging
from collections.abc import Sequence
from importlib.metadata import version
from platform import python_version

from starlette.routing import BaseRoute, Route

from eventstore import Database
from eventstore.migrations import compare

logger = logging.getLogger("ade.api")


async def greet(database: Database, routes: Sequence[BaseRoute]) -> None:
    """Logs the versions and the routes."""
    server = await database.row("server_settings")
    schema = compare({row["name"]: row["digest"] for row in await database.rows("migrations")})
    versions = {
        "ade": version("ade-runs"),
        "python": python_version(),
        "postgresql": server["version"] if server else "",
        "schema": max(schema.applied + schema.ahead, default=""),
    }
    logger.info("the API begins", extra=versions)
    mounted = [(method, route.path) for route in routes if isinstance(route, Route) for method in route.methods or ()]
    logger.info("routes are mounted", extra={"routes": [f"{m} {path}" for m, path in mounted if m != "HEAD"]})
