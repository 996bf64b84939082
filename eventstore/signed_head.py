"""A head of the log that somebody keeps elsewhere: from then on nobody can cut the log or make another chain unseen."""

import base64
import binascii
from pathlib import Path
from typing import Annotated

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field

from eventstore.errors import CallerMistake
from eventstore.seals import Place


class BadKey(CallerMistake):
    """This is no Ed25519 key as PEM, without a password."""


class Head(BaseModel):
    """How the chain of a log stood after the event ``id``; signed, where it has a ``signature``."""

    model_config = ConfigDict(frozen=True)

    log_id: Annotated[str, Field(pattern=r"^log_[0-9A-Za-z]+$")]
    id: Annotated[int, Field(ge=0)]
    chain_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    signed_at: str | None = None
    """RFC 3339."""
    public_key: str | None = None
    """PEM."""
    signature: str | None = None
    """Base64."""

    @property
    def place(self) -> Place:
        return Place(self.id, bytes.fromhex(self.chain_hash))

    @property
    def signed(self) -> bytes:
        """The bytes that the signature is over."""
        return "\n".join(
            ["ade log head v1", self.log_id, str(self.id), self.chain_hash, f"{self.signed_at}\n"]
        ).encode()

    def sign(self, key: Path, at: str) -> "Head":
        """The same head, signed with the private key in a file. Raises BadKey."""
        private = _private_key(key)
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        dated = self.model_copy(update={"signed_at": at, "public_key": pem})
        return dated.model_copy(update={"signature": base64.b64encode(private.sign(dated.signed)).decode()})

    def complaint(self, public_key: Path | None = None) -> str | None:
        """What is wrong with the signature; None where nothing is. Raises BadKey.

        Without a key the one in the head itself is taken, and proves only that nothing was changed by accident: who
        makes up a head makes up a key.
        """
        if self.signature is None:
            return None if public_key is None else "The head is not signed."
        own = (self.public_key or "").encode()
        try:
            key = _public_key(own if public_key is None else public_key.read_bytes())
        except OSError as error:
            raise BadKey(file=str(public_key), reason=error.strerror) from error
        try:
            key.verify(base64.b64decode(self.signature, validate=True), self.signed)
        except (InvalidSignature, binascii.Error):
            return "The signature is not of this head, or not by this key."
        return None


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadKey(file=str(path), reason=str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BadKey(file=str(path))
    return key


def _public_key(pem: bytes) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(reason=str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        raise BadKey
    return key
