"""The HTTP app: what stands around its routes."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventstore import Appender, Database, Log
from eventstore.clock import ulid
from eventstore.tail import LOG, Hints
from service.api.access import PlainPath, SameOrigin
from service.api.access_log import AccessLog
from service.api.deployment import Deployment
from service.api.greeting import greet
from service.api.problems import HANDLERS
from service.api.routes import routes
from service.api.streams import App
from service.exposition import Exposition, connection_name
from service.files import Files
from service.handler import Handler
from service.hub import Hub
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
            handler = Handler(database, log, appender, files, settings, await python_version(settings.python))
            app.state.deployment = Deployment(settings, database, log, identity.log_id, handler, hub, files, exposition)
            yield
            tasks.cancel_scope.cancel()

    middleware = [Middleware(RequestId), Middleware(AccessLog), Middleware(SameOrigin), Middleware(PlainPath)]
    return App(routes=routes(), lifespan=lifespan, middleware=middleware, exception_handlers=dict(HANDLERS))


class RequestId:
    """Gives every answer an ``X-Request-ID``: the client's, where it is a plain one."""

    _PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if self._PLAIN.match(given) else ulid()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        return await self._app(scope, receive, send_with_id)
