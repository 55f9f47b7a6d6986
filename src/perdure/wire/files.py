"""The file, and what comes with one that is made. The bytes themselves are in the blob store.

A name is what is left of the client's once nothing in it can do harm: `plain_name`. Clients get back what they sent
unless it had a path, control characters or more than a file system takes.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from perdure.wire.kinds import Body, Object

UploadPurpose = Literal["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
"""What a client may upload a file for, in the order in which the recorded refusal lists them."""
Purpose = Literal[UploadPurpose, "assistants_output", "batch_output", "fine-tune-results"]
PURPOSES: tuple[str, ...] = get_args(UploadPurpose)
KEPT_BACK = {"assistants", "user_data"}
"""Purposes whose content the hosted API did not give out."""

MOST_FILES_PER_PAGE = 10_000
NO_NAME = "upload"
MOST_NAME_BYTES = 255
"""What file systems take: code that works with the file finds it under its name."""
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])
"""They would show a name in another order than it is written: `gnp.exe` as `exe.png`."""


class FileExpiry(Body, kw_only=True):
    """When a file expires: that many seconds after its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class CreateFile(Body, kw_only=True):
    """The fields of the multipart body of POST /files beside the file itself, whose part is named `file`."""

    purpose: UploadPurpose
    expires_after: FileExpiry | None = None


class File(Object, kw_only=True):
    """A file, keys in the recorded order. `status` and `status_details` are of the time of fine-tuning: always so."""

    object: Literal["file"] = "file"
    id: str
    purpose: Purpose
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None


class DeletedFile(Object, kw_only=True):
    """The answer to a delete; its `object` is `file`, unlike others."""

    object: Literal["file"] = "file"
    deleted: bool = True
    id: str


class StoredFile(msgspec.Struct, frozen=True):
    """A file as the store knows it: what goes out, and where its bytes are."""

    file: File
    project_id: str
    blob: str
    sha256: str


def plain_name(name: str) -> str:
    """Return what is harmless of a file name: its last part, without control characters, in at most 255 bytes."""
    last = re.split(r"[/\\]", name)[-1].translate(_DIRECTIONS)
    kept = "".join(letter for letter in last if unicodedata.category(letter) not in {"Cc", "Cs", "Zl", "Zp"}).strip()
    return _shortened(kept) if kept.strip(".") else NO_NAME


def _shortened(name: str) -> str:
    if len(name.encode()) <= MOST_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    end = f"{dot}{suffix}" if stem and 0 < len(suffix.encode()) <= 16 else ""  # noqa: PLR2004  # longer is no suffix
    room = MOST_NAME_BYTES - len(end.encode())
    return (stem if end else name).encode()[:room].decode(errors="ignore") + end
