"""The lines of an export: the API's own objects, with what they do not show beside them.

A line is the object as a `GET` answers it, with one key more, `x_perdure`. The first and the last line are Perdure's.
"""

from __future__ import annotations

import msgspec

from perdure.wire.assistants import Assistant
from perdure.wire.files import File
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread
from perdure.wire.vector_stores import VectorStore, VectorStoreFile

BESIDE = "x_perdure"
VERSION = 1

Exported = Assistant | Thread | Message | Run | RunStep | File | VectorStore | VectorStoreFile


class Beside(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What Perdure keeps beside an object."""

    project: str
    """The project's name."""
    extra: Extra | None = None
    sha256: str | None = None
    """That of a file's bytes, hexadecimal."""


class ExportHead(msgspec.Struct, tag_field="object", tag="perdure.export", kw_only=True):
    """The first line."""

    version: int
    perdure_version: str
    created_at: int


class ExportEnd(msgspec.Struct, tag_field="object", tag="perdure.export.end", kw_only=True):
    """The last line: a file without it was cut off."""

    objects: int


KINDS: dict[str, type[Exported]] = {
    "file": File,
    "vector_store": VectorStore,
    "vector_store.file": VectorStoreFile,
    "assistant": Assistant,
    "thread": Thread,
    "thread.message": Message,
    "thread.run": Run,
    "thread.run.step": RunStep,
}
