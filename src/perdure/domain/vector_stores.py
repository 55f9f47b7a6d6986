"""New vector stores out of request bodies, and what their chunking and expiry come to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from perdure.errors import InvalidRequest
from perdure.wire.kinds import Metadata
from perdure.wire.refusals import number_out_of_range
from perdure.wire.tools import NewVectorStore, StaticChunkingStrategy
from perdure.wire.vector_stores import AUTO, Chunking, CreateVectorStore, ExpiresAfter, FileCounts, VectorStore

DAY_SECONDS = 86400
OF_THREAD = ExpiresAfter(anchor="last_active_at", days=7)
"""Vector stores that are made for a thread expire [documented]."""
NO_TEXT = frozenset(
    """
    .7z .avi .bin .bmp .bz2 .class .dll .dmg .exe .flac .gif .gz .heic .ico .iso .jar .jpeg .jpg .mkv .mov .mp3 .mp4
    .npy .npz .ogg .parquet .pickle .pkl .png .pyc .rar .so .sqlite .tar .tgz .tif .tiff .wav .webm .webp .xz .zip
    """.split()  # noqa: SIM905  # forty strings in a list are forty lines
)
"""Endings of files that are known to hold no text."""


def expiry_of(last_active_at: int, expires_after: ExpiresAfter | None) -> int | None:
    """Return when a vector store expires."""
    return None if expires_after is None else last_active_at + expires_after.days * DAY_SECONDS


def new_vector_store(body: CreateVectorStore, store_id: str, now: int) -> VectorStore:
    """Return an empty vector store."""
    return _new(store_id, now, body.metadata, body.name, body.description, body.expires_after)


def store_for_assistant(body: NewVectorStore, store_id: str, now: int) -> VectorStore:
    """Return the empty vector store that an assistant is made with; it does not expire."""
    return _new(store_id, now, body.metadata)


def store_for_thread(body: NewVectorStore | None, store_id: str, now: int) -> VectorStore:
    """Return the empty vector store that a thread is made with, or gets for its first attachment."""
    return _new(store_id, now, body.metadata if body else None, expires_after=OF_THREAD)


def _new(
    store_id: str,
    now: int,
    metadata: Metadata | None,
    name: str | None = None,
    description: str | None = None,
    expires_after: ExpiresAfter | None = None,
) -> VectorStore:
    return VectorStore(
        id=store_id,
        created_at=now,
        name=name or "",
        description=description,
        usage_bytes=0,
        file_counts=FileCounts(),
        status="completed",
        expires_after=expires_after,
        expires_at=expiry_of(now, expires_after),
        last_active_at=now,
        metadata=metadata or {},
    )


def sizes_of(chunking: Chunking | None, param: str = "chunking_strategy") -> StaticChunkingStrategy:
    """Return the sizes that a chunking strategy comes to; `param` is where it stands. Raises InvalidRequest."""
    if not isinstance(chunking, StaticChunkingStrategy):
        return AUTO
    most = chunking.static.max_chunk_size_tokens // 2
    overlap = chunking.static.chunk_overlap_tokens
    if overlap > most:
        raise number_out_of_range(f"{param}.static.chunk_overlap_tokens", overlap, "integer", "maximum", most)
    return chunking


def refuse_unreadable(names: Iterable[str]) -> None:
    """Raise InvalidRequest where file names say that there is no text in the files; the text is recorded.

    The hosted server knew files by their names alone, and took fewer. Here the content decides, later, and in words.
    """
    endings = dict.fromkeys(PurePosixPath(name.lower()).suffix for name in names)
    if found := [ending for ending in endings if ending in NO_TEXT]:
        raise InvalidRequest(
            f"Files with extensions [{', '.join(found)}] are not supported for retrieval. See "
            "https://platform.openai.com/docs/assistants/tools/file-search/supported-files",
            param="file_ids",
            code="unsupported_file",
        )


def fresh_texts(texts: Iterable[str]) -> Iterator[str]:
    """Give the texts of chunks that overlap, each without what it shares with the one before."""
    before = ""
    for text in texts:
        yield text[_shared(before, text) :]
        before = text


def _shared(before: str, text: str) -> int:
    """Return how many characters at the end of one text are the beginning of the other."""
    head = text[:16]
    at = before.find(head)
    while at >= 0:
        if text.startswith(before[at:]):
            return len(before) - at
        at = before.find(head, at + 1)
    return 0
