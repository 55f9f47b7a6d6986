"""Chunks: what a file was cut into, written piece by piece under an attempt's number, and swept when nobody needs them.

Rule. A file's chunks count when it is completed, and only those of the attempt that it was completed at.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.ids import searchable
from perdure.store.bodies import read_file, read_vector_store_file
from perdure.store.db import Do, Operation, Row, Rows, Value
from perdure.wire.vector_stores import Attributes

INSERT_ROWS = 32  # in one statement
SWEPT_AT_ONCE = 250


class StoredChunk(msgspec.Struct, frozen=True):
    """A chunk as it is kept: `vector` is little-endian single-precision numbers, `terms` what the search room packs."""

    number: int
    page: int | None
    tokens: int
    text: str
    vector: bytes
    terms: bytes

    @property
    def weight(self) -> int:
        """What it takes, in bytes."""
        return len(self.text.encode()) + len(self.vector) + len(self.terms)


class FoundText(msgspec.Struct, frozen=True):
    """What is shown of a chunk that was found."""

    text: str
    page: int | None
    tokens: int


class StoredVector(msgspec.Struct, frozen=True):
    """What is searched of a chunk."""

    number: int
    vector: bytes
    terms: bytes


class LiveFile(msgspec.Struct, frozen=True):
    """A completed file as a reader of a vector store sees it. `changed` is the store's version of its last change."""

    seq: int
    attempt: int
    changed: int


class Snapshot(msgspec.Struct, frozen=True):
    """What can be found in a vector store at one of its versions."""

    version: int
    embedder: str
    files: list[LiveFile]


class FileFacts(msgspec.Struct, frozen=True):
    """What a search shows of a file."""

    file_id: str
    filename: str
    attributes: Attributes


def insert_chunks(file_seq: int, attempt: int, chunks: Sequence[StoredChunk]) -> Operation[None]:
    """Store chunks; the caller holds the fence of that attempt."""
    for first in range(0, len(chunks), INSERT_ROWS):
        piece = chunks[first : first + INSERT_ROWS]
        args: list[Value] = []
        for one in piece:
            args += [file_seq, attempt, one.number, one.page, one.tokens, searchable(one.text), one.vector, one.terms]
        width = len(args) // len(piece)
        rows = ", ".join(
            f"({', '.join(f'${1 + width * index + place}' for place in range(width))})" for index in range(len(piece))
        )
        yield Do(
            f"INSERT INTO chunks (file_seq, attempt, number, page, tokens, text, vector, terms) VALUES {rows}", *args
        )


def has_dead_chunks() -> Operation[bool]:
    """Say whether there are chunks that nobody needs."""
    return (yield Row("SELECT 1 FROM dead_chunks LIMIT 1")) is not None


def sweep_chunks() -> Operation[bool]:
    """Delete some of the chunks that nobody needs; say whether there may be more."""
    dead = yield Row("SELECT file_seq, attempt FROM dead_chunks ORDER BY file_seq LIMIT 1", lock="skip")
    if dead is None:
        return False
    deleted = yield Do(
        "DELETE FROM chunks WHERE (file_seq, attempt, number) IN (SELECT file_seq, attempt, number FROM chunks "
        "WHERE file_seq = $1 AND attempt <= $2 LIMIT $3)",
        *dead,
        SWEPT_AT_ONCE,
    )
    if deleted < SWEPT_AT_ONCE:
        yield Do("DELETE FROM dead_chunks WHERE file_seq = $1 AND attempt = $2", *dead)
    return True


def read_snapshot(store_id: str) -> Operation[Snapshot | None]:
    """Return what can be found in a store at its present version; None for a store that is gone."""
    row = yield Row("SELECT version, embedder FROM vector_stores WHERE id = $1", store_id)
    if row is None:
        return None
    files = yield Rows(
        "SELECT seq, attempt, changed FROM vector_store_files WHERE vector_store_id = $1 AND status = 'completed' "
        "ORDER BY seq",
        store_id,
    )
    return Snapshot(row[0], row[1], [LiveFile(*file) for file in files])


def list_file_facts(file_seqs: Sequence[int]) -> Operation[dict[int, FileFacts]]:
    """Return what a search shows of files; those that are gone are left out."""
    numbers = ", ".join(f"${number}" for number in range(1, len(file_seqs) + 1))
    rows = yield Rows(
        "SELECT v.seq, v.body, f.body FROM vector_store_files AS v JOIN files AS f ON f.id = v.id "
        f"WHERE v.seq IN ({numbers})",
        *file_seqs,
    )
    facts: dict[int, FileFacts] = {}
    for seq, body, file_body in rows:
        file = read_vector_store_file(body)
        facts[seq] = FileFacts(file.id, read_file(file_body).filename, file.attributes)
    return facts


def list_vectors(file_seq: int, attempt: int, after: int, most: int) -> Operation[list[StoredVector]]:
    """Return what is searched of a file's chunks, in order, from the one after that number on."""
    rows = yield Rows(
        "SELECT number, vector, terms FROM chunks WHERE file_seq = $1 AND attempt = $2 AND number > $3 "
        "ORDER BY number LIMIT $4",
        file_seq,
        attempt,
        after,
        most,
    )
    return [StoredVector(*row) for row in rows]


def list_texts(file_seq: int, attempt: int) -> Operation[list[str]]:
    """Return the texts of a file's chunks in order."""
    rows = yield Rows("SELECT text FROM chunks WHERE file_seq = $1 AND attempt = $2 ORDER BY number", file_seq, attempt)
    return [str(row[0]) for row in rows]


def find_texts(places: Sequence[tuple[int, int, int]]) -> Operation[list[FoundText | None]]:
    """Return the texts of chunks, each by its file's number, attempt and its own; None for one that is gone."""
    found: list[FoundText | None] = []
    for place in places:
        row = yield Row(
            "SELECT text, page, tokens FROM chunks WHERE file_seq = $1 AND attempt = $2 AND number = $3", *place
        )
        found.append(None if row is None else FoundText(*row))
    return found
