"""Upstreams as they are: any request goes out and its answer comes back, byte for byte.

Rules. Nothing is retried, decoded or held whole. What belongs to one connection or one account stays behind: hop-by-hop
headers, keys, cookies, organisation and project. Leaving the block of an exchange closes its connection at once. Every
failure is a `ForwardFailure`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import httpx2
import msgspec

from perdure.errors import RunFailure
from perdure.models.upstream_failures import UpstreamAddress, broke_off, silent, unreachable
from perdure.settings import Settings, UpstreamSettings

SILENCE_SECONDS = 600.0
"""Shortest patience with a silent upstream: the official client's own. A picture or a long thought takes minutes, and
the program that asked can hang up whenever it likes."""

HeaderList = list[tuple[bytes, bytes]]

CONNECTION_HEADERS = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
KEPT_FROM_UPSTREAM = CONNECTION_HEADERS | {
    b"host",
    b"expect",
    b"authorization",
    b"api-key",
    b"x-api-key",
    b"cookie",
    b"openai-organization",
    b"openai-project",
}
KEPT_FROM_CLIENT = CONNECTION_HEADERS | {
    b"set-cookie",
    b"date",
    b"server",
    b"openai-organization",
    b"openai-project",
    b"openai-version",  # the door sets these two
    b"openai-processing-ms",
}


class ForwardFailure(RunFailure):
    """No answer from the upstream, or not all of it. `status` is what HTTP says of a gateway then."""

    def __init__(self, failure: RunFailure, status: Literal[502, 504]) -> None:
        super().__init__(failure.message, code=failure.code)
        self.status: Literal[502, 504] = status


class Exchange(msgspec.Struct, frozen=True):
    """What goes out. `path` is percent-encoded and begins with a slash; `content` is whole or comes piece by piece."""

    method: str
    path: str
    query: bytes
    headers: HeaderList
    content: bytes | AsyncIterator[bytes]


class Answer(msgspec.Struct, frozen=True):
    """What came back: its status, its headers as a client may see them, its body as it arrives."""

    status: int
    headers: HeaderList
    parts: AsyncGenerator[bytes, None]


class Forward:
    """One upstream, with its own pool of connections. URL and key were checked where the model was made."""

    def __init__(self, name: str, upstream: UpstreamSettings, settings: Settings) -> None:
        self._base = httpx2.URL(upstream.url)
        shown = self._base.copy_with(username=None, password=None, query=None)
        self.address = UpstreamAddress(name, str(shown))
        self._key = (upstream.key or "").strip() or None
        self._connect_seconds = settings.upstream_connect_seconds
        self._silence_seconds = max(settings.upstream_silence_seconds, SILENCE_SECONDS)
        most = settings.upstream_connections
        self._client = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=30.0)
        )

    @asynccontextmanager
    async def open(self, exchange: Exchange) -> AsyncIterator[Answer]:
        """Send a request; the answer can be read within the block. Raises ForwardFailure."""
        try:
            response = await self._client.send(self._request(exchange), stream=True)
        except httpx2.RequestError as error:
            raise self._lost(error) from None
        try:
            async with aclosing(self._parts(response)) as parts:
                yield Answer(response.status_code, self._shown(response), parts)
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _request(self, exchange: Exchange) -> httpx2.Request:
        """Build the request by hand: the client would add headers of its own."""
        headers = passed_on(exchange.headers, KEPT_FROM_UPSTREAM)
        if isinstance(exchange.content, bytes):
            headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        if self._key is not None:
            headers.append((b"authorization", b"Bearer " + self._key.encode()))
        silence = self._silence_seconds
        timeout = httpx2.Timeout(connect=self._connect_seconds, read=silence, write=silence, pool=None)
        return httpx2.Request(
            exchange.method,
            self._url(exchange.path, exchange.query),
            headers=headers,
            content=exchange.content or None,
            extensions={"timeout": timeout.as_dict()},
        )

    def _url(self, path: str, query: bytes) -> httpx2.URL:
        """Put the path behind the base URL's; the base URL's own query (`?api-version=...`) stands first."""
        base = self._base.raw_path.partition(b"?")[0].rstrip(b"/")
        queries = b"&".join(one for one in (self._base.query, query) if one)
        return self._base.copy_with(raw_path=base + path.encode() + (b"?" + queries if queries else b""))

    async def _parts(self, response: httpx2.Response) -> AsyncGenerator[bytes, None]:
        raw = response.aiter_raw()
        hides = self._key is not None and response.is_error and "content-encoding" not in response.headers
        try:
            async with aclosing(without(self._key.encode(), raw) if self._key and hides else raw) as parts:
                async for part in parts:
                    yield part
        except httpx2.RequestError as error:
            raise self._lost(error) from None

    def _shown(self, response: httpx2.Response) -> HeaderList:
        key = self._key.encode() if self._key else None
        kept = passed_on(response.headers.raw, KEPT_FROM_CLIENT)
        return [
            (b"x-upstream-request-id" if name.lower() == b"x-request-id" else name, value)
            for name, value in kept
            if key is None or key not in value
        ]

    def _lost(self, error: httpx2.RequestError) -> ForwardFailure:
        if isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
            return ForwardFailure(silent(self.address, self._silence_seconds), 504)
        if isinstance(error, httpx2.ConnectTimeout):
            why = f"no connection within {self._connect_seconds:g} seconds"
            return ForwardFailure(unreachable(self.address, why, self._key), 504)
        if isinstance(error, httpx2.ConnectError):
            return ForwardFailure(unreachable(self.address, str(error), self._key), 502)
        return ForwardFailure(broke_off(self.address, str(error), self._key), 502)


def passed_on(headers: HeaderList, kept: set[bytes]) -> HeaderList:
    """Return the headers without those that are kept back, and without those that `connection` names."""
    named = {
        one.strip().lower() for name, value in headers if name.lower() == b"connection" for one in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in kept | named]


async def without(key: bytes, parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """Put as many stars in the key's place. Only the end of a part that may be its beginning has to wait."""
    held = b""
    async with aclosing(parts):
        async for part in parts:
            text = (held + part).replace(key, b"*" * len(key))
            length = next((n for n in range(min(len(key) - 1, len(text)), 0, -1) if text.endswith(key[:n])), 0)
            held = text[len(text) - length :]
            if shown := text[: len(text) - length]:
                yield shown
    if held:
        yield held


def build_forwards(settings: Settings) -> dict[str, Forward]:
    """Return all upstreams by name, in the order of asking."""
    return {name: Forward(name, upstream, settings) for name, upstream in settings.named_upstreams.items()}
