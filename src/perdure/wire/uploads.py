"""The upload: a file that comes in parts, in any order and at the same time. Its parts' bytes are in the blob store."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from perdure.wire.files import File, FileExpiry, UploadPurpose
from perdure.wire.kinds import Body, Object

LIFE_SECONDS = 3600
"""From its creation; recorded."""
PART_LIMIT_BYTES = 64 * 1024 * 1024
MOST_PARTS = 10_000

UploadStatus = Literal["pending", "completed", "cancelled", "expired"]


class CreateUpload(Body, kw_only=True):
    """POST /uploads."""

    filename: Annotated[str, Meta(min_length=1)]
    purpose: UploadPurpose
    bytes: Annotated[int, Meta(ge=1)]
    mime_type: str
    expires_after: FileExpiry | None = None


class AddUploadPart(Body, kw_only=True):
    """The fields of the multipart body of a part: none but the bytes themselves, whose part is named `data`."""


class CompleteUpload(Body, kw_only=True):
    """POST /uploads/{id}/complete: the parts in their order, and the MD5 of the whole in hexadecimal digits."""

    part_ids: Annotated[list[str], Meta(max_length=MOST_PARTS)]
    md5: str | None = None


class Upload(Object, kw_only=True):
    """An upload. `file` is there once it is completed."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    filename: str
    purpose: UploadPurpose
    status: UploadStatus
    expires_at: int
    file: File | UnsetType = UNSET


class UploadPart(Object, kw_only=True):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


class StoredPart(msgspec.Struct, frozen=True):
    """A part as the store knows it."""

    part: UploadPart
    bytes: int
    blob: str
