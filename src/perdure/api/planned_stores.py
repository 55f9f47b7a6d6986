"""Vector stores that a body names, and those that are to be made along with an assistant or a thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import UNSET, UnsetType

from perdure.api.call import Call
from perdure.domain.vector_stores import refuse_unreadable as refuse_names
from perdure.domain.vector_stores import sizes_of, store_for_assistant, store_for_thread
from perdure.errors import InvalidRequest
from perdure.ids import new_hex_id, searchable
from perdure.store.attachments import Fresh, PlannedStore
from perdure.store.found_files import list_file_names
from perdure.store.vector_store_files import AskedFile
from perdure.store.vector_stores import find_missing_store, no_vector_store
from perdure.wire.messages import CreateMessage
from perdure.wire.tools import FileSearchResources, NewVectorStore, ToolResources
from perdure.wire.vector_stores import VectorStore

IDS = "tool_resources.file_search.vector_store_ids"
NEW = "tool_resources.file_search.vector_stores"

Make = Callable[[NewVectorStore, str, int], VectorStore]


def fresh_store(call: Call[Any]) -> Fresh:
    """Return what is needed to make a vector store for an attachment."""
    return Fresh(new_hex_id(call.context.ids, "vs"), call.context.embedders.default_name)


async def refuse_unknown_stores(call: Call[Any], resources: ToolResources | None | UnsetType) -> None:
    """Raise NotFound for the first vector store that is not there, InvalidRequest for too many or one to be made."""
    search = resources.file_search if isinstance(resources, ToolResources) else None
    if search is None:
        return
    if not isinstance(search.vector_stores, UnsetType) and search.vector_stores:
        raise InvalidRequest(f"Unknown parameter: '{NEW}'.", param=NEW, code="unknown_parameter")
    await _refuse_unknown(call, search)


async def plan_for_assistant(call: Call[Any], resources: ToolResources | None) -> PlannedStore | None:
    """Return the vector store to be made, named in the resources from now on. Raises NotFound and InvalidRequest."""
    return await _plan(call, resources, store_for_assistant)


async def plan_for_thread(call: Call[Any], resources: ToolResources | None) -> PlannedStore | None:
    """Return the vector store to be made, named in the resources from now on. Raises NotFound and InvalidRequest."""
    return await _plan(call, resources, store_for_thread)


async def _plan(call: Call[Any], resources: ToolResources | None, make: Make) -> PlannedStore | None:
    search = resources.file_search if resources is not None else None
    if search is None:
        return None
    given = [] if isinstance(search.vector_stores, UnsetType) else search.vector_stores or []
    named = search.vector_store_ids or []
    await _refuse_unknown(call, search, more=len(given))
    if not given:
        return None
    chunking = sizes_of(given[0].chunking_strategy, f"{NEW}[0].chunking_strategy")
    asked = [AskedFile(file_id=searchable(one), chunking=chunking) for one in given[0].file_ids or []]
    await refuse_unreadable(call, [one.file_id for one in asked])
    fresh = fresh_store(call)
    search.vector_store_ids, search.vector_stores = [*named, fresh.store_id], UNSET
    return PlannedStore(make(given[0], fresh.store_id, call.now), fresh.embedder, asked)


async def _refuse_unknown(call: Call[Any], search: FileSearchResources, *, more: int = 0) -> None:
    named = search.vector_store_ids or []
    most = call.context.settings.vector_stores_per_assistant
    if most is not None and len(named) + more > most:
        raise InvalidRequest(
            f"Invalid '{IDS}': array too long. Expected an array with maximum length {most}, "
            f"but got an array with length {len(named) + more} instead.",
            param=IDS,
            code="array_above_max_length",
        )
    if named:
        ids = [searchable(one) for one in named]
        missing = await call.context.database.read(find_missing_store, ids, call.project_id)
        if missing is not None:
            raise no_vector_store(missing)


async def refuse_unreadable(call: Call[Any], file_ids: list[str]) -> None:
    """Raise NotFound for a file that is not there, InvalidRequest for those that are known to hold no text."""
    if file_ids:
        refuse_names(await call.context.database.scan(list_file_names, file_ids, call.project_id, call.now))


async def refuse_unreadable_attachments(call: Call[Any], messages: list[CreateMessage] | None) -> None:
    """Raise InvalidRequest for files attached for file search that are known to hold no text; NotFound."""
    file_ids = [
        searchable(one.file_id)
        for message in messages or []
        for one in message.attachments or []
        if one.file_id is not None and any(tool.type == "file_search" for tool in one.tools or [])
    ]
    await refuse_unreadable(call, file_ids)
