"""An upstream that speaks `/v1/chat/completions`: OpenAI, Azure, vLLM, Ollama, llama.cpp and the many like them.

Rules. Nothing is retried once a piece has been given. What the user did not set is not sent. What an upstream does not
understand (`stream_options`, `max_completion_tokens`) is left out from then on. The key stands in no text and no log.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx2
import msgspec

from perdure.errors import RunFailure
from perdure.ids import Clock, Ids, RandomIds
from perdure.models.base import Capacity, ModelPiece, ModelRequest, ToolsRefused
from perdure.models.chat_pieces import AnswerReader
from perdure.models.names import map_name, matches
from perdure.models.tokens import TokenCounter
from perdure.models.upstream_failures import (
    UpstreamAddress,
    UpstreamError,
    broke_off,
    read_error,
    refused,
    silent,
    unlisted,
    unreachable,
    unreadable,
)
from perdure.models.upstream_http import (
    ERROR_BYTES,
    back_off,
    checked_key,
    checked_url,
    client,
    endpoint,
    wait_after,
    without_secrets,
)
from perdure.settings import Settings, UpstreamSettings

LIST_SECONDS = 5.0
DRAIN_SECONDS = 0.25
"""How long a stream may stay open after its end. Closed in time, the connection is used again."""

_NO_TOOLS = re.compile(r"\btools?\b|\bfunction[ _-]?call", re.IGNORECASE)
"""With _NOT_UNDERSTOOD: the model can not call tools. Ollama says: `"gemma:2b" does not support tools`."""

_NOT_UNDERSTOOD = re.compile(
    r"un(known|supported|recognized|expected)|not (support(ed)?|permitted|allowed|recognized|enabled)|extra|no such"
    r"|invalid_param",
    re.IGNORECASE,
)


class ChatCompletionsModel:
    """A client of one upstream, with its own pool of connections. `jitter` gives numbers from 0 to 1.

    Raises OperatorError for a URL or key that can not be used.
    """

    def __init__(
        self,
        name: str,
        upstream: UpstreamSettings,
        settings: Settings,
        clock: Clock,
        *,
        ids: Ids | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._address = UpstreamAddress(name, without_secrets(upstream.url))
        self._base = checked_url(upstream.url, self._address)
        self._key = checked_key((upstream.key or "").strip(), self._address)
        self._settings = settings
        self._clock = clock
        self._ids = ids or RandomIds()
        self._jitter = jitter
        self._counter = TokenCounter()
        self._takes_stream_options = True
        self._toolless: set[str] = set()
        self._limit_name = "max_completion_tokens"
        self._client = client(settings, self._key)

    def capacity(self, model: str) -> Capacity:
        """Return the window that the settings give the model; upstreams do not say it in a common way."""
        can_call = model not in self._toolless and not matches(self._settings.toolless_models, model)
        return Capacity(
            counter=self._counter,
            context_tokens=map_name(self._settings.context_tokens, model),
            calls_tools=can_call,
            searches=can_call,
        )

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        """Answer piece by piece, as the upstream sends them. Raises RunFailure."""
        response = await self._open(request)
        answer = AnswerReader(self._address, request, self._ids, self._key)
        try:
            async with aclosing(response.aiter_bytes()) as parts:
                async for part in parts:
                    for piece in answer.feed(part):
                        yield piece
                    if answer.complete:
                        await _drain(parts)
                        break
        except httpx2.RequestError as error:
            if not answer.finished:
                raise self._lost(error) from None
        finally:
            await response.aclose()
        for piece in answer.end():
            yield piece

    async def list_models(self) -> list[str]:
        """Return the names that the upstream lists. Raises RunFailure."""
        try:
            async with asyncio.timeout(LIST_SECONDS):
                response = await self._client.get(endpoint(self._base, "/models"), timeout=LIST_SECONDS)
        except TimeoutError:
            raise silent(self._address, LIST_SECONDS) from None
        except httpx2.RequestError as error:
            raise self._lost(error) from None
        if not response.is_success:
            error_body = read_error(response.content[:ERROR_BYTES])
            raise unlisted(self._address, response.status_code, error_body, self._key)
        names = _listed(response.content)
        if names is None:
            raise unreadable(self._address, response.content, self._key, "a list of models")
        return names

    async def warm_up(self) -> None:
        """Do nothing: connections are made when they are needed."""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _open(self, request: ModelRequest) -> httpx2.Response:
        """Ask until there is an answer to read, or a failure that stays."""
        retries = 0
        while True:
            body = self._body(request)
            answer = await self._ask(body)
            if isinstance(answer, httpx2.Response):
                if answer.is_success:
                    return answer
                error = await self._said(answer)
                if self._learns(answer.status_code, error, body):
                    continue
                failure = refused(self._address, answer.status_code, error, request.model, self._key)
                if "tools" in body and _refuses_tools(answer.status_code, error):
                    self._toolless.add(request.model)
                    raise ToolsRefused(failure.message, code=failure.code)
                wait = self._wait(answer, error, retries)
            else:
                failure = self._lost(answer)
                wait = None if isinstance(answer, httpx2.ReadTimeout) else back_off(retries, self._jitter())
            if wait is None or retries >= self._settings.upstream_retries:
                raise failure
            await self._clock.sleep(wait)
            retries += 1

    async def _ask(self, body: dict[str, Any]) -> httpx2.Response | httpx2.RequestError:
        request = self._client.build_request(
            "POST",
            endpoint(self._base, "/chat/completions"),
            content=msgspec.json.encode(body),
            headers={"content-type": "application/json"},
        )
        try:
            return await self._client.send(request, stream=True)
        except httpx2.RequestError as error:
            return error

    def _body(self, request: ModelRequest) -> dict[str, Any]:
        fields = msgspec.structs.asdict(request)
        limit = fields.pop("max_completion_tokens")
        body = {name: value for name, value in fields.items() if value is not None}
        if not request.tools:  # upstreams refuse what is said about tools where there are none
            for name in ("tools", "tool_choice", "parallel_tool_calls"):
                body.pop(name, None)
        if limit is not None:
            body[self._limit_name] = limit
        body["stream"] = True
        if self._takes_stream_options:
            body["stream_options"] = {"include_usage": True}
        return body

    def _learns(self, status: int, error: UpstreamError, body: dict[str, Any]) -> bool:
        """Whether the refusal is about a parameter that can be left out, or called by its old name, from now on."""
        if status not in {400, 422}:
            return False
        text = f"{error.param} {error.code} {error.message}"
        if "stream_options" in body and "stream_options" in text:
            self._takes_stream_options = False
            return True
        if "max_completion_tokens" in body and "max_completion_tokens" in text and _NOT_UNDERSTOOD.search(text):
            self._limit_name = "max_tokens"
            return True
        return False

    async def _said(self, response: httpx2.Response) -> UpstreamError:
        """Read an error's body, but not more than ERROR_BYTES of it."""
        body = b""
        try:
            async with aclosing(response.aiter_bytes()) as parts:
                async for part in parts:
                    body += part
                    if len(body) >= ERROR_BYTES:
                        break
        except httpx2.RequestError:
            pass  # the status says enough
        finally:
            await response.aclose()
        if response.is_redirect:
            return UpstreamError(f"it points to {without_secrets(response.headers.get('location', 'nowhere'))}")
        return read_error(body[:ERROR_BYTES])

    def _wait(self, response: httpx2.Response, error: UpstreamError, retries: int) -> float | None:
        """Seconds until the next try; None when there should be none."""
        return wait_after(response, error, retries, now=self._clock.now(), jitter=self._jitter())

    def _lost(self, error: httpx2.RequestError) -> RunFailure:
        """Return the failure for a connection that could not be made or was lost."""
        if isinstance(error, httpx2.ReadTimeout):
            return silent(self._address, self._settings.upstream_silence_seconds)
        if isinstance(error, httpx2.ConnectTimeout):
            why = f"no connection within {self._settings.upstream_connect_seconds:g} seconds"
            return unreachable(self._address, why, self._key)
        if isinstance(error, httpx2.ConnectError):
            return unreachable(self._address, str(error), self._key)
        return broke_off(self._address, str(error), self._key)


async def _drain(parts: AsyncGenerator[bytes, None]) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in parts:
                pass
    except (TimeoutError, httpx2.RequestError):
        pass  # the connection is closed then, and another one opened next time


def _listed(body: bytes) -> list[str] | None:
    """Return the names in a model list: OpenAI's shape, or a bare array as some servers send it."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        return None
    return [row["id"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]


def _refuses_tools(status: int, error: UpstreamError) -> bool:
    """Say whether a refusal means that the model can not call tools, whatever they look like."""
    text = f"{error.param} {error.message}"
    return status in {400, 422, 501} and bool(_NO_TOOLS.search(text)) and bool(_NOT_UNDERSTOOD.search(text))
