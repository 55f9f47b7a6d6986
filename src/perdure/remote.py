"""A running server, as the command line speaks to it: over HTTP with a key, like every other client.

Rule: what the server refuses, and a server that is not there, is an OperatorError of one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx2

from perdure.errors import OperatorError

Json = dict[str, Any]

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 300.0
"""For one answer: an upload is answered when it is on disk, a search may load a store first."""
PAGE = 100


class Server:
    """One server. Safe to share among threads. `url` is its base URL, ending in /v1."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._client = httpx2.Client(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {key}"},
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self._client.close()

    def get(self, path: str, **query: Any) -> Json:
        """GET a path. Raises OperatorError."""
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: Json) -> Json:
        """POST a body. Raises OperatorError."""
        return self._ask("POST", path, json=body)

    def delete(self, path: str) -> Json:
        """DELETE a path. Raises OperatorError."""
        return self._ask("DELETE", path)

    def upload(self, path: Path) -> str:
        """Upload a file for assistants; return its id. Raises OperatorError."""
        try:
            with path.open("rb") as content:
                made = self._ask("POST", "/files", data={"purpose": "assistants"}, files={"file": (path.name, content)})
        except OSError as error:
            raise OperatorError(f"{path} can not be read: {error.strerror}") from None
        return str(made["id"])

    def list_all(self, path: str, **query: Any) -> Iterator[Json]:
        """Give all objects of a list, oldest first, page by page. Raises OperatorError."""
        after: Json = {}
        while True:
            page = self.get(path, limit=PAGE, order="asc", **query, **after)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = {"after": page["last_id"]}

    def _ask(self, method: str, path: str, **request: Any) -> Json:
        try:
            response = self._client.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise OperatorError(
                f"the server at {self._url} does not answer ({type(error).__name__}): start `perdure serve`, or set "
                "OPENAI_BASE_URL"
            ) from None
        if response.is_error:
            raise OperatorError(f"{self._url} refused {method} {path}: {_reason(response)}")
        try:
            answer: Json = response.json()
        except ValueError:
            raise OperatorError(f"what answers at {self._url} is no API: set OPENAI_BASE_URL") from None
        return answer


def _reason(response: httpx2.Response) -> str:
    """Return what the server said, or at least its status."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
