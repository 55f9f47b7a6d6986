"""One line of an import: an object of the API as somebody has written it down, made into one that can be stored.

Lines come from `perdure export`, or from programs that wrote down what the hosted API answered. That API left out, or
sent as null, what its specification and Perdure have: such fields get the value that they stood for. Rule: nothing that
is imported is active. What was under way is ended here, in a way that is the same each time the line is read. (Files of
vector stores are read again: the store sees to that.)
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from perdure.domain.lifecycle import ACTIVE, move_run, move_step
from perdure.domain.vector_stores import sizes_of
from perdure.errors import InvalidRequest, RunFailure
from perdure.wire.assistants import Assistant
from perdure.wire.exports import BESIDE, KINDS, VERSION, Beside, Exported, ExportEnd, ExportHead
from perdure.wire.files import File, plain_name
from perdure.wire.messages import IncompleteMessage, Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread
from perdure.wire.vector_stores import AUTO, VectorStore, VectorStoreFile

LATEST = 2**53
BROKEN_OFF = "The run was active when it was exported; an import does not take runs up. Create a new run, or retry it."
SAMPLING = ("temperature", "top_p")

_SHARED: dict[str, Any] = {"metadata": {}, "tool_resources": {}}
_SAMPLED: dict[str, Any] = {"tools": [], "temperature": 1.0, "top_p": 1.0, "response_format": "auto"}
DEFAULTS: dict[type[Exported], dict[str, Any]] = {
    Assistant: {**_SHARED, **_SAMPLED},
    Thread: _SHARED,
    Message: {"metadata": {}, "attachments": [], "status": "completed"},
    Run: {
        **_SHARED,
        **_SAMPLED,
        "instructions": "",
        "truncation_strategy": {},
        "tool_choice": "auto",
        "parallel_tool_calls": True,
    },
    RunStep: {"metadata": {}},
    File: {"status": "processed"},
    VectorStore: {"metadata": {}, "name": "", "usage_bytes": 0, "file_counts": {}},
    VectorStoreFile: {"attributes": {}, "usage_bytes": 0, "chunking_strategy": msgspec.to_builtins(AUTO)},
}
"""What a field that is missing, or null, stands for; null itself where it is not named here."""

_ID = re.compile(r"((asst|thread|msg|run|step|vs)_|file-)[A-Za-z0-9_-]{1,128}")
_PREFIXES: dict[type[Exported], str] = {
    Assistant: "asst_",
    Thread: "thread_",
    Message: "msg_",
    Run: "run_",
    RunStep: "step_",
    File: "file-",
    VectorStore: "vs_",
    VectorStoreFile: "file-",
}
_NUMBERS = ("created_at", "expires_at", "last_active_at", "bytes", "usage_bytes")
_USAGE: dict[str, Any] = {"prompt_token_details": {}, "completion_tokens_details": {}}


class BadLine(Exception):
    """A line that can not be imported; the text says why."""


class Item(NamedTuple):
    """An object to be imported. `project` is its project's name; None: the line does not say."""

    number: int
    thing: Exported
    extra: Extra
    project: str | None
    weight: int
    sha256: str | None = None
    """That of a file's bytes, where the line says it."""

    @property
    def key(self) -> str:
        """What it is known by: its id, for a file of a vector store both ids."""
        thing = self.thing
        return f"{thing.vector_store_id}/{thing.id}" if isinstance(thing, VectorStoreFile) else thing.id

    @property
    def parent(self) -> str | None:
        """The id of what it hangs on."""
        if isinstance(self.thing, RunStep):
            return self.thing.run_id
        if isinstance(self.thing, VectorStoreFile):
            return self.thing.vector_store_id
        return self.thing.thread_id if isinstance(self.thing, Message | Run) else None


class Unknown(NamedTuple):
    """An object of a kind that is not imported."""

    kind: str


def read_line(number: int, text: bytes) -> Item | Unknown | ExportHead | ExportEnd:
    """Read one line. Raises BadLine."""
    try:
        given = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(f"it is no JSON: {error}") from None
    kind = given.get("object") if isinstance(given, dict) else None
    if not isinstance(kind, str):
        raise BadLine("it is no object of the API: a JSON object with a key `object` is wanted on each line")
    try:
        if kind.startswith("perdure.export"):
            return _read_edge(given)
        if kind not in KINDS:
            return Unknown(kind)
        beside = msgspec.convert(given.pop(BESIDE), Beside) if BESIDE in given else None
        thing = msgspec.convert(_completed(given, KINDS[kind]), KINDS[kind])
    except msgspec.ValidationError as error:
        raise BadLine(f"this {kind} can not be read: {error}") from None
    _check(thing, beside)
    extra = _guessed(thing) if beside is None else beside.extra or Extra()
    if beside is None:
        return Item(number, _ended(thing, extra), extra, None, len(text))
    return Item(number, _ended(thing, extra), extra, beside.project, len(text), beside.sha256)


def in_order(items: list[Item]) -> list[Item]:
    """Return objects of one kind and parent that stand together, oldest first: the API's lists are newest first."""
    return items[::-1] if items[0].thing.created_at > items[-1].thing.created_at else items


def _read_edge(given: dict[str, Any]) -> ExportHead | ExportEnd:
    edge: ExportHead | ExportEnd = msgspec.convert(given, ExportHead | ExportEnd)
    if isinstance(edge, ExportHead) and edge.version > VERSION:
        raise BadLine(f"the export has the format {edge.version}, this Perdure reads {VERSION}: use a newer one")
    return edge


def _completed(given: dict[str, Any], kind: type[Exported]) -> dict[str, Any]:
    """Fill in what is missing or null."""
    nothing = dict.fromkeys(field for field in kind.__struct_fields__ if field not in _REQUIRED[kind])
    full = {**nothing, **DEFAULTS[kind], **{name: value for name, value in given.items() if value is not None}}
    if kind is Message and given.get("status") is None:
        full["completed_at"] = given.get("completed_at") or given.get("created_at")
    if kind is VectorStore and given.get("last_active_at") is None and "created_at" in full:
        full["last_active_at"] = full["created_at"]
    chunking = full.get("chunking_strategy")
    if isinstance(chunking, dict) and chunking.get("type") != "static":  # `other`: nobody knows how it was
        full["chunking_strategy"] = DEFAULTS[kind]["chunking_strategy"]
    if isinstance(full.get("usage"), dict):
        full["usage"] = {**_USAGE, **full["usage"]}
    return full


_REQUIRED: dict[type[Exported], set[str]] = {
    kind: {"id", "object", "created_at", "model", "content", "role", "step_details", "type", "status", *parents}
    for kind, parents in (
        (Assistant, ()),
        (Thread, ()),
        (Message, ("thread_id",)),
        (Run, ("thread_id", "assistant_id")),
        (RunStep, ("thread_id", "run_id", "assistant_id")),
        (File, ("bytes", "filename", "purpose")),
        (VectorStore, ("last_active_at",)),
        (VectorStoreFile, ("vector_store_id",)),
    )
}
"""Fields that nothing can stand for."""


def _check(thing: Exported, beside: Beside | None) -> None:
    """Refuse what the store's columns can not hold or mean. Raises BadLine."""
    prefix = _PREFIXES[type(thing)]
    if not thing.id.startswith(prefix):
        raise BadLine(f"the id '{thing.id}' does not begin with '{prefix}'")
    for name in ("id", "thread_id", "run_id", "assistant_id", "vector_store_id"):
        value = getattr(thing, name, None)
        if value is not None and not _ID.fullmatch(value):
            raise BadLine(f"its {name} {value!r} is no id")
    for name in _NUMBERS:
        value = getattr(thing, name, None)
        if value is not None and not 0 <= value < LATEST:
            what = "time in Unix seconds" if name.endswith("_at") else "size"
            raise BadLine(f"its {name} {value} is no {what}")
    if isinstance(thing, VectorStoreFile):
        try:
            sizes_of(thing.chunking_strategy)
        except InvalidRequest as error:
            raise BadLine(error.message) from None
    if beside is not None and (not beside.project or "\0" in beside.project):
        raise BadLine(f"its project {beside.project!r} is no name")


def _guessed(thing: Exported) -> Extra:
    """Say which sampling parameters somebody had set: those that are not at their default."""
    if not isinstance(thing, Assistant | Run):
        return Extra()
    return Extra(given=[name for name in SAMPLING if getattr(thing, name) != 1])


def _ended(thing: Exported, extra: Extra) -> Exported:
    """Return the object ended, if it was under way, and a file with a name that does no harm."""
    if isinstance(thing, File):
        return msgspec.structs.replace(thing, filename=plain_name(thing.filename))
    if isinstance(thing, Run) and thing.status in ACTIVE:
        when = thing.expires_at or thing.created_at
        if thing.status == "cancelling":
            return move_run(thing, "cancelled", when, usage=extra.usage)
        return move_run(thing, "expired", when, usage=extra.usage, failure=RunFailure(BROKEN_OFF))
    if isinstance(thing, RunStep) and thing.status == "in_progress":
        return move_step(thing, "expired", thing.expires_at or thing.created_at)
    if isinstance(thing, Message) and thing.status == "in_progress":
        reason = IncompleteMessage(reason="run_expired")
        return msgspec.structs.replace(
            thing, status="incomplete", incomplete_details=reason, incomplete_at=thing.created_at
        )
    return thing
