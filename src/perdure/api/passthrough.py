"""Every path that is not Perdure's own: passed through to an upstream, or served by the built-in model.

Rules. Perdure's own parts of the API never leave this house. The key is checked before anything else. A JSON body is
read whole, because its `model` says where it goes; all else streams. A client that hangs up ends the exchange at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from perdure.api.call import Context
from perdure.api.chat import create_chat_completion, create_completion
from perdure.api.door import ClientGone, next_piece, read_body, unknown_path
from perdure.api.embeddings import create_embedding
from perdure.errors import ApiError, NotFound, RunFailure
from perdure.models.base import Model
from perdure.models.embeddings import EMBEDDER_NAME, Embedder
from perdure.models.forward import Exchange, Forward, ForwardFailure
from perdure.models.names import BUILTIN, map_name

log = logging.getLogger("perdure.api")

OWN_PARTS = {"assistants", "threads", "files", "uploads", "vector_stores"}
BUILT_IN = {"chat/completions": create_chat_completion, "completions": create_completion}
EMBEDDINGS = "embeddings"
WITH_BODY = {"POST", "PUT", "PATCH"}
OFF = {"", "none"}
NAMES_LOGGED = 1000


class BadGateway(ApiError):
    """502: the upstream can not be reached, or broke off."""

    status = 502
    type = "server_error"


class GatewayTimeout(ApiError):
    """504: the upstream is silent."""

    status = 504
    type = "server_error"


class Target(msgspec.Struct, frozen=True):
    """What a path asks for: `path` decoded and without its slash in front, `raw_path` as it came, with it.

    `deployment` is the model in Azure's paths (`/deployments/{model}/chat/completions`), which are shortened.
    """

    path: str
    raw_path: str
    query: bytes
    deployment: str | None = None


class Passthrough:
    """The application behind the route table. `forwards` are the upstreams in the order of asking."""

    def __init__(
        self,
        context: Context,
        forwards: Mapping[str, Forward],
        embedder: Embedder | None,
        *,
        patterns: str,
        model_map: Mapping[str, str],
    ) -> None:
        self._context = context
        self._forwards = forwards
        self._embedder = embedder
        self._patterns = [] if patterns.strip() in OFF else [one.strip().strip("/") for one in patterns.split(",")]
        self._model_map = model_map
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ApiError and ClientGone."""
        target = target_of(scope)
        if target is None:
            await unknown_path(scope, receive, send)
            return
        context = self._context
        headers = Headers(scope=scope)
        await context.keys.project_of(headers)
        body = await read_body(receive, headers, context) if _wants_whole(scope, headers, target) else None
        name = target.deployment or (None if body is None else _model_in(body))
        upstream, model, sent = await self._choose(name, target, scope)
        if upstream is None:
            served = self._serve(model, sent, body, target, scope)
            await _while_connected(receive, None, _answered(served, scope, receive, send))
            return
        if not any(fnmatchcase(target.path, pattern) for pattern in self._patterns):
            raise _nothing(scope, "it is not among the paths that the setting PERDURE_PASSTHROUGH lets through")
        content = _Upload(receive, context.settings.body_timeout_seconds) if body is None else None
        exchange = Exchange(
            scope["method"],
            target.raw_path,
            target.query,
            scope["headers"],
            _renamed(body or b"", name, sent) if content is None else await content.begin(),
        )
        await _while_connected(receive, content, _relay(self._forwards[upstream], exchange, content, send))

    async def _choose(self, name: str | None, target: Target, scope: Scope) -> tuple[str | None, Model | None, str]:
        """Return who answers: an upstream's name, or None and the built-in model; and the model's name to send."""
        wanted = name and (map_name(self._model_map, name) or name)
        if target.path == EMBEDDINGS and (
            not self._forwards or wanted in {EMBEDDER_NAME, f"{BUILTIN}/{EMBEDDER_NAME}"}
        ):
            self._say_once(name, wanted)
            return None, None, EMBEDDER_NAME
        if name is None:
            return next(iter(self._forwards), None), self._context.models.models.get(BUILTIN), ""
        try:
            model, sent = await self._context.models.resolve(name)
        except RunFailure as failure:
            raise _nothing(scope, failure.message) from None
        known = next((key for key, one in self._context.models.models.items() if one is model), BUILTIN)
        return (None if known == BUILTIN else known), model, sent

    def _say_once(self, asked: str | None, wanted: str | None) -> None:
        if asked and wanted != EMBEDDER_NAME and asked not in self._logged and len(self._logged) < NAMES_LOGGED:
            self._logged.add(asked)
            by = f"'{EMBEDDER_NAME}'" if self._embedder else "nobody, the built-in embedder is not installed"
            log.info("embedding model '%s' is not known here: answered by %s", asked, by)

    async def _serve(
        self, model: Model | None, name: str, body: bytes | None, target: Target, scope: Scope
    ) -> Response:
        """Let what is built in answer. Raises ApiError."""
        if scope["method"] == "POST" and body is not None:
            if target.path == EMBEDDINGS:
                return await create_embedding(self._embedder, body)
            if target.path in BUILT_IN and model is not None:
                name = name or next(iter(await model.list_models()), BUILTIN)
                return await BUILT_IN[target.path](self._context, model, name, body)
        served = ", ".join(f"POST /{path}" for path in (*BUILT_IN, EMBEDDINGS))
        if self._forwards:
            raise _nothing(scope, f"the built-in model serves only {served}; ask for the model of an upstream")
        raise _nothing(
            scope,
            f"without an upstream, Perdure serves {served} beside the Assistants API; set PERDURE_UPSTREAM_URL to an "
            "OpenAI-compatible server for the rest",
        )


def target_of(scope: Scope) -> Target | None:
    """Return what the path asks for; None for Perdure's own parts and for paths that climb."""
    root = scope.get("root_path", "")
    raw = scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    raw = raw.removeprefix(root) if raw.startswith(f"{root}/") else quote(scope["path"].removeprefix(root))
    segments = raw.strip("/").split("/")
    query: bytes = scope["query_string"]
    deployment = None
    if segments[0] == "deployments" and len(segments) > 2:  # noqa: PLR2004  # the word, the model, what it shall do
        deployment, segments = unquote(segments[1]), segments[2:]
        query = b"&".join(one for one in query.split(b"&") if not one.startswith(b"api-version="))
        raw = "/" + "/".join(segments)
    path = "/".join(unquote(one) for one in segments)
    parts = [part for part in path.replace("\\", "/").split("/") if part]
    if not parts or parts[0].lower() in OWN_PARTS or {".", ".."} & set(parts):
        return None
    return Target(path, raw, query, deployment)


def _wants_whole(scope: Scope, headers: Headers, target: Target) -> bool:
    """Whether the body is to be read for its model: JSON, or what should be JSON."""
    if scope["method"] not in WITH_BODY:
        return False
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json") or target.path in {*BUILT_IN, EMBEDDINGS}


def _model_in(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Named).model or None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # whoever answers will say what is wrong with it


class _Named(msgspec.Struct):
    model: str | None = None


def _renamed(body: bytes, name: str | None, sent: str) -> bytes:
    """Put the resolved name into a JSON body; all else in it keeps its bytes, and an unchanged name all of them."""
    if name is None:
        return body
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if "model" in fields and _model_in(body) == sent:
        return body
    return msgspec.json.encode({**fields, "model": sent})


class _Upload:
    """A request body on its way: whole if it came in one piece, else an iterator over its pieces."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self.ended = asyncio.Event()
        """Nobody reads the body any more: what the client still says is only that it hangs up."""

    async def begin(self) -> bytes | AsyncIterator[bytes]:
        """Read the first piece. Raises RequestTimeout and ClientGone."""
        message = await next_piece(self._receive, self._seconds)
        first: bytes = message.get("body", b"")
        if message.get("more_body"):
            return self._pieces(first)
        self.ended.set()
        return first

    async def _pieces(self, first: bytes) -> AsyncIterator[bytes]:
        yield first
        more = True
        while more:
            message = await next_piece(self._receive, self._seconds)
            more = message.get("more_body", False)
            yield message.get("body", b"")
        self.ended.set()


async def _relay(forward: Forward, exchange: Exchange, upload: _Upload | None, send: Send) -> None:
    """Send the request and pass on the answer as it arrives. Raises BadGateway and GatewayTimeout."""
    try:
        async with forward.open(exchange) as answer:
            if upload is not None:
                upload.ended.set()
            if answer.status in {401, 403}:
                address = forward.address
                log.warning("%s answered with %d: check %s", address.described, answer.status, address.key_setting)
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            async for part in answer.parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except ForwardFailure as failure:
        log.warning("%s %s: %s", exchange.method, exchange.path, failure.message)
        kind = GatewayTimeout if failure.status == 504 else BadGateway  # noqa: PLR2004
        raise kind(failure.message, code="upstream_error") from None


async def _answered(served: Coroutine[Any, Any, Response], scope: Scope, receive: Receive, send: Send) -> None:
    await (await served)(scope, receive, send)


async def _while_connected(receive: Receive, upload: _Upload | None, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and drop it when the client hangs up. Raises ClientGone, and what the work raises."""
    loop = asyncio.get_running_loop()
    working = loop.create_task(work)
    watching = loop.create_task(_gone(receive, upload))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        dropped = not working.done()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
    if dropped:
        raise ClientGone
    working.result()


async def _gone(receive: Receive, upload: _Upload | None) -> None:
    if upload is not None:
        await upload.ended.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


def _nothing(scope: Scope, why: str) -> NotFound:
    return NotFound(f"Invalid URL ({scope['method']} {scope['path']}): {why.rstrip('.')}.")
