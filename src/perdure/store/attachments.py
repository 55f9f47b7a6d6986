"""What messages bring along for the thread's tools, and vector stores that are made with an assistant or a thread.

Attachments for file search go into the thread's vector store, which is made if there is none, and expires after seven
days without use; those for the code interpreter go into the thread's list of files [documented].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from perdure.domain.vector_stores import store_for_thread
from perdure.errors import InvalidRequest
from perdure.ids import searchable
from perdure.store.bodies import encode, read_thread
from perdure.store.db import Do, Operation, Row
from perdure.store.files import files_named, note_changed_files
from perdure.store.vector_store_files import AskedFile, add_files
from perdure.store.vector_stores import StoreRow, find_store_row, insert_vector_store, touch_stores
from perdure.wire.messages import Message
from perdure.wire.threads import Thread
from perdure.wire.tools import MOST_CODE_FILES, CodeInterpreterResources, FileSearchResources, ToolResources
from perdure.wire.vector_stores import VectorStore


class Fresh(msgspec.Struct, frozen=True):
    """What an operation may not make up itself when it makes a vector store: its id, and the name of its embedder."""

    store_id: str
    embedder: str


class PlannedStore(msgspec.Struct, frozen=True):
    """A vector store that is to be made with its files."""

    store: VectorStore
    embedder: str
    asked: list[AskedFile]


def insert_planned(planned: PlannedStore, project_id: str, now: int) -> Operation[VectorStore]:
    """Make a vector store with its files; return it. Raises NotFound."""
    row = yield from insert_vector_store(planned.store, planned.embedder, project_id)
    if planned.asked:
        yield from add_files(row, planned.asked, now)
    return row.store


def stores_named(resources: ToolResources) -> list[str]:
    """Return the vector stores that file search is given."""
    search = resources.file_search
    return [] if search is None else search.vector_store_ids or []


def touch_resources(resources: Iterable[ToolResources], now: int) -> Operation[None]:
    """Note that the vector stores of a run are used."""
    yield from touch_stores([one for given in resources for one in stores_named(given)], now)


def attach_files(
    thread_id: str, messages: Sequence[Message], fresh: Fresh | None, project_id: str, now: int
) -> Operation[bool]:
    """Give the attachments of new messages to the tools of their thread; say whether files wait to be read now.

    The caller holds the thread's lock, or has just made it. Raises NotFound, and InvalidRequest for an expired store.
    """
    for_code, for_search = _attached(messages, "code_interpreter"), _attached(messages, "file_search")
    if not for_code and not for_search:
        return False
    row = yield Row("SELECT body FROM threads WHERE id = $1", thread_id, lock="wait")
    thread = read_thread(row[0])
    resources = thread.tool_resources
    if for_code:
        resources = _with_code_files(resources, for_code)
    if for_search:
        assert fresh is not None  # noqa: S101  # whoever takes messages with attachments brings it
        store = yield from _thread_store(thread, fresh, project_id, now)
        yield from add_files(store, [AskedFile(file_id=one) for one in for_search], now)
        resources = msgspec.structs.replace(
            resources, file_search=FileSearchResources(vector_store_ids=_with_store(resources, store.store.id))
        )
    yield from note_changed_files(thread_id, project_id, thread.tool_resources, resources)
    changed = msgspec.structs.replace(thread, tool_resources=resources)
    yield Do("UPDATE threads SET body = $2 WHERE id = $1", thread_id, encode(changed))
    return bool(for_search)


def _attached(messages: Sequence[Message], kind: str) -> list[str]:
    """Return the files that are attached for a tool, each once."""
    found = [
        searchable(one.file_id)
        for message in messages
        for one in message.attachments
        if one.file_id is not None and any(tool.type == kind for tool in one.tools or [])
    ]
    return list(dict.fromkeys(found))


def _with_code_files(resources: ToolResources, file_ids: list[str]) -> ToolResources:
    """Return resources with more files for the code interpreter. Raises InvalidRequest for too many."""
    all_ids = list(dict.fromkeys([*files_named(resources), *file_ids]))
    if len(all_ids) > MOST_CODE_FILES:
        raise InvalidRequest(
            f"Invalid 'attachments': the thread's code interpreter takes {MOST_CODE_FILES} files at most, and these "
            f"make {len(all_ids)}. Take some out of 'tool_resources.code_interpreter.file_ids' first.",
            param="attachments",
            code="array_above_max_length",
        )
    return msgspec.structs.replace(resources, code_interpreter=CodeInterpreterResources(file_ids=all_ids))


def _thread_store(thread: Thread, fresh: Fresh, project_id: str, now: int) -> Operation[StoreRow]:
    """Return the thread's vector store, locked; a new one if it has none, or none that is still there."""
    for store_id in stores_named(thread.tool_resources):
        row = yield from find_store_row(store_id, lock=True)
        if row is not None and row.project_id == project_id:
            return row
    return (yield from insert_vector_store(store_for_thread(None, fresh.store_id, now), fresh.embedder, project_id))


def _with_store(resources: ToolResources, store_id: str) -> list[str]:
    """Return the thread's vector stores with this one among them."""
    return list(dict.fromkeys([*stores_named(resources), store_id]))
