"""Files and vector stores that a body names.

This server keeps neither yet, so every id of one is unknown, and saying so at once is better than a run that fails.
"""

from __future__ import annotations

from msgspec import UnsetType

from perdure.errors import ApiError, InvalidRequest, NotFound
from perdure.wire.messages import CreateMessage, NewImageFile
from perdure.wire.threads import CreateThread
from perdure.wire.tools import ToolResources


def no_file(file_id: str) -> ApiError:
    """Return the refusal of an unknown file; the text is recorded."""
    return NotFound(f"No such File object: {file_id}", param="id")


def refuse_unknown_resources(resources: ToolResources | None | UnsetType) -> None:
    """Raise NotFound for the first file or vector store that is not there."""
    if not isinstance(resources, ToolResources):
        return
    if resources.code_interpreter is not None:
        for file_id in resources.code_interpreter.file_ids or []:
            raise no_file(file_id)
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


def refuse_unknown_files(messages: list[CreateMessage] | None) -> None:
    """Raise NotFound for the first attachment or image file that is not there."""
    for message in messages or []:
        for attachment in message.attachments or []:
            if attachment.file_id is not None:
                raise no_file(attachment.file_id)
        if not isinstance(message.content, str):
            for part in message.content:
                if isinstance(part, NewImageFile):
                    raise no_file(part.image_file.file_id)


def refuse_unknown_in_thread(thread: CreateThread | None) -> None:
    """Raise NotFound for the first thing of a new thread that is not there."""
    if thread is not None:
        refuse_unknown_resources(thread.tool_resources)
        refuse_unknown_files(thread.messages)
