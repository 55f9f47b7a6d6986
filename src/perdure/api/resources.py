"""Files and vector stores that a body names: what is not there is refused at once, not in a run that fails.

Files are looked up before the transaction that stores the body; who deletes one in between is met by the transaction
itself where the name is kept up to date (`store/files.py: note_files`). This server keeps no vector stores yet, so
every id of one is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UnsetType

from perdure.api.call import Call
from perdure.errors import InvalidRequest, NotFound
from perdure.store.files import check_files, files_named
from perdure.wire.messages import CreateMessage, NewImageFile
from perdure.wire.threads import CreateThread
from perdure.wire.tools import ToolResources


async def refuse_unknown_resources(call: Call[Any], resources: ToolResources | None | UnsetType) -> None:
    """Raise NotFound for the first file or vector store that is not there."""
    if not isinstance(resources, ToolResources):
        return
    await _refuse(call, files_named(resources))
    search = resources.file_search
    if search is None:
        return
    for store_id in search.vector_store_ids or []:
        raise NotFound(f"Vector store with id [{store_id}] not found.")
    if not isinstance(search.vector_stores, UnsetType) and search.vector_stores:
        raise InvalidRequest(
            "Vector stores are not served yet by this version of Perdure.",
            param="tool_resources.file_search.vector_stores",
        )


async def refuse_unknown_files(call: Call[Any], messages: list[CreateMessage] | None) -> None:
    """Raise NotFound for the first attachment or image file that is not there."""
    await _refuse(call, [file_id for message in messages or [] for file_id in _files_in(message)])


def _files_in(message: CreateMessage) -> Iterator[str]:
    for attachment in message.attachments or []:
        if attachment.file_id is not None:
            yield attachment.file_id
    if not isinstance(message.content, str):
        for part in message.content:
            if isinstance(part, NewImageFile):
                yield part.image_file.file_id


async def refuse_unknown_in_thread(call: Call[Any], thread: CreateThread | None) -> None:
    """Raise NotFound for the first thing of a new thread that is not there."""
    if thread is not None:
        await refuse_unknown_resources(call, thread.tool_resources)
        await refuse_unknown_files(call, thread.messages)


async def _refuse(call: Call[Any], file_ids: list[str]) -> None:
    if file_ids:
        await call.context.database.read(check_files, file_ids, call.project_id, call.now)
