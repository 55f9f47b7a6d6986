"""Files: made out of a multipart body that streams into the blob store, given out as a stream."""

from __future__ import annotations

import asyncio
import mimetypes
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from perdure.api.call import BodyStream, Call, answer, page_query
from perdure.api.failures import RangeNotSatisfiable
from perdure.api.multipart import Sought, read_form
from perdure.blobs import drop
from perdure.errors import InvalidRequest
from perdure.ids import new_file_id, searchable
from perdure.store.files import delete_file as delete_stored
from perdure.store.files import get_file, get_file_body, insert_file
from perdure.store.files import list_files as list_stored
from perdure.wire.files import (
    KEPT_BACK,
    MOST_FILES_PER_PAGE,
    PURPOSES,
    CreateFile,
    DeletedFile,
    File,
    FileExpiry,
    StoredFile,
)

_RANGE = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")


async def create_file(call: Call[BodyStream]) -> Response:
    """POST /files."""
    settings = call.context.settings
    sought = Sought("file", CreateFile, settings.file_limit_bytes, "PERDURE_FILE_LIMIT_BYTES", _check_purpose)
    form = await read_form(call, sought)
    file = File(
        id=new_file_id(call.context.ids),
        purpose=form.fields.purpose,
        filename=form.filename,
        bytes=form.blob.bytes,
        created_at=call.now,
        expires_at=expiry(form.fields.expires_after, call.now),
    )
    await call.context.database.run(insert_file, StoredFile(file, call.project_id, form.blob.name, form.blob.sha256))
    return answer(file)


def expiry(after: FileExpiry | None, created_at: int) -> int | None:
    """Return when a file expires that is made now, in Unix seconds."""
    return None if after is None else created_at + after.seconds


def _check_purpose(name: str, value: str) -> None:
    """Refuse an unknown purpose as soon as it is there; the text is recorded."""
    if name == "purpose" and value not in PURPOSES:
        raise InvalidRequest(f"{value[:200]!r} is not one of {list(PURPOSES)} - 'purpose'", param="purpose")


async def list_files(call: Call[None]) -> Response:
    """GET /files, of one purpose only with `purpose`. There is no `before`."""
    query = page_query(call.query, most=MOST_FILES_PER_PAGE, default=MOST_FILES_PER_PAGE, before=False)
    purpose = searchable(call.query.get("purpose", "")) or None
    return answer(await call.context.database.scan(list_stored, call.project_id, query, purpose, call.now))


async def retrieve_file(call: Call[None]) -> Response:
    """GET /files/{file_id}."""
    return answer(await call.context.database.read(get_file_body, *_path(call)))


async def delete_file(call: Call[None]) -> Response:
    """DELETE /files/{file_id}; it goes out of all that names it."""
    blob = await call.context.database.run(delete_stored, *_path(call))
    await drop(call.context.blobs, [blob])
    return answer(DeletedFile(id=call.ids["file_id"]))


async def download_file(call: Call[None]) -> Response:
    """GET /files/{file_id}/content, or a range of it."""
    stored = await call.context.database.read(get_file, *_path(call))
    if call.context.settings.refuse_downloads and stored.file.purpose in KEPT_BACK:
        raise InvalidRequest(f"Not allowed to download files of purpose: {stored.file.purpose}")
    size = stored.file.bytes
    wanted = _range(call.headers.get("range", ""), size)
    start, end = wanted or (0, size)
    pieces = call.context.blobs.read(stored.blob, start, end)
    return FileContent(stored.file, pieces, start, end, part=wanted is not None)


def _path(call: Call[None]) -> tuple[str, str, int]:
    return searchable(call.ids["file_id"]), call.project_id, call.now


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return the one range that is asked for; None where it is the whole file. Raises RangeNotSatisfiable."""
    matched = _RANGE.fullmatch(header.strip())
    if matched is None:
        return None  # none, several, or not in bytes: the whole file is an answer to those too
    first, last, final = (None if one is None else int(one) for one in matched.groups())
    if first is None:
        start, end = max(0, size - (final or 0)), size
    else:
        start, end = first, size if last is None else min(size, last + 1)
    if start >= end:
        raise RangeNotSatisfiable(f"The range '{header}' is not within the file's {size} bytes.", code="invalid_range")
    return start, end


class FileContent(Response):
    """The bytes of a file, read as fast as the client takes them. Nothing in it is to be run by a browser."""

    def __init__(self, file: File, pieces: AsyncGenerator[bytes], start: int, end: int, *, part: bool) -> None:
        kind = mimetypes.guess_type(file.filename)[0] or "application/octet-stream"
        headers = {
            "content-length": str(end - start),
            "content-disposition": _disposition(file.filename),
            "accept-ranges": "bytes",
            "x-content-type-options": "nosniff",
        }
        if part:
            headers["content-range"] = f"bytes {start}-{end - 1}/{file.bytes}"
        super().__init__(None, 206 if part else 200, headers)
        self.raw_headers.append((b"content-type", kind.encode()))
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until the client hangs up. Raises Unavailable before the first byte if there are none."""
        async with aclosing(self._pieces) as pieces:
            first = b"" if scope["method"] == "HEAD" else await anext(pieces, b"")
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if first:
                await _send_all(first, pieces, receive, send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_all(first: bytes, rest: AsyncGenerator[bytes], receive: Receive, send: Send) -> None:
    gone = asyncio.get_running_loop().create_task(_hung_up(receive))
    try:
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in rest:
            if gone.done():  # a server takes what nobody reads, and would let us go on
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    finally:
        gone.cancel()


async def _hung_up(receive: Receive) -> None:
    message: Any = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()


def _disposition(name: str) -> str:
    """Say that it is to be saved, and under which name, to old clients too."""
    plain = re.sub(r"[^ !#-\[\]-~]", "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
