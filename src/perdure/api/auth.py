"""Who is calling: keys from the headers, and the project that each opens.

A key may come as a Bearer token, as the password of Basic auth (the hosted docs showed `curl -u :KEY`), or in Azure's
`api-key` header. On loopback, as long as no key was ever made, any key is accepted.

Rule: what a key opened is remembered only as long as no key was made or revoked since (`store/key_stamp.py`); on
Postgres, where another machine may do that, for a second at the longest.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Mapping

from perdure.errors import Unauthenticated
from perdure.store.db import Database
from perdure.store.keys import DEFAULT_PROJECT, find_door, hash_key

SHOWN_START, SHOWN_END, MOST_STARS = 8, 4, 24
MOST_REMEMBERED = 10_000


def each_second() -> bytes:
    """Return a stamp that changes once a second: for stores whose keys others may change unseen."""
    return b"%d" % int(time.monotonic())


class Keys:
    """The door's memory. `stamp` returns something that differs once keys have changed."""

    def __init__(self, database: Database, stamp: Callable[[], bytes], *, open_without_key: bool) -> None:
        self._database = database
        self._stamp = stamp
        self._open_without_key = open_without_key
        self._seen = b""
        self._projects: dict[str, str] = {}

    async def project_of(self, headers: Mapping[str, str]) -> str:
        """Return the id of the project that the call's key opens. Raises Unauthenticated."""
        credentials = headers.get("api-key") or headers.get("authorization") or ""
        now = self._stamp()
        if now != self._seen or len(self._projects) > MOST_REMEMBERED:
            self._projects.clear()
            self._seen = now
        known = self._projects.get(credentials)
        if known is not None:
            return known
        project_id = await self._look_up(headers)
        if self._seen == now:
            self._projects[credentials] = project_id
        return project_id

    async def _look_up(self, headers: Mapping[str, str]) -> str:
        key = _key_of(headers)
        if key is None:
            raise no_key()
        door = await self._database.read(find_door, hash_key(key))
        if door.project_id is not None:
            return door.project_id
        if self._open_without_key and not door.any_key_made:
            return DEFAULT_PROJECT
        raise Unauthenticated(
            f"Incorrect API key provided: {redacted(key)}. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
            code="invalid_api_key",
        )


def no_key() -> Unauthenticated:
    """Return the refusal of a call without a key; the text is recorded."""
    return Unauthenticated(
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the "
        "API from your browser and are prompted for a username and password. You can obtain an API key from "
        "https://platform.openai.com/account/api-keys."
    )


def _key_of(headers: Mapping[str, str]) -> str | None:
    azure = headers.get("api-key")
    if azure:
        return azure
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "bearer":
        return rest or None
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(rest, validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def redacted(key: str) -> str:
    """Return a key as it may be shown: the first eight and last four letters, stars between."""
    hidden = len(key) - SHOWN_START - SHOWN_END
    if hidden <= 0:
        return "*" * min(len(key), MOST_STARS)
    return f"{key[:SHOWN_START]}{'*' * min(hidden, MOST_STARS)}{key[-SHOWN_END:]}"
