"""The small HTTP client that the command line is built on."""

from collections.abc import Iterator
from typing import Any, BinaryIO, Self

import httpx
import orjson

from service.client import CONNECT_S, Unreachable, check, path_of

ANSWER_S = 60.0
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Client:
    """The service at ``url``, asked with a key where one is given. ``steps`` are the parts of a path below ``/api/v1``.

    Raises ProblemError for what the service refuses, Unreachable where there is no answer.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            host = httpx.URL(self.url).host
        except httpx.InvalidURL as error:
            raise Unreachable(url, error) from error
        # A proxy for the world outside cannot reach this machine's own loopback.
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            timeout=httpx.Timeout(ANSWER_S, connect=CONNECT_S),
            headers={} if key is None else {"X-API-Key": key},
            trust_env=host not in LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, *steps: str, **params: Any) -> Any:
        """The JSON document there. Parameters that are None are left out."""
        return self._ask("GET", steps, params)

    def post(self, *steps: str, body: Any = None) -> Any:
        """The answer to a JSON body."""
        return self._ask("POST", steps, {}, content=orjson.dumps(body or {}), media_type="application/json")

    def upload(self, *steps: str, content: bytes | BinaryIO, media_type: str, **params: Any) -> Any:
        """The answer to a raw body; a file is sent piece by piece."""
        return self._ask("POST", steps, params, content=content, media_type=media_type)

    def listed(self, *steps: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Every entry of a list, newest first, however many pages it has."""
        page: str | None = ""
        while page is not None:
            found = self.get(*steps, **params, page=page or None)
            yield from found["data"]
            page = found["next_page"]

    def _ask(
        self, method: str, steps: tuple[str, ...], params: dict[str, Any], *, content: Any = None, media_type: str = ""
    ) -> Any:
        given = {name: value for name, value in params.items() if value is not None}
        headers = {"Content-Type": media_type} if media_type else {}
        try:
            response = self.http.request(method, path_of(steps), params=given, content=content, headers=headers)
        except httpx.TransportError as error:
            raise Unreachable(self.url, error) from error
        check(response)
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError as error:
            raise Unreachable(self.url, "what answers there is not this service") from error
