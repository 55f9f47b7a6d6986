"""Files of vector stores."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.api.vector_stores import poll_header
from perdure.domain.vector_stores import fresh_texts, sizes_of
from perdure.ids import searchable
from perdure.store.chunks import list_texts
from perdure.store.vector_store_files import (
    AskedFile,
    add_file,
    find_content,
    get_store_file,
    list_store_files,
    remove_store_file,
    update_attributes,
)
from perdure.wire.kinds import Deleted
from perdure.wire.refusals import unsupported_value
from perdure.wire.vector_stores import (
    CreateVectorStoreFile,
    FileStatus,
    FileText,
    FileTextPage,
    UpdateAttributes,
)

STATUSES: tuple[FileStatus, ...] = get_args(FileStatus)


async def create_vector_store_file(call: Call[CreateVectorStoreFile]) -> Response:
    """POST /vector_stores/{vector_store_id}/files."""
    asked = asked_file(call.body)
    added = await call.context.database.run(add_file, *_store(call), asked, call.now)
    call.context.dispatch.tell_of_files(added.stopped)
    return answer(added.files[0], poll_header(call))


def asked_file(body: CreateVectorStoreFile, path: str = "") -> AskedFile:
    """Return the file that is asked for; `path` is where it stands in the request. Raises InvalidRequest."""
    param = f"{path}.chunking_strategy" if path else "chunking_strategy"
    return AskedFile(
        file_id=searchable(body.file_id),
        attributes=body.attributes,
        chunking=sizes_of(body.chunking_strategy, param),
    )


async def list_vector_store_files(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}/files, of one status only with `filter`."""
    query = page_query(call.query)
    return answer(await call.context.database.read(list_store_files, *_store(call), query, status_filter(call)))


def status_filter(call: Call[None]) -> FileStatus | None:
    """Return the status that a list is narrowed down to. Raises InvalidRequest."""
    wanted = call.query.get("filter")
    if not wanted:
        return None
    for status in STATUSES:
        if wanted == status:
            return status
    raise unsupported_value("filter", wanted, list(STATUSES))


async def get_vector_store_file(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}/files/{file_id}."""
    body = await call.context.database.read(get_store_file, call.ids["file_id"], *_store(call))
    return answer(body, poll_header(call))


async def update_vector_store_file_attributes(call: Call[UpdateAttributes]) -> Response:
    """POST /vector_stores/{vector_store_id}/files/{file_id}."""
    attributes = call.body.attributes or {}
    return answer(await call.context.database.run(update_attributes, call.ids["file_id"], *_store(call), attributes))


async def delete_vector_store_file(call: Call[None]) -> Response:
    """DELETE /vector_stores/{vector_store_id}/files/{file_id}; the file itself stays."""
    file_id = call.ids["file_id"]
    stopped = await call.context.database.run(remove_store_file, file_id, *_store(call), call.now)
    call.context.dispatch.tell_of_files(stopped)
    return answer(Deleted(id=file_id, object="vector_store.file.deleted"))


async def retrieve_vector_store_file_content(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}/files/{file_id}/content: what was read out of the file, page by page."""
    live = await call.context.database.read(find_content, call.ids["file_id"], *_store(call))
    if live is None:
        return answer(FileTextPage(data=[]))
    texts = await call.context.database.scan(list_texts, live.seq, live.attempt)
    if live.overlaps:
        texts = await asyncio.to_thread(lambda: list(fresh_texts(texts)))
    return answer(FileTextPage(data=[FileText(text=text) for text in texts if text]))


def _store(call: Call[Any]) -> tuple[str, str]:
    return call.ids["vector_store_id"], call.project_id
