"""Vector stores, their files and file batches, and the bodies that make and change them.

Where the hosted server failed the official client's strict parsing, the client's spelling stands here: a name is never
null, a batch is a `vector_store.files_batch`, and a batch's list shows whole files.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from perdure.wire.kinds import Body, Description, Metadata, MetadataKey, Name, Object
from perdure.wire.tools import AutoChunkingStrategy, StaticChunking, StaticChunkingStrategy

MOST_NEW_FILES = 500
MOST_BATCH_FILES = 2000

FileStatus = Literal["in_progress", "completed", "failed", "cancelled"]
BatchStatus = Literal["in_progress", "completed", "failed", "cancelled"]
StoreStatus = Literal["expired", "in_progress", "completed"]
FileErrorCode = Literal["server_error", "unsupported_file", "invalid_file"]

AttributeValue = Annotated[str, Meta(max_length=512)] | int | float | bool
Attributes = Annotated[dict[MetadataKey, AttributeValue], Meta(max_length=16)]
Chunking = AutoChunkingStrategy | StaticChunkingStrategy


class FileCounts(Object, kw_only=True):
    """How many files have which status."""

    in_progress: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    total: int = 0


class ExpiresAfter(Body, kw_only=True):
    """When a store expires: that many days after it was last part of a run or a search."""

    anchor: Literal["last_active_at"]
    days: Annotated[int, Meta(ge=1, le=365)]


class VectorStore(Object, kw_only=True):
    """A vector store, keys in the recorded order."""

    id: str
    object: Literal["vector_store"] = "vector_store"
    created_at: int
    name: str
    description: str | None
    usage_bytes: int
    file_counts: FileCounts
    status: StoreStatus
    expires_after: ExpiresAfter | None
    expires_at: int | None
    last_active_at: int
    metadata: Metadata


class FileError(Object, kw_only=True):
    """Why a file failed."""

    code: FileErrorCode
    message: str


class VectorStoreFile(Object, kw_only=True):
    """A file of a vector store; its id is that of the file. `auto` chunking is shown by the sizes it stands for."""

    id: str
    object: Literal["vector_store.file"] = "vector_store.file"
    usage_bytes: int
    created_at: int
    vector_store_id: str
    status: FileStatus
    last_error: FileError | None
    chunking_strategy: StaticChunkingStrategy
    attributes: Attributes


class FileBatch(Object, kw_only=True):
    """Files that were added to a store together."""

    id: str
    object: Literal["vector_store.files_batch"] = "vector_store.files_batch"
    created_at: int
    status: BatchStatus
    vector_store_id: str
    file_counts: FileCounts


class FileText(Object, kw_only=True):
    """A piece of what was read out of a file."""

    type: Literal["text"] = "text"
    text: str


class FileTextPage(Object, kw_only=True):
    """GET /vector_stores/{id}/files/{id}/content."""

    object: Literal["vector_store.file_content.page"] = "vector_store.file_content.page"
    data: list[FileText]
    has_more: bool = False
    next_page: str | None = None


class CreateVectorStore(Body, kw_only=True):
    """POST /vector_stores; the body may be missing altogether."""

    file_ids: Annotated[list[str], Meta(max_length=MOST_NEW_FILES)] | None = None
    name: Name | None = None
    description: Description | None = None
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Chunking | None = None
    metadata: Metadata | None = None


class ModifyVectorStore(Body, kw_only=True):
    """POST /vector_stores/{id}. Absent keeps, null clears."""

    name: Name | None | UnsetType = UNSET
    expires_after: ExpiresAfter | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class RebuildVectorStore(Body, kw_only=True):
    """POST /vector_stores/{id}/rebuild, an extension; the body may be missing altogether."""


class CreateVectorStoreFile(Body, kw_only=True):
    """POST /vector_stores/{id}/files, and one of a batch's `files`."""

    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


class UpdateAttributes(Body, kw_only=True):
    """POST /vector_stores/{id}/files/{id}. All attributes are replaced."""

    attributes: Attributes | None


class CreateFileBatch(Body, kw_only=True):
    """POST /vector_stores/{id}/file_batches: `file_ids`, all with the same options, or `files`, each with its own."""

    file_ids: Annotated[list[str], Meta(min_length=1, max_length=MOST_BATCH_FILES)] | None = None
    files: Annotated[list[CreateVectorStoreFile], Meta(min_length=1, max_length=MOST_BATCH_FILES)] | None = None
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None


AUTO = StaticChunkingStrategy(static=StaticChunking(max_chunk_size_tokens=800, chunk_overlap_tokens=400))
"""What `auto` stands for [recorded]."""
