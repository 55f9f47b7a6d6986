"""The door: what happens to every request before and after its handler.

Outside, `Front` gives each answer its headers and turns failures into answers. Inside, `Endpoint` checks the key, the
beta header and the path's ids, reads the body within its limits and decodes it, or hands it on as a stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.api.call import BodyStream, Call, Context, Handler, answer
from perdure.api.failures import ServerFault, failure_response
from perdure.api.v1_beta import betas_of, from_v1, no_beta_header, to_v1
from perdure.errors import ApiError, BodyTooLarge, InvalidRequest, MethodNotAllowed, NotFound, RequestTimeout
from perdure.ids import PREFIXES, RandomIds, check_id, searchable
from perdure.wire.refusals import decode_body

log = logging.getLogger("perdure.api")

API_VERSION = b"2020-10-01"
V1, V2 = "assistants=v1", "assistants=v2"
BETA_PATHS = ("/assistants", "/threads")


_TOO_LATE = "too late"
_NO_QUERY = QueryParams("")


class ClientGone(Exception):
    """The client hung up in the middle of its request; nobody waits for an answer."""


class Front:
    """Gives every answer its headers, and every failure its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._ids = RandomIds()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        request_id = f"req_{self._ids.new_hex()}"
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                milliseconds = int((time.perf_counter() - started) * 1000)
                message["headers"] = [
                    *message["headers"],
                    (b"openai-version", API_VERSION),
                    (b"openai-processing-ms", b"%d" % milliseconds),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientGone:
            return
        except ApiError as failure:
            await _answer_failure(failure, scope, receive, send_with_headers, begun=begun)
        except Exception:
            log.exception("%s: %s %s", request_id, scope["method"], scope["path"])
            if begun:
                raise
            await failure_response(ServerFault(request_id), scope["path"])(scope, receive, send_with_headers)


async def _answer_failure(failure: ApiError, scope: Scope, receive: Receive, send: Send, *, begun: bool) -> None:
    if begun:  # an answer under way can not be taken back; streams send their own error event
        raise failure
    await failure_response(failure, scope["path"])(scope, receive, send)


async def unknown_path(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a path that the API does not have. Raises NotFound."""
    del receive, send
    raise NotFound(f"Invalid URL ({scope['method']} {scope['path']})")


class Way(msgspec.Struct, frozen=True):
    """What a method of a path does: who answers, and the body that is decoded for it, or handed on as it streams."""

    handler: Handler
    body: type | None = None
    streamed: bool = False


class Endpoint:
    """One path, and the ways of its methods."""

    def __init__(self, context: Context, methods: dict[str, Way], *, health: bool = False) -> None:
        self._context = context
        self._health = health
        self._methods: dict[str, tuple[Way, msgspec.json.Decoder[Any] | None]] = {
            method: (way, msgspec.json.Decoder(way.body) if way.body else None) for method, way in methods.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ApiError and ClientGone."""
        if self._health:
            await answer({"status": "ok"})(scope, receive, send)
            return
        found = self._methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if found is None:
            raise MethodNotAllowed(scope["method"], scope["path"], self._methods)
        way, decoder = found
        headers = headers_of(scope)
        context = self._context
        project_id = await context.keys.project_of(headers)
        old = _check_beta(scope, headers, required=context.settings.require_beta_header)
        ids = {
            name: searchable(check_id(name, value)) if name in PREFIXES else value
            for name, value in scope["path_params"].items()
        }
        if way.streamed:
            decoded: Any = BodyStream(_pieces(receive, context.settings.body_timeout_seconds))
        else:
            body = await read_body(receive, headers, context) if scope["method"] == "POST" else b""
            decoded = decode_body(decoder, from_v1(body) if old else body) if decoder else None
        call = Call(context, project_id, ids, headers, _query(scope), decoded)
        try:
            response = _as_v1(await way.handler(call), old=old)
        except RecursionError:
            raise InvalidRequest("The JSON body of your request is nested too deeply.") from None
        await response(scope, receive, send)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the headers by lower-case name; those given twice are joined by commas."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1"), value.decode("latin-1")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def _query(scope: Scope) -> QueryParams:
    return QueryParams(scope["query_string"]) if scope["query_string"] else _NO_QUERY


def _check_beta(scope: Scope, headers: Mapping[str, str], *, required: bool) -> bool:
    """Say whether the call is of the v1 era. Raises InvalidRequest."""
    if headers.get("openai-beta") == V2:
        return False
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    if not path.startswith(BETA_PATHS):
        return False
    betas = betas_of(headers)
    if required and not betas & {V1, V2}:
        raise no_beta_header()
    return V1 in betas and V2 not in betas


def _as_v1(response: Response, *, old: bool) -> Response:
    if not old or response.media_type != "application/json":
        return response
    kept = {name: value for name, value in response.headers.items() if name not in {"content-length", "content-type"}}
    return answer(to_v1(bytes(response.body)), kept)


async def read_body(receive: Receive, headers: Mapping[str, str], context: Context) -> bytes:
    """Read a body whole. Raises BodyTooLarge, RequestTimeout and ClientGone."""
    limit = context.settings.body_limit_bytes
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    message = await next_piece(receive, context.settings.body_timeout_seconds)
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        pieces, size = [body], len(body)
        while message.get("more_body"):
            message = await next_piece(receive, context.settings.body_timeout_seconds)
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise _too_large(limit)
        body = b"".join(pieces)
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _pieces(receive: Receive, seconds: float) -> AsyncGenerator[bytes]:
    """Give a body as it arrives, asked for and not faster. Raises RequestTimeout and ClientGone."""
    more = True
    while more:
        message = await next_piece(receive, seconds)
        more = message.get("more_body", False)
        yield message.get("body", b"")


async def next_piece(receive: Receive, seconds: float) -> Message:
    """Wait for the next piece of a body. Raises RequestTimeout and ClientGone."""
    # `asyncio.timeout` does the same at several times the cost, and this stands before every POST.
    reading = asyncio.current_task()
    assert reading is not None  # noqa: S101  # a server calls us in a task
    timer = asyncio.get_running_loop().call_later(seconds, reading.cancel, _TOO_LATE)
    try:
        message = await receive()
    except asyncio.CancelledError as stopped:
        if stopped.args != (_TOO_LATE,):
            raise
        reading.uncancel()
        raise RequestTimeout(f"The body of your request did not arrive within {seconds:g} seconds.") from None
    finally:
        timer.cancel()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body of your request is over {limit} bytes. The limit is the server's setting PERDURE_BODY_LIMIT_BYTES.",
        code="request_too_large",
    )
