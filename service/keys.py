"""API keys: how one is made and recognised, and what its bearer may do. No database and no HTTP in here.

A key is ``ade_<id>_<secret>``: the id finds it, the secret proves it. The secret is 256 random bits, of which the plain
SHA-256 is kept. A slow hash guards passwords, which people choose and others guess; nobody guesses this one, at any
speed, and every request would pay for the slowness. A session is a key that a browser holds in a cookie.
"""

import hashlib
import hmac
import math
import re
from dataclasses import dataclass, field
from urllib.parse import urlencode

from eventstore.clock import token_hex, ulid
from service.roles import Role

EVERYWHERE = "*"
"""Stands for all workspaces, also for those that come to be later."""
SIGNED_S = 24 * 3600
"""How long a signed address is good."""

_KEY = re.compile(r"ade_([0-9A-HJKMNP-TV-Z]{26})_([0-9a-f]{64})\Z")
_ID = re.compile(r"key_[0-9A-HJKMNP-TV-Z]{26}\Z")
_RANK = {role: rank for rank, role in enumerate(Role)}


@dataclass(slots=True)
class Streams:
    """How many more streams may be open in this process, for all who come with the same key."""

    left: float = math.inf


@dataclass(slots=True, eq=False)
class Caller:
    """Who asks: ``name`` is what ``requested_by`` will say, ``workspaces`` is None for all of them.

    One object for everybody who comes with the same key, so that whoever holds it (an open stream) sees it end.
    """

    name: str
    role: Role
    workspaces: frozenset[str] | None
    streams: Streams = field(default_factory=Streams)
    over: bool = field(default=False, init=False)
    """Whether the key was revoked or has expired."""

    def holds(self, role: Role) -> bool:
        """Whether this role is enough for what asks for that one."""
        return _RANK[self.role] >= _RANK[role]

    def sees(self, workspace: str) -> bool:
        return self.workspaces is None or workspace in self.workspaces


@dataclass(frozen=True, slots=True)
class Key:
    """What its bearer sends: of a key or of a session."""

    id: str
    secret: str

    @classmethod
    def new(cls) -> "Key":
        return cls(f"key_{ulid()}", token_hex(32))

    @classmethod
    def parse(cls, text: str) -> "Key | None":
        """The key that a text is, whether or not there is such a key."""
        found = _KEY.match(text)
        return None if found is None else cls(f"key_{found[1]}", found[2])

    @property
    def text(self) -> str:
        """As it is shown once, and sent with every request."""
        return f"ade_{self.id.removeprefix('key_')}_{self.secret}"

    @property
    def sha256(self) -> bytes:
        """What is kept of it."""
        return hashlib.sha256(self.secret.encode()).digest()

    def proves(self, sha256: bytes) -> bool:
        """Whether it is the key of which this was kept; takes as long whether or not it is."""
        return hmac.compare_digest(self.sha256, sha256)


@dataclass(frozen=True, slots=True)
class SignedPath:
    """The right to read one path until a moment (Unix seconds), given by the bearer of a key, and dead with that key.

    It is signed with what is kept of the key, so every node agrees and nothing more is to be kept. Who reads that in
    the database, and could sign by himself, reads there all that such an address leads to.
    """

    path: str
    key_id: str
    until: int
    signature: str = ""

    @classmethod
    def parse(cls, path: str, key_id: str, until: str, signature: str) -> "SignedPath | None":
        """What an address says, as it was signed or not; None where it cannot have been."""
        if not (_ID.match(key_id) and re.fullmatch("[0-9]{1,11}", until)):
            return None
        return cls(path, key_id, int(until), signature)

    def sign(self, sha256: bytes) -> "SignedPath":
        return SignedPath(self.path, self.key_id, self.until, self._signature(sha256))

    def proves(self, sha256: bytes) -> bool:
        return hmac.compare_digest(self.signature.encode(), self._signature(sha256).encode())

    @property
    def url(self) -> str:
        return f"{self.path}?{urlencode({'key': self.key_id, 'until': self.until, 'signature': self.signature})}"

    def _signature(self, sha256: bytes) -> str:
        return hmac.digest(sha256, f"GET {self.path}\n{self.key_id}\n{self.until}".encode(), "sha256").hex()


ANYBODY = Caller("anonymous", Role.ADMIN, None)
"""Who asks where nobody needs a key."""
