"""Files that a body names: what is not there is refused at once, which is better than a run that fails.

Files are looked up before the transaction that stores the body; who deletes one in between is met by the transaction
itself where the name is kept up to date (`store/files.py: note_files`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import UnsetType

from perdure.api.call import Call
from perdure.api.planned_stores import refuse_unreadable_attachments
from perdure.store.files import check_files, files_named
from perdure.wire.messages import CreateMessage, NewImageFile
from perdure.wire.threads import CreateThread
from perdure.wire.tools import ToolResources


async def refuse_unknown_resources(call: Call[Any], resources: ToolResources | None | UnsetType) -> None:
    """Raise NotFound for the first file that is not there; vector stores are looked up in `planned_stores.py`."""
    if not isinstance(resources, ToolResources):
        return
    await _refuse(call, files_named(resources))


async def refuse_unknown_files(call: Call[Any], messages: list[CreateMessage] | None) -> None:
    """Raise NotFound for the first attachment or image file that is not there, InvalidRequest for unreadable ones."""
    await _refuse(call, [file_id for message in messages or [] for file_id in _files_in(message)])
    await refuse_unreadable_attachments(call, messages)


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
