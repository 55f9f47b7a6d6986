"""Who is calling: keys from the headers, and the project that each opens.

A key may come as a Bearer token, as the password of Basic auth (the hosted docs showed `curl -u :KEY`), or in Azure's
`api-key` header. On loopback, as long as no key was ever made, any key is accepted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from perdure.api.call import no_key
from perdure.errors import Unauthenticated
from perdure.store.db import Database, Operation
from perdure.store.keys import DEFAULT_PROJECT, find_door, hash_key

SHOWN_START, SHOWN_END, MOST_STARS = 8, 4, 24


async def project_of(headers: Mapping[str, str], database: Database, *, open_without_key: bool) -> str:
    """Return the id of the project that the call's key opens. Raises Unauthenticated."""
    key = _key_of(headers)
    if key is None:
        raise no_key()
    project_id = await database.read(_find_project, hash_key(key), open_without_key)
    if project_id is None:
        raise Unauthenticated(
            f"Incorrect API key provided: {redacted(key)}. You can find your API key at "
            "https://platform.openai.com/account/api-keys.",
            code="invalid_api_key",
        )
    return project_id


def _find_project(key_hash: str, open_without_key: bool) -> Operation[str | None]:
    found = yield from find_door(key_hash)
    if found.project_id is None and open_without_key and not found.any_key_made:
        return DEFAULT_PROJECT
    return found.project_id


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
