"""A call: one request after the door, with its project, its checked path ids and its body, decoded or as a stream."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, cast, get_args

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from perdure.api.auth import Keys
from perdure.blobs import Blobs
from perdure.engine.dispatch import Dispatch
from perdure.engine.live import Feeds
from perdure.errors import InvalidRequest
from perdure.ids import Clock, Ids, searchable
from perdure.models.embedders import EmbedderRegistry
from perdure.models.names import ModelRegistry
from perdure.store.db import Database
from perdure.store.run_requests import Place
from perdure.tools.code_interpreter import CodeBoxes
from perdure.tools.vector_search import VectorSearch
from perdure.wire.kinds import WhenBusy
from perdure.wire.page import PageQuery
from perdure.wire.refusals import number_out_of_range, unsupported_value

B = TypeVar("B")
_encode = msgspec.json.Encoder().encode
MOST_PER_PAGE = 100
BUSY_HEADER = "X-Perdure-When-Busy"


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API must know of the settings."""

    run_expiry_seconds: int
    poll_after_ms: int
    poll_hold_seconds: float
    keepalive_seconds: float
    body_limit_bytes: int
    body_timeout_seconds: float
    require_beta_header: bool
    file_limit_bytes: int
    upload_limit_bytes: int
    refuse_downloads: bool
    vector_stores_per_assistant: int | None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """The parts that handlers work with."""

    database: Database
    blobs: Blobs
    feeds: Feeds
    dispatch: Dispatch
    boxes: CodeBoxes
    models: ModelRegistry
    embedders: EmbedderRegistry
    search: VectorSearch
    clock: Clock
    ids: Ids
    settings: ApiSettings
    keys: Keys


class BodyStream(msgspec.Struct, frozen=True):
    """A body that its handler reads itself, piece by piece; the client sends no faster than it is read."""

    pieces: AsyncIterator[bytes]


class Call(Generic[B]):
    """One request. `ids` are its path parameters, prefixes checked; `body` is decoded and validated, or a stream."""

    __slots__ = ("body", "context", "headers", "ids", "project_id", "query")

    def __init__(
        self,
        context: Context,
        project_id: str,
        ids: dict[str, str],
        headers: Mapping[str, str],
        query: QueryParams,
        body: B,
    ) -> None:
        self.context = context
        self.project_id = project_id
        self.ids = ids
        self.headers = headers
        self.query = query
        self.body = body

    @property
    def now(self) -> int:
        """Unix time in whole seconds."""
        return int(self.context.clock.now())

    def new_id(self, prefix: str) -> str:
        """Return a fresh id."""
        return self.context.ids.new(prefix)


class Handler(Protocol):
    """What answers an operation."""

    async def __call__(self, call: Call[Any], /) -> Response:
        """Answer. Raises ApiError."""
        ...


class JsonAnswer(Response):
    """A 200 with JSON. What Starlette works out anew for each answer stands here once."""

    media_type = "application/json"

    def __init__(self, body: bytes, headers: Mapping[str, str] | None) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        if headers:
            self.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        del scope, receive
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


def answer(value: Any, headers: dict[str, str] | None = None) -> Response:
    """Return an object as JSON; text and bytes are JSON already."""
    content = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else _encode(value)
    return JsonAnswer(content, headers)


def when_busy(call: Call[Any], given: WhenBusy | None) -> WhenBusy:
    """Return what to do on a busy thread: as the body says, else the header, else refuse. Raises InvalidRequest."""
    if given is not None:
        return given
    wanted = call.headers.get(BUSY_HEADER.lower(), "").strip().lower() or "reject"
    for known in get_args(WhenBusy):
        if wanted == known:
            return cast("WhenBusy", known)
    raise unsupported_value(BUSY_HEADER, wanted, list(get_args(WhenBusy)))


def included(call: Call[Any]) -> list[str]:
    """Return what a call asks to be shown beyond the usual; clients spell it `include[]` or `include`."""
    given = [*call.query.getlist("include[]"), *call.query.getlist("include")]
    return sorted({value for one in given for value in one.split(",") if value})


def stand_behind(call: Call[Any], place: Place | None) -> dict[str, str]:
    """Return the header that names the run that something waits for, and have that run stopped if it was wanted."""
    if place is None:
        return {}
    if place.interrupts:
        call.context.dispatch.interrupt(place.behind)
    return {"x-perdure-behind": place.behind}


def page_query(
    query: QueryParams, *, most: int = MOST_PER_PAGE, default: int = PageQuery().limit, before: bool = True
) -> PageQuery:
    """Return the page that a list call asks for; empty values count as absent. Raises InvalidRequest.

    Limits and the cursor `before` are those of all lists but that of files.
    """
    order = query.get("order") or "desc"
    if order not in {"asc", "desc"}:
        raise unsupported_value("order", order, ["asc", "desc"])
    return PageQuery(
        limit=_limit(query.get("limit"), most, default),
        order="asc" if order == "asc" else "desc",
        after=searchable(query.get("after", "")) or None,
        before=(searchable(query.get("before", "")) or None) if before else None,
    )


def _limit(given: str | None, most: int, default: int) -> int:
    if not given:
        return default
    if re.fullmatch("-?[0-9]{1,18}", given) is None:
        raise InvalidRequest(
            "Invalid type for 'limit': expected an integer, but got a string instead.",
            param="limit",
            code="invalid_type",
        )
    limit = int(given)
    if limit < 1:
        raise number_out_of_range("limit", limit, "integer", "minimum", 1)
    if limit > most:
        raise number_out_of_range("limit", limit, "integer", "maximum", most)
    return limit
