"""File batches of vector stores."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.api.vector_store_files import asked_file, status_filter
from perdure.api.vector_stores import poll_header
from perdure.errors import InvalidRequest
from perdure.ids import new_hex_id
from perdure.store.file_batches import cancel_batch, get_batch, insert_batch, list_files_of_batch
from perdure.store.vector_store_files import AskedFile
from perdure.wire.vector_stores import CreateFileBatch, CreateVectorStoreFile


async def create_vector_store_file_batch(call: Call[CreateFileBatch]) -> Response:
    """POST /vector_stores/{vector_store_id}/file_batches."""
    asked = _asked(call.body)
    batch_id = new_hex_id(call.context.ids, "vsfb")
    store_id, project_id = call.ids["vector_store_id"], call.project_id
    batch, stopped = await call.context.database.run(insert_batch, batch_id, store_id, project_id, asked, call.now)
    call.context.dispatch.tell_of_files(stopped)
    return answer(batch, poll_header(call))


def _asked(body: CreateFileBatch) -> list[AskedFile]:
    """Return the files that a batch asks for. Raises InvalidRequest."""
    if (body.file_ids is None) == (body.files is None):
        given = "one of them" if body.files is None else "only one of them"
        raise InvalidRequest(
            f"A file batch takes 'file_ids' or 'files': provide {given}.",
            param="file_ids",
            code="missing_required_parameter" if body.files is None else "invalid_value",
        )
    if body.files is not None:
        return [asked_file(one, f"files[{index}]") for index, one in enumerate(body.files)]
    return [
        asked_file(
            CreateVectorStoreFile(file_id=file_id, attributes=body.attributes, chunking_strategy=body.chunking_strategy)
        )
        for file_id in body.file_ids or []
    ]


async def get_vector_store_file_batch(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}/file_batches/{batch_id}."""
    return answer(await call.context.database.read(get_batch, *_path(call)), poll_header(call))


async def cancel_vector_store_file_batch(call: Call[None]) -> Response:
    """POST /vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel."""
    batch, stopped = await call.context.database.run(cancel_batch, *_path(call))
    call.context.dispatch.tell_of_files(stopped)
    return answer(batch, poll_header(call))


async def list_files_in_vector_store_batch(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}/file_batches/{batch_id}/files, of one status only with `filter`."""
    query = page_query(call.query)
    return answer(await call.context.database.read(list_files_of_batch, *_path(call), query, status_filter(call)))


def _path(call: Call[Any]) -> tuple[str, str, str]:
    return call.ids["batch_id"], call.ids["vector_store_id"], call.project_id
