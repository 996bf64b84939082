"""How many requests in how much time: a bucket that fills at a steady rate, from which each request takes one token."""

import time


class TokenBucket:
    """``per_second`` tokens come in, up to ``most``. Not a single timer: what came in is reckoned when one is taken."""

    __slots__ = ("_at", "_most", "_per_second", "_tokens")

    def __init__(self, per_second: float, most: int) -> None:
        self._per_second, self._most = per_second, most
        self._tokens = float(most)
        self._at = time.monotonic()

    def take(self) -> float:
        """Takes one token: 0; or none, and answers how many seconds until there is one."""
        now = time.monotonic()
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._per_second
        self._tokens -= 1
        return 0
