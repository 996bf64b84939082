"""Commands, carried out: load, fold, decide, append; again when somebody was faster."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import anyio.to_thread
import orjson

from eventstore import NEW, Append, Appended, Appender, Database, Event, Log, NewEvent, Part
from eventstore.appender import PATIENCE_S
from eventstore.clock import ulid, ulid_of
from eventstore.errors import Conflict, KeyReused
from eventstore.log import FOREVER
from projections import build as builds
from projections import config as configs
from projections import events
from projections import run as runs
from projections.lifecycle import Phase
from projections.tracing import span_of
from service import commands
from service.errors import BadConfig, InSafeMode, KeyReuse, NeedsInput, NoEngine, TooBusy, UnknownThing
from service.files import Files
from service.settings import Settings
from service.work.archive import BadPackage
from service.work.fingerprint import fingerprint
from service.work.manifest import Manifest

TRIES = 20
"""How often a decision is made anew before the caller is told to come back: each lost race means that another won."""

SYSTEM = "system_log"
OTHER_REQUEST = "This Idempotency-Key stands for another request."

State = TypeVar("State", runs.Run, builds.Build)


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and the idempotency of the asking: ``key`` (unique per workspace) and a digest of what was asked."""

    requested_by: str = "anonymous"
    key: str | None = None
    digest: str = ""
    traceparent: str | None = None
    """The caller's span, which what is asked for will lie below."""


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to a create: the stream, how it came about, and the id up to which its first snapshot reads."""

    id: str
    how: str
    upto: int


class Handler:
    """What can be asked of the service. One per process."""

    def __init__(
        self, database: Database, log: Log, appender: Appender, files: Files, settings: Settings, python: str
    ) -> None:
        self.database = database
        self.log = log
        self.appender = appender
        self.files = files
        self.settings = settings
        self.python = python
        """The version of the Python that venvs are made of, for fingerprints."""

    # Loading

    async def run(self, run_id: str, *, upto: int = FOREVER) -> runs.Run:
        """The run as of an event; UnknownThing where it did not exist."""
        return (await self.run_and_build(run_id, upto=upto))[0]

    async def run_and_build(self, run_id: str, *, upto: int = FOREVER) -> tuple[runs.Run, builds.Build | None]:
        """The run and the build that it is bound to, as of one event; UnknownThing where the run did not exist."""
        rows = await self.database.rows("run_and_build", run=run_id, upto=upto)
        found = [Event.of(row) for row in rows]
        run = runs.fold(run_id, found)
        if run.phase is Phase.NONE:
            raise UnknownThing(f"There is no run {run_id}.")
        if run.build_id is None:
            return run, None
        return run, builds.fold(run.build_id, [event for event in found if event.stream == run.build_id])

    async def build(self, build_id: str, *, upto: int = FOREVER) -> builds.Build:
        """The build as of an event; UnknownThing where it did not exist."""
        build = builds.fold(build_id, await self.log.control_events(build_id, upto=upto))
        if build.phase is Phase.NONE:
            raise UnknownThing(f"There is no build {build_id}.")
        return build

    async def config(self, config_id: str) -> configs.Config:
        """The newest version of a config."""
        config = configs.fold(config_id, await self.log.control_events(config_id))
        if config.version == 0:
            raise UnknownThing(f"There is no config {config_id}.")
        return config

    async def safe_mode(self) -> bool:
        """Whether new work is refused."""
        if self.settings.safe_mode:
            return True
        row = await self.database.row("safe_mode")
        return bool(row and row["enabled"])

    # Runs

    async def create_run(self, config_id: str, options: commands.RunOptions, request: Request) -> Created:
        """A new run of the newest version of a config, bound to a build."""
        run_id, build_id = f"run_{ulid()}", f"build_{ulid()}"
        below = replace(request, traceparent=str(span_of(run_id, request.traceparent)))

        async def decide() -> tuple[tuple[Part, ...], str]:
            config = await self.config(config_id)
            manifest = await self._manifest(config)
            inputs = await self._inputs(options.document_ids, config.workspace_id)
            if manifest.needs_input and not inputs and not options.validate_only:
                raise NeedsInput("The config's command names an input: give `document_ids`.", config_id=config.id)
            attempts = options.max_attempts or manifest.max_attempts or self.settings.run_max_attempts
            asked = commands.CreateRun(
                run_id, config, options, inputs, request.requested_by, attempts, request.traceparent
            )
            if await self.safe_mode():
                return commands.refuse_run_in_safe_mode(asked), "refused"
            binding = await self._bind(config, manifest, build_id, below, force=options.force_rebuild)
            return commands.create_run(asked, binding), "created"

        appended, how = await self._create(decide, request)
        if appended.duplicate:
            run_id = await self._stream_at(appended.first_id)
            how = "refused" if (await self.run(run_id)).stop_reason == "safe_mode" else "created"
        if how == "refused":
            raise InSafeMode(commands.SAFE_MODE, run_id=run_id)
        return Created(run_id, how, appended.last_id)

    async def cancel_run(self, run_id: str, asked: commands.Cancel) -> None:
        """The run is asked to stop; AlreadyEnded where it has."""
        await self.decide(run_id, self.run, lambda run: commands.cancel_run(run, asked))

    async def _inputs(self, document_ids: Sequence[str], workspace: str) -> list[events.Input]:
        found = await self.database.rows("documents_by_id", ids=list(document_ids), workspace=workspace)
        rows = {row["id"]: row for row in found}
        for document_id in document_ids:
            if document_id not in rows:
                raise UnknownThing(f"There is no document {document_id} in this workspace.")
        return [
            events.Input(document_id=i, name=rows[i]["name"], size=rows[i]["size"], sha256=rows[i]["sha256"])
            for i in document_ids
        ]

    # Builds

    async def ensure_build(self, config_id: str, options: commands.BuildOptions, request: Request) -> Created:
        """A build of the newest version of a config: a usable one, the one in progress, or a new one."""
        build_id = f"build_{ulid()}"
        binding: commands.Binding | None = None

        async def decide() -> tuple[tuple[Part, ...], str]:
            nonlocal binding
            config = await self.config(config_id)
            manifest = await self._manifest(config)
            if await self.safe_mode():
                wanted = await self._wanted(config, manifest, build_id, request)
                return commands.refuse_build_in_safe_mode(config, wanted), "refused"
            binding = await self._bind(config, manifest, build_id, request, force=options.force)
            if binding.how == "joined":
                status = (await self.build(binding.build_id)).status
                commands.refuse_busy_build(binding, status, options)
            return binding.parts, binding.how

        appended, how = await self._create(decide, request)
        if binding is not None and not binding.parts:
            return Created(binding.build_id, binding.how, FOREVER)
        if appended.duplicate:
            build_id = await self._stream_at(appended.first_id)
            how = "refused" if (await self.build(build_id)).stop_reason == "safe_mode" else "created"
        if how == "refused":
            raise InSafeMode(commands.SAFE_MODE, build_id=build_id)
        return Created(build_id, how, appended.last_id)

    async def cancel_build(self, build_id: str, asked: commands.Cancel) -> None:
        """The build is asked to stop; AlreadyEnded where it has."""
        await self.decide(build_id, self.build, lambda build: commands.cancel_build(build, asked))

    async def _bind(
        self, config: configs.Config, manifest: Manifest, build_id: str, request: Request, *, force: bool
    ) -> commands.Binding:
        stream = await self.log.stream(config.id)  # before the builds: one that comes between moves the config
        rows = await self.database.rows("builds_of_config", config=config.id)
        known = [commands.KnownBuild(**row) for row in rows]
        wanted = await self._wanted(config, manifest, build_id, request)
        return commands.bind(config, stream.last_control_id if stream else NEW, known, wanted, force=force)

    async def _wanted(
        self, config: configs.Config, manifest: Manifest, build_id: str, request: Request
    ) -> commands.BuildWanted:
        engine = self.settings.engine_spec if manifest.engine is None else manifest.engine
        if engine is None:
            raise NoEngine(
                "Name one in the config's pyproject.toml ([tool.ade] engine) or in ADE_ENGINE_SPEC.",
                config_id=config.id,
            )
        print_ = await anyio.to_thread.run_sync(fingerprint, config.digest, engine, self.python)
        attempts = self.settings.build_max_attempts
        return commands.BuildWanted(
            build_id, print_, engine or None, request.requested_by, attempts, request.traceparent
        )

    async def _manifest(self, config: configs.Config) -> Manifest:
        folder = self.files.config(config.digest)
        try:
            return await anyio.to_thread.run_sync(Manifest.read, folder)
        except (BadPackage, OSError) as error:
            raise BadConfig(f"The package of this config cannot be read: {error}", config_id=config.id) from error

    # Configs, documents, the system

    async def register_config(self, workspace: str, name: str, digest: str, request: Request) -> Created:
        """The config by this name has this content now. ``how``: created, updated or unchanged."""
        for _ in range(TRIES):
            row = await self.database.row("config_named", workspace=workspace, name=name)
            config_id = row["id"] if row else _config_id(workspace, name)
            kept = await self._kept(request)
            if kept is not None:
                first = configs.fold(config_id, await self.log.control_events(config_id, upto=kept.last_id))
                return Created(config_id, "updated" if first.version > 1 else "created", kept.last_id)
            stream = await self.log.stream(config_id)
            config = configs.fold(config_id, await self.log.control_events(config_id))
            if config.digest == digest:
                return Created(config_id, "unchanged", FOREVER)
            registered = events.ConfigRegistered(
                workspace_id=workspace,
                name=name,
                version=config.version + 1,
                digest=digest,
                requested_by=request.requested_by,
            )
            expect = stream.last_control_id if stream else NEW
            part = Part(config_id, (registered.event(),), workspace=workspace, expect=expect)
            try:
                appended = await self._append((part,), request)
            except Conflict:
                continue
            return Created(config_id, "updated" if config.version else "created", appended.last_id)
        raise TooBusy("Others keep registering this config; try again.")

    async def store_document(self, workspace: str, document: events.DocumentStored, request: Request) -> Created:
        """The document is on record; its bytes lie in place already."""
        said = document.model_copy(update={"requested_by": request.requested_by})
        part = Part(f"workspace_{workspace}", (said.event(),), workspace=workspace)
        appended = await self._append((part,), request)
        if appended.duplicate:
            event = (await self.log.control_events(part.stream, upto=appended.first_id))[-1]
            return Created(event.data["document_id"], "created", appended.last_id)
        return Created(document.document_id, "created", appended.last_id)

    async def switch_safe_mode(self, changed: events.SafeModeChanged) -> None:
        """New work is refused, or taken again, from here on."""
        part = Part(SYSTEM, (changed.event(),), workspace="")
        await self._append((part,), Request())

    # The loop

    async def decide(
        self,
        stream: str,
        load: Callable[[str], Awaitable[State]],
        decision: Callable[[State], Sequence[NewEvent]],
        *,
        known: State | None = None,
        token: int | None = None,
        patience_s: float = PATIENCE_S,
    ) -> int | None:
        """Appends what the decision says about the newest state of one stream, under a lease where one is named.

        Answers the id of the last event that it appended; None where there was nothing to say. ``known`` is a state
        that the caller has at hand: where it is not the newest, the append finds out, and the newest is loaded.
        """
        for _ in range(TRIES):
            state = known or await load(stream)
            known = None
            made = decision(state)
            if not made:
                return None
            part = Part(stream, tuple(made), expect=state.control_id, token=token)
            try:
                appended = await self.appender.append(Append((part,)), patience_s=patience_s)
            except Conflict:
                continue
            return appended.last_id
        raise TooBusy("Others keep changing this; try again.")

    async def _create(
        self, decide: Callable[[], Awaitable[tuple[tuple[Part, ...], str]]], request: Request
    ) -> tuple[Appended, str]:
        for _ in range(TRIES):
            kept = await self._kept(request)
            if kept is not None:  # before the decision: what it rested on has moved since the first time
                return kept, "created"
            parts, how = await decide()
            if not parts:
                return Appended(0, 0), how
            try:
                return await self._append(parts, request), how
            except Conflict:
                continue
        raise TooBusy("Others keep changing this config; try again.")

    async def _kept(self, request: Request) -> Appended | None:
        """What this idempotency key has done already."""
        row = None if request.key is None else await self.database.row("append_key", key=request.key)
        if row is None:
            return None
        if row["digest"] != request.digest:
            raise KeyReuse(OTHER_REQUEST)
        return Appended(row["first_id"], row["last_id"], duplicate=True)

    async def _append(self, parts: tuple[Part, ...], request: Request) -> Appended:
        # A key even where the caller gave none: an answer that was lost is asked for again, not written again.
        key = request.key or f"own:{ulid()}"
        try:
            return await self.appender.append(Append(parts, key=key, digest=request.digest))
        except KeyReused as reused:
            raise KeyReuse(OTHER_REQUEST) from reused

    async def _stream_at(self, event_id: int) -> str:
        row = await self.database.row("stream_of_event", id=event_id)
        if row is None:
            raise UnknownThing(f"There is no event {event_id}.")
        return str(row["stream"])


def request_digest(path: str, body: Any) -> str:
    """What an idempotency key stands for."""
    return hashlib.sha256(path.encode() + b"\n" + orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _config_id(workspace: str, name: str) -> str:
    # Two first registrations of one name meet on one stream, and one of them finds that it exists.
    return "config_" + ulid_of(hashlib.sha256(f"{workspace}/{name}".encode()).digest()[:16])
