"""Configs and documents: raw bodies, streamed to disk, on record once they are whole."""

import hashlib
import mimetypes
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
from pydantic import AfterValidator, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from eventstore.clock import ulid
from projections import events
from service.api import answers, lists
from service.api.deployment import Deployment
from service.api.query import Query, wrong
from service.api.request import deployment, idempotency, pieces, workspace_of
from service.api.snapshots import ConfigSnapshot, DocumentSnapshot, RegisteredConfig
from service.errors import TooLarge, WrongMediaType
from service.work.manifest import Manifest
from service.work.package import digest, unpack

CONFIG_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
ARCHIVES = {"application/gzip", "application/x-gzip", "application/zip", "application/octet-stream"}
UNSAID = {"", "application/octet-stream", "application/x-www-form-urlencoded"}
"""Content types that say nothing of a document; the last one is curl's own."""
FILE_NAME_MAX_BYTES = 200
CONFIGS = lists.Listing("config_page", "config", lists.Named, ConfigSnapshot)
DOCUMENTS = lists.Listing("document_page", "document", lists.Named, DocumentSnapshot)


@dataclass(frozen=True, slots=True)
class _Upload:
    path: Path
    size: int
    sha256: str


@asynccontextmanager
async def _received(request: Request, found: Deployment, most_bytes: int, what: str) -> AsyncIterator[_Upload]:
    """The body, whole on disk under a name that vanishes with the block unless it was moved away."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes:
        raise TooLarge(f"A {what} may have {most_bytes} bytes.", most_bytes=most_bytes)
    folder = await anyio.to_thread.run_sync(found.files.incoming)
    handle, name = await anyio.to_thread.run_sync(lambda: tempfile.mkstemp(dir=folder))
    os.close(handle)
    path, size, hashed = Path(name), 0, hashlib.sha256()
    try:
        async with await anyio.open_file(path, "wb") as opened:
            async for piece in pieces(request, most_bytes, what):
                size += len(piece)
                hashed.update(piece)
                await opened.write(piece)
        yield _Upload(path, size, hashed.hexdigest())
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink is quicker than a thread


def _config_name(name: str) -> str:
    if not re.fullmatch(CONFIG_NAME, name):
        raise wrong("may have letters, digits, `.`, `_` and `-`, and at most 100 of them")
    return name


def _file_name(name: str) -> str:
    if not _plain_file_name(name):
        raise wrong(f"must be a plain file name of at most {FILE_NAME_MAX_BYTES} bytes, without `/`")
    return name


class RegisterConfig(Query):
    """How the config is called."""

    name: (
        Annotated[str, AfterValidator(_config_name), WithJsonSchema({"type": "string", "pattern": CONFIG_NAME})] | None
    ) = Field(
        None,
        description="Letters, digits, `.`, `_` and `-`, at most 100. Without it, the name in the package's"
        " `pyproject.toml`.",
    )


class StoreDocument(Query):
    """How the document is called."""

    name: Annotated[str, AfterValidator(_file_name)] = Field(
        "document", description=f"A plain file name: no `/`, at most {FILE_NAME_MAX_BYTES} bytes."
    )


async def register_config(request: Request, query: RegisterConfig) -> Response:
    """Register a config package.

    The body is the package itself; its content decides whether it is a tar or a zip. A new name is 201. The next
    version of a name that is there is 200, and so is content that is there already, which changes nothing. A package
    may have 10,000 entries and 256 MiB unpacked, and `ADE_CONFIG_MAX_BYTES` packed.
    """
    found, workspace = deployment(request), workspace_of(request)
    media_type = _media_type(request)
    if media_type not in ARCHIVES:
        raise WrongMediaType("Send the package as application/gzip (tar) or application/zip.", media_type=media_type)
    async with _received(request, found, found.settings.config_max_bytes, "config package") as upload:
        manifest, content = await anyio.to_thread.run_sync(_take_in, found, upload.path)
    asked = idempotency(request, workspace, content if query.name is None else [query.name, content])
    created = await found.handler.register_config(workspace, query.name or manifest.name, content, asked)
    row = await CONFIGS.one(found.database, created.id)
    document = RegisteredConfig.of({**row, "outcome": created.how})
    status = 201 if created.how == "created" else 200
    return answers.json(document, status, {"Location": f"/api/v1/configs/{created.id}"})


def _take_in(found: Deployment, archive: Path) -> tuple[Manifest, str]:
    """Unpacks beside its place, reads what it says of itself, and moves it where its digest says."""
    folder = found.files.incoming() / f"package-{ulid()}"
    try:
        unpack(archive, folder)
        manifest, content = Manifest.read(folder), digest(folder)
        place = found.files.config(content)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_dir():
            folder.chmod(0o755)
            try:
                folder.rename(place)
            except OSError:
                if not place.is_dir():  # not even somebody else put it there meanwhile
                    raise
        return manifest, content
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def show_config(request: Request) -> Response:
    """Show a config at its newest version."""
    row = await CONFIGS.one(deployment(request).database, request.path_params["config"])
    return answers.json(ConfigSnapshot.of(row))


async def list_configs(request: Request, query: lists.Named) -> Response:
    """List the configs of a workspace."""
    return await CONFIGS.answer(request, query, workspace_id=workspace_of(request))


async def store_document(request: Request, query: StoreDocument) -> Response:
    """Keep an input file.

    The `Content-Type` becomes its media type; for `application/octet-stream`, what curl says of its own, or none, it is
    guessed from the name. `multipart/…` is refused. The limit is `ADE_DOCUMENT_MAX_BYTES`.
    """
    found, workspace, name = deployment(request), workspace_of(request), query.name
    media_type = _media_type(request)
    if media_type.startswith("multipart/"):
        raise WrongMediaType("Send the file itself as the body, not a form around it.", media_type=media_type)
    if media_type in UNSAID:
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    async with _received(request, found, found.settings.document_max_bytes, "document") as upload:
        place = found.files.document(upload.sha256)
        await anyio.to_thread.run_sync(_keep, upload.path, place)
    stored = events.DocumentStored(
        document_id=f"doc_{ulid()}", name=name, size=upload.size, sha256=upload.sha256, media_type=media_type
    )
    asked = idempotency(request, workspace, [name, upload.sha256])
    created = await found.handler.store_document(workspace, stored, asked)
    return answers.json(await _document(found, created.id), 201, {"Location": f"/api/v1/documents/{created.id}"})


def _keep(upload: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with upload.open("rb") as opened:
        os.fsync(opened.fileno())
    upload.replace(place)


async def show_document(request: Request) -> Response:
    """Show what is known of a document."""
    return answers.json(await _document(deployment(request), request.path_params["id"]))


async def list_documents(request: Request, query: lists.Named) -> Response:
    """List the documents of a workspace."""
    return await DOCUMENTS.answer(request, query, workspace_id=workspace_of(request))


async def document_content(request: Request) -> Response:
    """Download a document."""
    found = deployment(request)
    document = await _document(found, request.path_params["id"])
    return answers.download(request, found.files.document(document["sha256"]), document)


async def _document(found: Deployment, document_id: str) -> dict[str, Any]:
    return DocumentSnapshot.of(await DOCUMENTS.one(found.database, document_id))


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def _plain_file_name(name: str) -> bool:
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return False
    return (
        name not in {"", ".", ".."} and len(encoded) <= FILE_NAME_MAX_BYTES and name.isprintable() and "/" not in name
    )
