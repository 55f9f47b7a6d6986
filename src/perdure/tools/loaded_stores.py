"""Vector stores in memory: their indexes, made out of the database's rows and kept up to its version of each.

Rules. The database is the truth: a store's version is looked up before each search, and only what changed since is
loaded. The indexes together take so many bytes at most; the one that was not asked for the longest goes first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from perdure.errors import RunFailure
from perdure.store.chunks import FileFacts, Snapshot, StoredVector, list_file_facts, list_vectors, read_snapshot
from perdure.store.db import Database

if TYPE_CHECKING:  # numpy, of the extra `files`: a server that keeps no vector stores does without
    from perdure.search.index import Row, StoreIndex

log = logging.getLogger("perdure.tools")

CHUNKS_AT_ONCE = 1000
FACTS_AT_ONCE = 500
ATTEMPT_BITS, NUMBER_BITS = 12, 20
"""Of a chunk's key: the number of its file's row, then the attempt that wrote it, then its own number in the file."""


class LoadedFile(msgspec.Struct):
    """A file that can be found, as it was loaded."""

    attempt: int
    changed: int
    facts: FileFacts


class LoadedStore:
    """One vector store in memory. `files` are by the numbers of their rows; the index names them by these numbers."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.version = -1
        self.embedder = ""
        self.dimensions = 0
        self.index: StoreIndex | None = None
        self.files: dict[int, LoadedFile] = {}
        self.loading = asyncio.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes in memory, about."""
        return (self.index.nbytes if self.index else 0) + 500 * len(self.files)


def key_of(seq: int, attempt: int, number: int) -> int:
    """Return the key of a chunk: 63 bits."""
    return (((seq << ATTEMPT_BITS) | (attempt & _ones(ATTEMPT_BITS))) << NUMBER_BITS) | number


def place_of(key: int) -> tuple[int, int, int]:
    """Return the number of a file's row, the attempt and the number of a chunk."""
    return (
        key >> (ATTEMPT_BITS + NUMBER_BITS),
        key >> NUMBER_BITS & _ones(ATTEMPT_BITS),
        key & _ones(NUMBER_BITS),
    )


def _ones(bits: int) -> int:
    return (1 << bits) - 1


class LoadedStores:
    """All that are in memory. `most_bytes` bounds them together, but one is always kept: that which is searched."""

    def __init__(self, database: Database, most_bytes: int) -> None:
        self._database = database
        self._most_bytes = most_bytes
        self._stores: OrderedDict[str, LoadedStore] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, about."""
        return sum(store.nbytes for store in self._stores.values())

    async def get(self, store_id: str, version: int) -> LoadedStore:
        """Return a store as it is at that version or later. Raises RunFailure where the index is not installed."""
        store = self._stores.setdefault(store_id, LoadedStore(store_id))
        self._stores.move_to_end(store_id)
        if find_spec("numpy") is None:
            raise RunFailure("The server can not search: its operator must run pip install 'perdure[files]'.")
        if store.version < version:
            async with store.loading:
                if store.version < version:
                    await self._load(store)
            self._make_room(store_id)
        return store

    def _make_room(self, kept: str) -> None:
        while self.nbytes > self._most_bytes and len(self._stores) > 1:
            oldest = next(iter(self._stores))
            if oldest == kept:  # asked for by somebody else meanwhile
                self._stores.move_to_end(kept)
                continue
            del self._stores[oldest]

    async def _load(self, store: LoadedStore) -> None:
        snapshot = await self._database.scan(read_snapshot, store.store_id)
        if snapshot is None:
            return
        if snapshot.embedder != store.embedder:  # rebuilt: the old vectors mean nothing
            store.index, store.files, store.embedder = None, {}, snapshot.embedder
        fresh = await self._facts(store, snapshot)
        anew = [seq for seq in fresh if seq not in store.files or store.files[seq].attempt != fresh[seq].attempt]
        rows = {seq: await self._rows(seq, fresh[seq].attempt) for seq in anew}
        gone = set(store.files) - {live.seq for live in snapshot.files}
        store.index = await asyncio.to_thread(_changed, store, rows, gone)
        store.files = {seq: file for seq, file in store.files.items() if seq not in gone} | fresh
        store.version = snapshot.version

    async def _facts(self, store: LoadedStore, snapshot: Snapshot) -> dict[int, LoadedFile]:
        """Return the files that are new or were changed."""
        changed = {
            live.seq: live
            for live in snapshot.files
            if live.seq not in store.files
            or (store.files[live.seq].attempt, store.files[live.seq].changed) != (live.attempt, live.changed)
        }
        fresh: dict[int, LoadedFile] = {}
        seqs = list(changed)
        for first in range(0, len(seqs), FACTS_AT_ONCE):
            piece = seqs[first : first + FACTS_AT_ONCE]
            for seq, facts in (await self._database.scan(list_file_facts, piece)).items():
                fresh[seq] = LoadedFile(changed[seq].attempt, changed[seq].changed, facts)
        return fresh

    async def _rows(self, seq: int, attempt: int) -> list[Row]:
        from perdure.search.index import Row  # noqa: PLC0415

        rows: list[Row] = []
        after = -1
        while True:
            found: list[StoredVector] = await self._database.scan(list_vectors, seq, attempt, after, CHUNKS_AT_ONCE)
            rows += [Row(key_of(seq, attempt, one.number), one.vector, one.terms) for one in found]
            if len(found) < CHUNKS_AT_ONCE:
                return rows
            after = found[-1].number


def _changed(store: LoadedStore, rows: dict[int, list[Row]], gone: set[int]) -> StoreIndex | None:
    """Return the index with files added and removed; None while there is no chunk (in a thread).

    Vectors of another length than the others are left out: their model was exchanged under its name.
    """
    filled = {seq: its for seq, its in rows.items() if its}
    if store.index is None and filled:
        store.dimensions = len(next(reversed(filled.values()))[0].vector) // 4
    fitting = {str(seq): its for seq, its in filled.items() if len(its[0].vector) == 4 * store.dimensions}
    if len(fitting) < len(filled):
        log.warning(
            "vector store %s: %d files have vectors of another length and are not found; rebuild it",
            store.store_id,
            len(filled) - len(fitting),
        )
    if store.index is None:
        from perdure.search.index import StoreIndex  # noqa: PLC0415

        return StoreIndex(store.dimensions, fitting.items()) if fitting else None
    for seq in gone | set(rows):
        if str(seq) not in fitting:
            store.index.remove_file(str(seq))
    for name, its in fitting.items():
        store.index.add_file(name, its)
    return store.index
