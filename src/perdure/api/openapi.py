"""/openapi.json: what the server really takes and gives, written out of the route table and the wire's structs.

Rules: nothing is described by hand that a struct or an error class already says. The document is made once, when it is
first asked for; asking for it needs no key.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, UnsetType
from starlette.types import Receive, Scope, Send

from perdure import __version__
from perdure.api.call import BUSY_HEADER, MOST_PER_PAGE, Handler, answer
from perdure.api.failures import RangeNotSatisfiable, ServerFault
from perdure.errors import (
    ApiError,
    BodyTooLarge,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTimeout,
    Unauthenticated,
    Unavailable,
)
from perdure.ids import PREFIXES
from perdure.wire.events import EventName, MessageDelta, StepDelta
from perdure.wire.kinds import Object, WhenBusy
from perdure.wire.messages import Message
from perdure.wire.page import PageQuery
from perdure.wire.runs import Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread
from perdure.wire.vector_stores import FileBatch, FileStatus, VectorStore, VectorStoreFile

Json = dict[str, Any]

DESCRIPTION = """\
The OpenAI Assistants API (v2), self-hosted. Unknown fields of a body are refused, unknown query parameters and headers
are ignored, and an empty query value counts as absent. `OpenAI-Beta: assistants=v2` may be sent and may be left out,
unless the server was told to demand it; `assistants=v1` is answered in the shapes of v1 as far as they map. Streams are
server-sent events; `x-events` says what each of them carries."""


class Operation(msgspec.Struct, frozen=True):
    """One operation of the API.

    `body` is None where no body is read, `gives` is what a 200 carries, or a page of it, and None where there never is
    one. With `file` the body is multipart, and that is the name of its part with the bytes; `gives=bytes` are bytes as
    they are. `most` is how many objects a page may hold. `lacks` says where it falls short of the hosted operation,
    `extension` what it is that the hosted API lacked.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    operation_id: str
    handler: Handler
    body: type | None = None
    file: str = ""
    gives: type | None = None
    page: bool = False
    most: int = MOST_PER_PAGE
    query: tuple[Literal["run_id", "include[]", "metadata", "created_at", "filter", "purpose"], ...] = ()
    header: Literal["Last-Event-ID", ""] = ""
    lacks: str = ""
    extension: str = ""

    @property
    def waits(self) -> bool:
        """Whether the body can ask to wait on a busy thread, and a header too."""
        return self.body is not None and any(one.name == "x_when_busy" for one in msgspec.structs.fields(self.body))

    @property
    def streams(self) -> bool:
        """Whether the body can ask for a stream."""
        return self.body is not None and any(one.name == "stream" for one in msgspec.structs.fields(self.body))

    @property
    def plain_path(self) -> str:
        """The path without the router's marks."""
        return self.path.replace(":path}", "}")


class ErrorBody(Object, forbid_unknown_fields=True, kw_only=True):
    """Why a call was refused; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorTwin(Object, forbid_unknown_fields=True, kw_only=True):
    """The error once more, as files and uploads have it."""

    message: str
    code: str | None


class ErrorAnswer(Object, forbid_unknown_fields=True, kw_only=True):
    """The answer to a refused call. `detail` is there on files and uploads only."""

    error: ErrorBody
    detail: ErrorTwin | UnsetType = UNSET


class ErrorEvent(ErrorBody, kw_only=True):
    """data of `error`: the error for both kinds of clients, flat and nested."""

    error: ErrorBody


class Document:
    """The ASGI application that answers /openapi.json."""

    def __init__(self, operations: Sequence[Operation], mounts: Sequence[str]) -> None:
        self._operations = operations
        self._mounts = mounts
        self._made: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer. Raises MethodNotAllowed."""
        if scope["method"] not in {"GET", "HEAD"}:
            raise MethodNotAllowed(scope["method"], scope["path"], ["GET"])
        if self._made is None:
            self._made = msgspec.json.encode(openapi_document(self._operations, self._mounts))
        await answer(self._made)(scope, receive, send)


def openapi_document(operations: Sequence[Operation], mounts: Sequence[str]) -> Json:
    """Return the OpenAPI 3.1 document."""
    paths: dict[str, Json] = {}
    for operation in operations:
        paths.setdefault(operation.plain_path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Perdure",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": mount} for mount in mounts],
        "security": [{"bearer": []}, {"basic": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "responses": {kind.__name__: _refusal(kind) for kind in _refusals()},
            "parameters": {name: _query_parameter(name) for name in _QUERY},
            "headers": {name: {"description": text, "schema": {"type": kind}} for name, text, kind in _HEADERS},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "No user name; the key as password."},
                "apiKey": {"type": "apiKey", "in": "header", "name": "api-key", "description": "Azure's header."},
            },
        },
    }


# -- operations

_HEADERS = (
    ("x-request-id", "Finds the call in the server's log.", "string"),
    ("openai-poll-after-ms", "When to ask again, in milliseconds.", "string"),
)
POLLED = {Run, VectorStore, VectorStoreFile, FileBatch}
"""What clients ask for again and again until it is done."""


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": operation.operation_id,
        "summary": _summary(operation.operation_id),
        "tags": [operation.path.split("/")[1]],
        "parameters": [*_path_parameters(operation), *_query_parameters(operation), *_header_parameters(operation)],
        "responses": _answers(operation),
    }
    if operation.lacks:
        described["description"] = f"Differs from the hosted operation: {operation.lacks}."
    if operation.extension:
        described["description"] = f"The hosted API did not have this: {operation.extension}."
    if operation.body is not None:
        needed = bool(operation.file) or any(field.required for field in msgspec.structs.fields(operation.body))
        described["requestBody"] = {
            "required": needed,
            "content": {_body_kind(operation): {"schema": _ref(operation.body)}},
        }
    return described


def _body_kind(operation: Operation) -> str:
    return "multipart/form-data" if operation.file else "application/json"


def _summary(operation_id: str) -> str:
    """`getRunStep` becomes `Get run step`."""
    return re.sub("[A-Z]", lambda letter: f" {letter[0].lower()}", operation_id).capitalize()


def _path_parameters(operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"\{(\w+)", operation.path):
        schema: Json = {"type": "string", "minLength": 1}
        if name in PREFIXES:
            schema["pattern"] = f"^{PREFIXES[name]}"
        yield {"name": name, "in": "path", "required": True, "schema": schema}


_QUERY: dict[str, Json] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MOST_PER_PAGE, "default": PageQuery().limit},
    "order": {"type": "string", "enum": ["asc", "desc"], "default": PageQuery().order},
    "after": {"type": "string"},
    "before": {"type": "string"},
    "run_id": {"type": "string", "pattern": f"^({PREFIXES['run_id']}.*)?$"},
    "include[]": {"type": "array", "items": {"type": "string"}},
    "filter": {"type": "string", "enum": list(get_args(FileStatus))},
    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
    "purpose": {"type": "string"},
    "created_at": {
        "type": "object",
        "properties": {name: {"type": "integer", "minimum": 0} for name in ("gt", "gte", "lt", "lte")},
        "additionalProperties": False,
    },
}
_QUERY_TEXTS = {
    "limit": "How many objects a page holds at most.",
    "order": "By creation; newest first is `desc`.",
    "after": "The id after which the page begins.",
    "before": "The id before which the page ends.",
    "run_id": "Only what this run wrote.",
    "include[]": "Taken and ignored as long as there is no file search.",
    "filter": "Only files of this status.",
    "purpose": "Only files of this purpose.",
    "metadata": "`metadata[key]=value`: only what has this metadata, all of it.",
    "created_at": "`created_at[gte]=1700000000`: only what was created within these times, in Unix seconds.",
}


def _query_parameter(name: str) -> Json:
    described: Json = {"name": name, "in": "query", "description": _QUERY_TEXTS[name], "schema": _QUERY[name]}
    if _QUERY[name]["type"] == "object":
        described |= {"style": "deepObject", "explode": True}
    elif _QUERY[name]["type"] != "array":
        described["allowEmptyValue"] = True
    return described


def _header_parameters(operation: Operation) -> Iterator[Json]:
    if operation.waits:
        yield _header_parameter(
            BUSY_HEADER,
            "`x_when_busy` for clients that can not set it in the body.",
            {"enum": list(get_args(WhenBusy))},
        )
    if operation.header:
        yield _header_parameter(
            operation.header,
            "The `id` of the last event that was seen.",
            {"type": "string", "pattern": "^[0-9]{0,18}$"},
        )


def _header_parameter(name: str, text: str, schema: Json) -> Json:
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _query_parameters(operation: Operation) -> Iterator[Json]:
    if operation.most != MOST_PER_PAGE:  # the one list that differs: more fit in, and it has no `before`
        limit = {"type": "integer", "minimum": 1, "maximum": operation.most, "default": operation.most}
        yield {**_query_parameter("limit"), "schema": limit}
        names: tuple[str, ...] = ("order", "after", *operation.query)
    else:
        names = (*(PageQuery.__struct_fields__ if operation.page else ()), *operation.query)
    for name in names:
        yield {"$ref": f"#/components/parameters/{name}"}


# -- answers


def _answers(operation: Operation) -> Json:
    answers: Json = {} if operation.gives is None else {"200": _success(operation)}
    if operation.gives is bytes:
        answers["206"] = {**answers["200"], "description": "The part that `Range` asks for."}
        answers["416"] = _refusal(RangeNotSatisfiable)
    if operation.header:
        answers["200"] = {"description": "Done.", "content": {"text/event-stream": _stream()}}
    for kind in _refusals():
        if _can_be_refused(operation, kind):
            answers[str(kind.status)] = {"$ref": f"#/components/responses/{kind.__name__}"}
    return answers


def _success(operation: Operation) -> Json:
    assert operation.gives is not None  # noqa: S101  # the caller looked
    headers = {"x-request-id": _header("x-request-id")}
    if operation.gives is bytes:
        raw = {"schema": {"type": "string", "format": "binary"}}
        return {
            "description": "The bytes, under a type that their name tells.",
            "headers": headers,
            "content": {"*/*": raw},
        }
    schema = {"$ref": f"#/components/schemas/{_page_name(operation)}"} if operation.page else _ref(operation.gives)
    content: Json = {"application/json": {"schema": schema}}
    if operation.streams:
        content["text/event-stream"] = _stream()
    if operation.gives in POLLED and not operation.page:
        headers["openai-poll-after-ms"] = _header("openai-poll-after-ms")
    return {"description": "Done.", "headers": headers, "content": content}


def _header(name: str) -> Json:
    return {"$ref": f"#/components/headers/{name}"}


def _stream() -> Json:
    return {"x-events": _events()}


def _events() -> Json:
    """Return the schema of each event's data; `done` carries `[DONE]`, which is no JSON."""
    events = {name: _ref(_event_type(name)) for name in get_args(EventName)}
    return {**events, "error": _ref(ErrorEvent), "done": {"const": "[DONE]"}}


def _event_type(name: str) -> type:
    deltas = {"thread.run.step.delta": StepDelta, "thread.message.delta": MessageDelta, "thread.created": Thread}
    if name in deltas:
        return deltas[name]
    kinds = {"thread.run.step.": RunStep, "thread.message.": Message, "thread.run.": Run}
    return next(kind for prefix, kind in kinds.items() if name.startswith(prefix))


def _refusals() -> tuple[type[ApiError], ...]:
    return (
        InvalidRequest,
        Unauthenticated,
        NotFound,
        MethodNotAllowed,
        RequestTimeout,
        BodyTooLarge,
        ServerFault,
        Unavailable,
    )


def _can_be_refused(operation: Operation, kind: type[ApiError]) -> bool:
    if kind is NotFound:
        return "{" in operation.path or operation.body is not None
    if kind in {RequestTimeout, BodyTooLarge}:
        return operation.method == "POST"
    return True


def _refusal(kind: type[ApiError]) -> Json:
    text = re.sub(r"^\d+: ", "", str(kind.__doc__).partition("\n")[0])
    return {
        "description": text[0].upper() + text[1:],
        "headers": {"x-request-id": _header("x-request-id")},
        "content": {"application/json": {"schema": _ref(ErrorAnswer)}},
    }


# -- schemas


def _ref(kind: type) -> Json:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _page_name(operation: Operation) -> str:
    assert operation.gives is not None  # noqa: S101  # a page is of something
    return f"{operation.gives.__name__}Page"


def _schemas(operations: Sequence[Operation]) -> Json:
    kinds: list[type] = [ErrorAnswer, ErrorEvent, MessageDelta, StepDelta]
    for operation in operations:
        kinds += [kind for kind in (operation.body, operation.gives) if kind not in {None, bytes}]
    _, schemas = msgspec.json.schema_components(list(dict.fromkeys(kinds)), ref_template="#/components/schemas/{name}")
    for schema in schemas.values():
        schema["description"] = inspect.cleandoc(schema["description"])
    for kind in _outgoing(Object):
        if kind.__name__ in schemas:
            _require_what_is_sent(schemas[kind.__name__], kind)
    for operation in operations:
        if operation.page:
            schemas[_page_name(operation)] = _page_schema(cast("type", operation.gives), operation.most)
        if operation.body is not None and operation.file:
            _add_file(schemas[operation.body.__name__], operation.file)
    return schemas


def _add_file(schema: Json, name: str) -> None:
    """Add the part with the bytes to the fields of a multipart body."""
    schema["properties"][name] = {"type": "string", "format": "binary"}
    schema["required"] = [*schema["required"], name]


def _outgoing(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for below in kind.__subclasses__():
        yield below
        yield from _outgoing(below)


def _require_what_is_sent(schema: Json, kind: type[msgspec.Struct]) -> None:
    """Require every field: a default makes it optional on its way in; on its way out it is always there."""
    sent = [one.encode_name for one in msgspec.structs.fields(kind) if UnsetType not in get_args(one.type)]
    schema["required"] = list(dict.fromkeys([*schema["required"], *sent]))


def _page_schema(kind: type, most: int) -> Json:
    cursor = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    properties = {
        "object": {"enum": ["list"]},
        "data": {"type": "array", "items": _ref(kind), "maxItems": most},
        "first_id": cursor,
        "last_id": cursor,
        "has_more": {"type": "boolean"},
    }
    return {
        "title": f"{kind.__name__}Page",
        "description": "One page of a list.",
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
