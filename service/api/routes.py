"""All that can be asked of the API. The app is built from this table, and so is its description."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.routing import Route

from service.api import builds, feeds, keys, log_search, logs, metrics, pages, runs, stats, system, uploads
from service.api.endpoint import (
    IDEMPOTENCY_KEY,
    JSON,
    LAST_EVENT_ID,
    LOCATION,
    LOG_ID,
    OVER,
    RANGES,
    RETRY_AFTER,
    SET_COOKIE,
    STREAM,
    TRACEPARENT,
    Answer,
    Bytes,
    Endpoint,
    events,
    file,
    finds,
    lists,
    logfile,
    made,
    shows,
)
from service.api.feeds import EventPage
from service.api.keys import KeySnapshot, MadeKey, Session, SignedUrls
from service.api.log_search import BuildSearch, LogMatch, RunSearch, SearchSummary
from service.api.logs import BuildLogs, RunLogs
from service.api.shape import Shape
from service.api.snapshots import (
    ArtifactSnapshot,
    BuildSnapshot,
    ConfigSnapshot,
    DocumentSnapshot,
    RegisteredConfig,
    RunSnapshot,
)
from service.api.stats import Stats
from service.api.system import Head, Health, Readiness, SafeMode, Worker, Workspace
from service.errors import (
    AlreadyEnded,
    BadConfig,
    BuildInProgress,
    InSafeMode,
    NeedsInput,
    NoEngine,
    UnknownThing,
    WrongMediaType,
)
from service.roles import Role

PREFIX = "/api/v1"


def _get(name: str, path: str, handler: Any, tag: str, *answers: Answer, **more: Any) -> Endpoint:
    """What every viewer may read."""
    return Endpoint(name, "GET", path, handler, Role.VIEWER, tag, answers, **more)


def _post(name: str, path: str, handler: Any, tag: str, *answers: Answer, **more: Any) -> Endpoint:
    """What an operator may do."""
    return Endpoint(name, "POST", path, handler, Role.OPERATOR, tag, answers, **more)


def _page(name: str, path: str, handler: Any, media_type: str) -> Endpoint:
    """What anybody may load."""
    return Endpoint(name, "GET", path, handler, Role.PUBLIC, "pages", (Answer(200, "As asked.", {media_type: Bytes}),))


def _work(kind: str, shapes: Sequence[type[Shape]], handlers: Sequence[Any]) -> Sequence[Endpoint]:
    """What is asked of a run and of a build alike."""
    shape, output, search = shapes
    show, follow, read, find, download, cancel = handlers
    path, tag = f"/{kind}s/{{id}}", f"{kind}s"
    return (
        _get(f"show_{kind}", path, show, tag, shows(shape)),
        _get(f"follow_{kind}", f"{path}/events", follow, tag, events(EventPage), OVER, takes=(LAST_EVENT_ID,)),
        _get(f"read_{kind}_logs", f"{path}/logs", read, tag, shows(output, gives=(LOG_ID,))),
        _get(
            f"search_{kind}_logs", f"{path}/logs/search", find, tag, finds(search, LogMatch, "Bookmark", SearchSummary)
        ),
        _get(f"download_{kind}_logfile", f"{path}/logfile", download, tag, *logfile(), takes=RANGES),
        _post(
            f"cancel_{kind}",
            f"{path}/cancel",
            cancel,
            tag,
            shows(shape, "It was asked to stop.", 202),
            refusals=(AlreadyEnded,),
        ),
    )


_CONFIGS = (
    _get("list_configs", "/workspaces/{ws}/configs", uploads.list_configs, "configs", lists(ConfigSnapshot)),
    _post(
        "register_config",
        "/workspaces/{ws}/configs",
        uploads.register_config,
        "configs",
        made(RegisteredConfig, "The name is new."),
        made(RegisteredConfig, "The next version of it, or what was there already.", 200),
        refusals=(WrongMediaType, BadConfig),
        takes=(IDEMPOTENCY_KEY,),
        uploads=tuple(sorted(uploads.ARCHIVES)),
    ),
    _get("show_config", "/configs/{config}", uploads.show_config, "configs", shows(ConfigSnapshot)),
)

_DOCUMENTS = (
    _get("list_documents", "/workspaces/{ws}/documents", uploads.list_documents, "documents", lists(DocumentSnapshot)),
    _post(
        "store_document",
        "/workspaces/{ws}/documents",
        uploads.store_document,
        "documents",
        made(DocumentSnapshot),
        refusals=(WrongMediaType,),
        takes=(IDEMPOTENCY_KEY,),
        uploads=("*/*",),
    ),
    _get("show_document", "/documents/{id}", uploads.show_document, "documents", shows(DocumentSnapshot)),
    _get(
        "download_document",
        "/documents/{id}/content",
        uploads.document_content,
        "documents",
        *file(),
        takes=RANGES,
    ),
)

_RUNS = (
    _post(
        "create_run",
        "/configs/{config}/runs",
        runs.create,
        "runs",
        made(RunSnapshot),
        Answer(200, "With `stream`: the run's events.", STREAM, (LOG_ID,)),
        refusals=(NeedsInput, NoEngine, BadConfig, InSafeMode),
        takes=(IDEMPOTENCY_KEY, TRACEPARENT),
    ),
    _get("list_runs", "/runs", runs.listing, "runs", lists(RunSnapshot)),
    _get("list_runs_of_config", "/configs/{config}/runs", runs.of_config, "runs", lists(RunSnapshot)),
    _get("list_runs_of_workspace", "/workspaces/{ws}/runs", runs.of_workspace, "runs", lists(RunSnapshot)),
    *_work(
        "run",
        (RunSnapshot, RunLogs, RunSearch),
        (runs.show, feeds.run_events, logs.run_logs, log_search.run_search, feeds.run_logfile, runs.cancel),
    ),
    _get("list_artifacts", "/runs/{id}/artifacts", runs.artifacts, "runs", lists(ArtifactSnapshot)),
    _get(
        "download_artifact",
        "/artifacts/{id}/content",
        runs.artifact_content,
        "runs",
        *file(),
        takes=RANGES,
    ),
)

_ENSURE = _post(
    "ensure_build",
    "/workspaces/{ws}/configs/{config}/builds",
    builds.ensure,
    "builds",
    made(BuildSnapshot),
    Answer(200, "One that is there already, or the events of either.", {JSON: BuildSnapshot, **STREAM}, (LOCATION,)),
    refusals=(BuildInProgress, NoEngine, BadConfig, InSafeMode),
    takes=(IDEMPOTENCY_KEY, TRACEPARENT),
)

_BUILDS = (
    _ENSURE,
    replace(
        _ENSURE,
        name="ensure_build_of_configuration",
        path="/workspaces/{ws}/configurations/{config}/builds",
        handler=builds.ensure_spelled_out,
    ),
    _get("list_builds", "/builds", builds.listing, "builds", lists(BuildSnapshot)),
    *_work(
        "build",
        (BuildSnapshot, BuildLogs, BuildSearch),
        (builds.show, feeds.build_events, logs.build_logs, log_search.build_search, feeds.build_logfile, builds.cancel),
    ),
)

_LOG = (
    _get(
        "follow_log",
        "/events",
        feeds.log_events,
        "log",
        events(EventPage, bookmarks=True),
        refusals=(UnknownThing,),
        takes=(LAST_EVENT_ID,),
    ),
    _get("show_head", "/events/head", system.head, "log", shows(Head)),
)

_SERVICE = (
    _get("show_stats", "/stats", stats.everywhere, "service", shows(Stats)),
    _get("show_stats_of_workspace", "/workspaces/{ws}/stats", stats.of_workspace, "service", shows(Stats)),
    _get("list_workspaces", "/workspaces", system.workspaces, "service", lists(Workspace)),
    _get("list_workers", "/workers", system.workers, "service", lists(Worker), everywhere=True),
    _get("show_safe_mode", "/safe-mode", system.safe_mode, "service", shows(SafeMode)),
    replace(
        _post("switch_safe_mode", "/safe-mode", system.switch_safe_mode, "service", shows(SafeMode, "As it is now.")),
        role=Role.ADMIN,
        everywhere=True,
    ),
)

_SIGN = _post("sign_run", "/runs/{id}/signed-urls", keys.sign_run, "keys", shows(SignedUrls))
_OPEN = _post("open_session", "/session", keys.open_session, "keys", shows(Session, gives=(SET_COOKIE,)))
_KEYS = (
    _get("show_session", "/session", keys.show_session, "keys", shows(Session)),
    replace(_OPEN, role=Role.VIEWER),
    Endpoint(
        "close_session", "DELETE", "/session", keys.close_session, Role.VIEWER, "keys", (Answer(204, "It is over."),)
    ),
    replace(_SIGN, role=Role.VIEWER),
    replace(_SIGN, name="sign_build", path="/builds/{id}/signed-urls", handler=keys.sign_build, role=Role.VIEWER),
    *(
        replace(one, role=Role.ADMIN, everywhere=True)
        for one in (
            _get("list_keys", "/keys", keys.listing, "keys", lists(KeySnapshot)),
            _post("create_key", "/keys", keys.create, "keys", shows(MadeKey, "It is new.", 201)),
            _post("revoke_key", "/keys/{id}/revoke", keys.revoke, "keys", shows(KeySnapshot, "It is dead.")),
        )
    ),
)

_UNREADY = Answer(503, "No, and why not.", {JSON: Readiness}, (RETRY_AFTER,))
_ROOT = (
    Endpoint("health", "GET", "/health", system.health, Role.PUBLIC, "service", (shows(Health),)),
    Endpoint("ready", "GET", "/ready", system.ready, Role.PUBLIC, "service", (shows(Readiness, "Yes."), _UNREADY)),
    _get(
        "metrics",
        "/metrics",
        metrics.metrics,
        "service",
        Answer(200, "Prometheus's format.", {"text/plain": Bytes}),
        everywhere=True,
    ),
    _page("console", "/", pages.console, "text/html"),
    _page("console_script", "/console.js", pages.console_script, "text/javascript"),
    _page("docs", "/docs", pages.docs, "text/html"),
    _page("openapi", "/openapi.json", pages.openapi, JSON),
)

_V1 = (*_CONFIGS, *_DOCUMENTS, *_RUNS, *_BUILDS, *_LOG, *_SERVICE, *_KEYS)
ENDPOINTS = (*(replace(endpoint, path=PREFIX + endpoint.path) for endpoint in _V1), *_ROOT)


def routes() -> list[Route]:
    """The routes of the app, in the order of the table."""
    return [Route(one.path, one.answer, methods=[one.method], name=one.name) for one in ENDPOINTS]
