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
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response

from eventstore.clock import ulid
from eventstore.event import WORKSPACE
from projections import events
from service.api import answers, lists, snapshots
from service.api.deployment import Deployment
from service.api.request import FOREVER, deployment, idempotency
from service.errors import Malformed, TooLarge, UnknownThing, WrongMediaType
from service.work.manifest import Manifest
from service.work.package import digest, unpack

CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
ARCHIVES = {"application/gzip", "application/x-gzip", "application/zip", "application/octet-stream"}
FILE_NAME_MAX_BYTES = 200


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
            async for piece in request.stream():
                size += len(piece)
                if size > most_bytes:
                    raise TooLarge(f"A {what} may have {most_bytes} bytes.", most_bytes=most_bytes)
                hashed.update(piece)
                await opened.write(piece)
        yield _Upload(path, size, hashed.hexdigest())
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink is quicker than a thread


async def register_config(request: Request) -> Response:
    """Takes in a config package: 201 for a new name, 200 for a new version or for what is there already."""
    found, workspace = deployment(request), _workspace(request)
    name = request.query_params.get("name")
    if name is not None and not CONFIG_NAME.match(name):
        raise Malformed("`name` has letters, digits, `.`, `_` and `-`, and at most 100 of them.", parameter="name")
    media_type = _media_type(request)
    if media_type not in ARCHIVES:
        raise WrongMediaType("Send the package as application/gzip (tar) or application/zip.", media_type=media_type)
    async with _received(request, found, found.settings.config_max_bytes, "config package") as upload:
        manifest, content = await anyio.to_thread.run_sync(_take_in, found, upload.path)
    asked = idempotency(request, workspace, content)
    created = await found.handler.register_config(workspace, name or manifest.name, content, asked)
    row = await found.database.row("config_page", id=created.id, workspace_id=None, before=FOREVER, limit=1)
    document = {**snapshots.config(row or {}), "outcome": created.how}
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
    """A config at its newest version."""
    found, config_id = deployment(request), request.path_params["config"]
    row = await found.database.row("config_page", id=config_id, workspace_id=None, before=FOREVER, limit=1)
    if row is None:
        raise UnknownThing(f"There is no config {config_id}.")
    return answers.json(snapshots.config(row))


async def list_configs(request: Request) -> Response:
    """The configs of a workspace, newest first."""
    return await lists.answer(request, "config_page", snapshots.config, id=None, workspace_id=_workspace(request))


async def store_document(request: Request) -> Response:
    """Takes in an input file."""
    found, workspace = deployment(request), _workspace(request)
    name = request.query_params.get("name", "document")
    if not _plain_file_name(name):
        raise Malformed(
            f"`name` must be a plain file name of at most {FILE_NAME_MAX_BYTES} bytes, without `/`.", parameter="name"
        )
    media_type = _media_type(request)
    if media_type in {"", "application/octet-stream"}:
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
    """What is known of a document."""
    return answers.json(await _document(deployment(request), request.path_params["id"]))


async def list_documents(request: Request) -> Response:
    """The documents of a workspace, newest first."""
    return await lists.answer(request, "document_page", snapshots.document, id=None, workspace_id=_workspace(request))


async def document_content(request: Request) -> Response:
    """The bytes of a document."""
    found = deployment(request)
    document = await _document(found, request.path_params["id"])
    return answers.download(request, found.files.document(document["sha256"]), document)


async def _document(found: Deployment, document_id: str) -> dict[str, Any]:
    row = await found.database.row("document_page", id=document_id, workspace_id=None, before=FOREVER, limit=1)
    if row is None:
        raise UnknownThing(f"There is no document {document_id}.")
    return snapshots.document(row)


def _workspace(request: Request) -> str:
    workspace: str = request.path_params["ws"]
    if not WORKSPACE.match(workspace):
        raise Malformed("A workspace has lower-case letters, digits and `-`: at most 63.", parameter="workspace")
    return workspace


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
