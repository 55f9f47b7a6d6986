"""What all clients of an upstream do alike over HTTP: checking its address and key, paths, waits between tries.

Rules. A key or URL that can not be used is an OperatorError at the start, not a failure later. No secret of a URL
stands in a text.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

import httpx2

from perdure.errors import OperatorError
from perdure.models.upstream_failures import UpstreamAddress, UpstreamError
from perdure.settings import Settings

ERROR_BYTES = 4096
"""How much of an error's body is read."""
RETRY_AFTER_SECONDS = 30.0
"""Longest wait that an upstream can ask for. One that asks for more is not asked again."""
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 8.0


def checked_key(key: str, address: UpstreamAddress) -> str | None:
    """Return the key, None for an empty one. Refuse what a header can not carry."""
    if not (key.isascii() and key.isprintable()):
        raise OperatorError(f"{address.key_setting} holds characters that no HTTP header can carry; copy the key again")
    return key or None


def checked_url(url: str, address: UpstreamAddress) -> str:
    """Return the URL. Refuse what the HTTP client can not parse."""
    try:
        httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise OperatorError(f"{address.url_setting} is not a URL: {error}") from None
    return url


def client(settings: Settings, key: str | None) -> httpx2.AsyncClient:
    """Return a pool of connections for one upstream, its key in every request."""
    headers = {"user-agent": "perdure", "accept-encoding": "identity"}  # compressed streams arrive in clumps
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    silence = settings.upstream_silence_seconds
    most = settings.upstream_connections
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(connect=settings.upstream_connect_seconds, read=silence, write=silence, pool=None),
        limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=30.0),
    )


def endpoint(base: str, path: str) -> str:
    """Return the base URL with the path added in front of its query, if it has one (`?api-version=...`)."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + path))


def without_secrets(url: str) -> str:
    """Return the URL without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def retry_after(headers: httpx2.Headers, now: float) -> float | None:
    """Read `retry-after-ms` and `Retry-After`, seconds or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, aware.timestamp() - now)


def back_off(retries: int, jitter: float) -> float:
    """Return the seconds to wait after so many retries; `jitter` from 0 to 1 takes up to a quarter off."""
    seconds: float = min(FIRST_RETRY_SECONDS * 2**retries, LAST_RETRY_SECONDS)
    return seconds * (1 - 0.25 * jitter)


def wait_after(
    response: httpx2.Response, error: UpstreamError, retries: int, *, now: float, jitter: float
) -> float | None:
    """Return the seconds until the next try after an error; None when there should be none."""
    limited = response.status_code == httpx2.codes.TOO_MANY_REQUESTS
    if not (limited or response.is_server_error) or error.code == "insufficient_quota":
        return None
    asked = retry_after(response.headers, now)
    if asked is None:
        return back_off(retries, jitter)
    return asked if asked <= RETRY_AFTER_SECONDS else None
