"""The HTTP app: what stands around its routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware

from eventstore import Appender, Database, Log
from eventstore.tail import LOG, Hints
from service.api.access import PlainPath, SameOrigin
from service.api.access_log import AccessLog
from service.api.deployment import Deployment
from service.api.gate import Gate
from service.api.greeting import greet
from service.api.headers import Heads
from service.api.problems import HANDLERS
from service.api.routes import routes
from service.api.streams import App
from service.exposition import Exposition, connection_name
from service.files import Files
from service.handler import Handler
from service.hub import Hub
from service.known_keys import KnownKeys
from service.observer import observe
from service.settings import Settings
from service.work.installer import python_version

CONNECTIONS = 16


def create_app(settings: Settings, url: str) -> Starlette:
    """The app of one API process, on the database at ``url``."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        files = Files.of(settings)
        database = Database(url, connections=CONNECTIONS, name=connection_name("api"))
        async with database, anyio.create_task_group() as tasks:
            log, appender, hints = Log(database), Appender(database, observe), Hints(database, LOG)
            hub = Hub(log, hints)
            identity = await log.identity()
            await greet(database, app.routes)
            exposition = Exposition("api", settings.metrics_dir)
            for service in (appender, hints, hub, exposition):
                await tasks.start(service.run)
            keys = None
            if settings.auth == "keys":
                per_second, burst = settings.rate_requests_per_second, settings.rate_burst_requests
                most = settings.key_streams
                keys = KnownKeys(database, hints, hub.wake, per_second=per_second, burst=burst, streams=most)
                await tasks.start(keys.run)
            handler = Handler(database, log, appender, files, settings, await python_version(settings.python))
            gate = Gate(database, keys)
            app.state.deployment = Deployment(
                settings, database, log, identity.log_id, handler, hub, files, exposition, gate
            )
            yield
            tasks.cancel_scope.cancel()

    # Where nobody needs a key, a page of elsewhere could do all that its visitor can.
    strict = [Middleware(SameOrigin)] if settings.auth == "off" else []
    middleware = [Middleware(Heads, settings.origins), Middleware(AccessLog), *strict, Middleware(PlainPath)]
    app = App(routes=routes(), lifespan=lifespan, middleware=middleware, exception_handlers=dict(HANDLERS))
    app.router.redirect_slashes = False  # a path is as it is described; behind a proxy the address would be a wrong one
    return app
