"""The one door to the wall clock and to randomness.

What is stored uses the database's clock; durations use ``time.monotonic``. This module makes what neither can give:
new identities, secrets and jitter.
"""

import random
import secrets
import time
from datetime import UTC, datetime

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def now() -> float:
    """Seconds since the epoch, for people. The log keeps it only as `emitted_at`, beside a time of its own."""
    return time.time()


def rfc3339(seconds: float, timespec: str = "microseconds") -> str:
    """Unix seconds as the lines of the log write a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def ulid() -> str:
    """A new ULID: 48 bits of milliseconds, then 80 random bits, as 26 characters that sort by time."""
    return ulid_of(((time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)).to_bytes(16, "big"))


def ulid_of(value: bytes) -> str:
    """16 bytes, written as a ULID is written."""
    number = int.from_bytes(value, "big")
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))


def token_hex(size: int = 16) -> str:
    """``size`` random bytes, as hexadecimal digits."""
    return secrets.token_hex(size)


def jitter(low: float, high: float) -> float:
    """A number between two bounds, to keep many clients from doing the same thing at once."""
    return random.uniform(low, high)  # noqa: S311 - spreads load, guards nothing
