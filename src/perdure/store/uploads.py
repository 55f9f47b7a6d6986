"""Uploads and their parts in the store. An upload's row is the lock of its parts.

Rule: what ends an upload deletes the rows of its parts in the same transaction, so that it happens once; their blobs
are deleted after it, by whoever did it or, after a crash, by the sweep of orphans.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.errors import ApiError, InvalidRequest, NotFound
from perdure.ids import searchable
from perdure.store.bodies import encode
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.files import insert_file
from perdure.wire.files import StoredFile
from perdure.wire.uploads import MOST_PARTS, StoredPart, Upload, UploadStatus

MOST_AT_ONCE = 100

_read_upload = msgspec.json.Decoder(Upload).decode


class Assembly(msgspec.Struct, frozen=True):
    """What a completed upload shall be made of: blobs in their order."""

    upload: Upload
    mime_type: str
    expires_after_seconds: int | None
    blobs: list[str]


def no_upload(upload_id: str) -> ApiError:
    """Return the refusal of an unknown upload; its text follows that of files."""
    return NotFound(f"No such Upload object: {upload_id}", param="id")


def insert_upload(
    upload: Upload, mime_type: str, expires_after_seconds: int | None, project_id: str
) -> Operation[None]:
    """Store a new upload."""
    yield Do(
        "INSERT INTO uploads (id, project_id, status, bytes, mime_type, expires_after_seconds, created_at, expires_at, "
        "body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        upload.id,
        project_id,
        upload.status,
        upload.bytes,
        searchable(mime_type),
        expires_after_seconds,
        upload.created_at,
        upload.expires_at,
        encode(upload),
    )


def get_pending_upload(upload_id: str, project_id: str, now: int | None, *, lock: bool = False) -> Operation[Assembly]:
    """Return an upload that takes parts, without any blobs yet. Raises NotFound, and InvalidRequest if it has ended.

    With `now` an upload past its time counts as expired.
    """
    row = yield Row(
        "SELECT body, mime_type, expires_after_seconds FROM uploads WHERE id = $1 AND project_id = $2",
        upload_id,
        project_id,
        lock="wait" if lock else None,
    )
    if row is None:
        raise no_upload(upload_id)
    upload = _read_upload(row[0])
    status = "expired" if upload.status == "pending" and now is not None and upload.expires_at <= now else upload.status
    if status != "pending":
        raise InvalidRequest(f"Upload {upload_id} has status '{status}': only a pending one can be changed.")
    return Assembly(upload, row[1], row[2], [])


def insert_part(stored: StoredPart, project_id: str, now: int) -> Operation[None]:
    """Store a part, whose blob is written. Raises NotFound and InvalidRequest."""
    part = stored.part
    yield from get_pending_upload(part.upload_id, project_id, now, lock=True)
    (count,) = yield Row("SELECT count(*) FROM upload_parts WHERE upload_id = $1", part.upload_id)
    if count >= MOST_PARTS:
        raise InvalidRequest(f"Upload {part.upload_id} has {MOST_PARTS} parts already, the most that there can be.")
    yield Do(
        "INSERT INTO upload_parts (id, upload_id, bytes, blob, created_at) VALUES ($1, $2, $3, $4, $5)",
        part.id,
        part.upload_id,
        stored.bytes,
        stored.blob,
        part.created_at,
    )


def read_assembly(upload_id: str, project_id: str, part_ids: Sequence[str], now: int) -> Operation[Assembly]:
    """Return what the upload with these parts would be made of. Raises NotFound and InvalidRequest."""
    found = yield from get_pending_upload(upload_id, project_id, now)
    rows = yield Rows("SELECT id, bytes, blob FROM upload_parts WHERE upload_id = $1", upload_id)
    parts = {row[0]: (int(row[1]), str(row[2])) for row in rows}
    total, seen = 0, set[str]()
    for index, part_id in enumerate(part_ids):
        where = f"part_ids[{index}]"
        if part_id not in parts:
            raise InvalidRequest(f"No part with id '{part_id}' in {upload_id}.", param=where, code="invalid_value")
        if part_id in seen:
            raise InvalidRequest(f"The part '{part_id}' is named twice.", param=where, code="invalid_value")
        seen.add(part_id)
        total += parts[part_id][0]
    if total != found.upload.bytes:
        raise InvalidRequest(
            f"The parts have {total} bytes together, but the upload was created for {found.upload.bytes}.",
            param="part_ids",
            code="invalid_value",
        )
    return msgspec.structs.replace(found, blobs=[parts[part_id][1] for part_id in part_ids])


def complete_upload(stored: StoredFile, upload_id: str) -> Operation[tuple[Upload, list[str]]]:
    """Store the file that an upload became; return the upload and the blobs of its parts, to be deleted next.

    Raises NotFound, and InvalidRequest if it was ended meanwhile. Its time is not looked at: the work began within it.
    """
    found = yield from get_pending_upload(upload_id, stored.project_id, None, lock=True)
    yield from insert_file(stored)
    upload = msgspec.structs.replace(found.upload, file=stored.file)
    return (yield from _end(upload, "completed"))


def cancel_upload(upload_id: str, project_id: str, now: int) -> Operation[tuple[Upload, list[str]]]:
    """End an upload; return it and the blobs of its parts, to be deleted next. Raises NotFound and InvalidRequest."""
    found = yield from get_pending_upload(upload_id, project_id, now, lock=True)
    return (yield from _end(found.upload, "cancelled"))


def expire_uploads(before: int) -> Operation[tuple[int, list[str]]]:
    """End some uploads whose time was over before `before`; return how many, and the blobs to be deleted next."""
    rows = yield Rows(
        "SELECT id FROM uploads WHERE status = 'pending' AND expires_at <= $1 ORDER BY expires_at LIMIT $2",
        before,
        MOST_AT_ONCE,
    )
    blobs: list[str] = []
    for listed in rows:
        row = yield Row("SELECT body FROM uploads WHERE id = $1 AND status = 'pending'", listed[0], lock="wait")
        if row is not None:
            _, freed = yield from _end(_read_upload(row[0]), "expired")
            blobs += freed
    return len(rows), blobs


def _end(upload: Upload, status: UploadStatus) -> Operation[tuple[Upload, list[str]]]:
    ended = msgspec.structs.replace(upload, status=status)
    yield Do("UPDATE uploads SET status = $2, body = $3 WHERE id = $1", upload.id, status, encode(ended))
    rows = yield Rows("DELETE FROM upload_parts WHERE upload_id = $1 RETURNING blob", upload.id)
    return ended, [row[0] for row in rows]


def delete_ended_uploads(before: int) -> Operation[int]:
    """Delete the rows of uploads that ended long ago: nobody can ask for them. Return how many."""
    count: int = yield Do("DELETE FROM uploads WHERE status <> 'pending' AND expires_at <= $1", before)
    return count
