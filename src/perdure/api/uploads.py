"""Uploads: a file in parts, in any order and at the same time. Each part is a blob; completing makes one of them."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import BodyStream, Call, answer
from perdure.api.files import expiry
from perdure.api.multipart import Sought, read_form
from perdure.blobs import WrittenBlob, drop, new_blob_name
from perdure.errors import BodyTooLarge, InvalidRequest, NotFound
from perdure.ids import new_file_id, new_hex_id, searchable
from perdure.store.uploads import (
    Assembly,
    get_pending_upload,
    insert_part,
    insert_upload,
    read_assembly,
)
from perdure.store.uploads import cancel_upload as cancel_stored
from perdure.store.uploads import (
    complete_upload as complete_stored,
)
from perdure.wire.files import File, FileExpiry, StoredFile, plain_name
from perdure.wire.uploads import (
    LIFE_SECONDS,
    PART_LIMIT_BYTES,
    AddUploadPart,
    CompleteUpload,
    CreateUpload,
    StoredPart,
    Upload,
    UploadPart,
)


async def create_upload(call: Call[CreateUpload]) -> Response:
    """POST /uploads."""
    body, limit = call.body, call.context.settings.upload_limit_bytes
    if body.bytes > limit:
        raise BodyTooLarge(
            f"'bytes' is {body.bytes}, over {limit}. The limit is the server's setting PERDURE_UPLOAD_LIMIT_BYTES.",
            param="bytes",
            code="request_too_large",
        )
    upload = Upload(
        id=new_hex_id(call.context.ids, "upload"),
        bytes=body.bytes,
        created_at=call.now,
        filename=plain_name(body.filename),
        purpose=body.purpose,
        status="pending",
        expires_at=call.now + LIFE_SECONDS,
    )
    seconds = None if body.expires_after is None else body.expires_after.seconds
    await call.context.database.run(insert_upload, upload, body.mime_type, seconds, call.project_id)
    return answer(upload)


async def add_upload_part(call: Call[BodyStream]) -> Response:
    """POST /uploads/{upload_id}/parts."""
    context, upload_id = call.context, searchable(call.ids["upload_id"])
    await context.database.read(get_pending_upload, upload_id, call.project_id, call.now)  # before all the bytes
    form = await read_form(call, Sought("data", AddUploadPart, PART_LIMIT_BYTES))
    part = UploadPart(id=new_hex_id(context.ids, "part"), created_at=call.now, upload_id=upload_id)
    stored = StoredPart(part, form.blob.bytes, form.blob.name)
    try:
        await context.database.run(insert_part, stored, call.project_id, call.now)
    except (InvalidRequest, NotFound):  # it ended meanwhile
        await drop(context.blobs, [form.blob.name])
        raise
    return answer(part)


async def complete_upload(call: Call[CompleteUpload]) -> Response:
    """POST /uploads/{upload_id}/complete. Broken off by a crash, it leaves the upload pending, and can be repeated."""
    context, upload_id = call.context, searchable(call.ids["upload_id"])
    assembly = await context.database.read(read_assembly, upload_id, call.project_id, call.body.part_ids, call.now)
    blob = await context.blobs.concat(assembly.blobs, new_blob_name(context.ids))
    try:
        _check_md5(blob, call.body.md5)
        file = _file_of(assembly, blob, new_file_id(context.ids), call.now)
        stored = StoredFile(file, call.project_id, blob.name, blob.sha256)
        upload, freed = await context.database.run(complete_stored, stored, upload_id)
    except (InvalidRequest, NotFound):  # another call was faster, or the bytes are others
        await drop(context.blobs, [blob.name])
        raise
    await drop(context.blobs, freed)
    return answer(upload)


def _check_md5(blob: WrittenBlob, md5: str | None) -> None:
    if md5 and md5.lower() != blob.md5:
        raise InvalidRequest(
            f"The parts have the MD5 {blob.md5} together, but '{md5[:64]}' was expected.",
            param="md5",
            code="invalid_value",
        )


def _file_of(assembly: Assembly, blob: WrittenBlob, file_id: str, now: int) -> File:
    seconds = assembly.expires_after_seconds
    after = None if seconds is None else FileExpiry(anchor="created_at", seconds=seconds)
    return File(
        id=file_id,
        purpose=assembly.upload.purpose,
        filename=assembly.upload.filename,
        bytes=blob.bytes,
        created_at=now,
        expires_at=expiry(after, now),
    )


async def cancel_upload(call: Call[None]) -> Response:
    """POST /uploads/{upload_id}/cancel."""
    upload_id = searchable(call.ids["upload_id"])
    upload, freed = await call.context.database.run(cancel_stored, upload_id, call.project_id, call.now)
    await drop(call.context.blobs, freed)
    return answer(upload)
