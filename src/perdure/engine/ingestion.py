"""Ingestion: files of vector stores are read, cut, embedded and stored, in the background and through every restart.

Rules. A file is worked only under a claim, and every write carries its attempt number. Recovery puts a file back into
the line and never works it in place. A file that gives nothing ends `failed`, in words for whoever added it, and never
holds up another one. A store that does not answer is waited for; so is an embedding model, for a while.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, ParamSpec, Protocol, TypeVar

import msgspec

from perdure.blobs import Blobs
from perdure.engine.rounds import Rounds
from perdure.errors import RunFailure, Unavailable
from perdure.ids import Clock, Ids
from perdure.search.chunk import Chunk, Tokenizer, chunk_passages
from perdure.search.passages import ExtractFailure, Passage
from perdure.search.terms import pack_terms
from perdure.store.chunks import StoredChunk, has_dead_chunks, sweep_chunks
from perdure.store.db import Database
from perdure.store.ingestion import (
    FileClaim,
    FileHold,
    FileLost,
    append_chunks,
    claim_file,
    complete_file,
    expire_store,
    fail_file,
    has_waiting_files,
    list_held_files,
    recover_file,
    release_file,
    renew_file_leases,
)
from perdure.store.vector_stores import list_overdue_stores
from perdure.tools.vector_search import Embedders, Embeddings
from perdure.wire.vector_stores import FileError, FileErrorCode

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("perdure.ingestion")

LOOK_SECONDS = 1.0
"""How often the line and the clocks are looked at where no hint came."""
MOST_RECOVERIES = 3
SLICE = 256
"""Chunks that are embedded and stored at once."""
PATIENCE_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Waits between tries of what may come back: the place of the bytes, the embedding model."""
UNKNOWN_FAULT = "The server failed while it read this file; its log says why. Add the file again when that is mended."
DELETED = "The file was deleted."


class Extractor(Protocol):
    """Reads files."""

    async def extract(self, path: Path, filename: str) -> list[Passage]:
        """Return the text of a file. Raises ExtractFailure."""
        ...


class IngestionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ingestion must know. Durations in seconds."""

    concurrency: int
    lease_seconds: float
    grace_seconds: float
    exclusive: bool
    """No other process can hold files of this store: what is held at the start was dropped."""


class _Failed(Exception):
    """The file gives nothing; `error` becomes its `last_error`."""

    def __init__(self, code: FileErrorCode, message: str) -> None:
        super().__init__(message)
        self.error = FileError(code=code, message=message)


class _InWork(msgspec.Struct):
    """A file in work, and why its work was stopped if it was."""

    hold: FileHold
    work: asyncio.Task[None]
    stopped: Literal["lost", "drained"] | None = None

    def stop(self, why: Literal["lost", "drained"]) -> None:
        if self.stopped is None:
            self.stopped = why
            self.work.cancel()


class Ingestion:
    """Works files. `files_wait` and `files_stopped` are its ears (`dispatch.FileListener`)."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        extractor: Extractor,
        embedders: Embedders,
        tokenizer: Tokenizer,
        clock: Clock,
        ids: Ids,
        settings: IngestionSettings,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._extractor = extractor
        self._embedders = embedders
        self._tokenizer = tokenizer
        self._clock = clock
        self._settings = settings
        self._worker_id = ids.new("worker")
        self._held: dict[int, _InWork] = {}
        self._places: set[asyncio.Task[None]] = set()
        self._rounds = Rounds(clock, log, "ingestion")
        self._behind = False  # more files may wait than there were free places
        self._draining = False

    # -- life

    async def start(self) -> None:
        """Recover what a dead process left, then work until `drain`. Raises Unavailable."""
        if self._settings.exclusive:
            await self._recover(None)
        self._rounds.begin(
            (self._look, LOOK_SECONDS), (self._renew, self._settings.lease_seconds / 3), (self._tidy, LOOK_SECONDS)
        )

    async def drain(self) -> None:
        """Claim nothing more, give files in work their grace, then put the rest back into the line."""
        self._draining = True
        if self._places:
            await asyncio.wait(self._places, timeout=self._settings.grace_seconds)
        for one in list(self._held.values()):
            one.stop("drained")
        if self._places:
            await asyncio.wait(self._places, timeout=self._settings.lease_seconds)
        for place in self._places:
            place.cancel()
        if self._places:
            await asyncio.wait(self._places)
        await self._rounds.end()

    # -- hints

    def files_wait(self) -> None:
        """Take files at once if there are free places."""
        if self._has_place():
            self._take()
        else:
            self._behind = True

    def files_stopped(self, seqs: Sequence[int]) -> None:
        """Stop work on files that were cancelled, taken out of their store or put into the line again."""
        for seq in seqs:
            if (one := self._held.get(seq)) is not None:
                one.stop("lost")

    # -- claims

    def _has_place(self) -> bool:
        return not self._draining and len(self._places) < self._settings.concurrency

    def _take(self) -> None:
        place = asyncio.get_running_loop().create_task(self._work_line())
        self._places.add(place)
        place.add_done_callback(self._let_go)

    def _let_go(self, place: asyncio.Task[None]) -> None:
        self._places.discard(place)
        if not place.cancelled() and (fault := place.exception()) is not None:
            log.error("a file could not be worked", exc_info=fault)
        elif self._behind and self._has_place():
            self._behind = False
            self._take()

    async def _work_line(self) -> None:
        """Work one file after the other until none waits."""
        while not self._draining:
            claim = await self._claim()
            if claim is None:
                return
            if self._has_place():  # where one waited more may
                self._take()
            await self._hold(claim)

    async def _claim(self) -> FileClaim | None:
        try:
            return await self._database.run(
                claim_file, self._worker_id, self._clock.now() + self._settings.lease_seconds
            )
        except Unavailable as error:
            log.warning("no file can be claimed: %s", error.message)
            return None

    async def _look(self) -> None:
        """Find files that nobody told of."""
        if self._has_place() and await self._database.read(has_waiting_files) and self._has_place():
            self._take()

    # -- work

    async def _hold(self, claim: FileClaim) -> None:
        """Work a file until it has ended or its work is stopped."""
        hold = claim.hold
        work = asyncio.get_running_loop().create_task(self._work(claim))
        one = self._held[hold.seq] = _InWork(hold, work)
        try:
            await asyncio.wait((work,))
        finally:
            work.cancel()
            if self._held.get(hold.seq) is one:
                del self._held[hold.seq]
        if not work.cancelled():
            work.result()
        elif one.stopped == "drained":
            await self._release(claim)

    async def _release(self, claim: FileClaim) -> None:
        try:
            await self._database.run(release_file, claim.hold)
            log.info("file %s of %s went back into the line", claim.file_id, claim.store_id)
        except FileLost:
            log.info("file %s of %s had ended already", claim.file_id, claim.store_id)
        except Unavailable as error:
            log.warning("file %s of %s is left for recovery: %s", claim.file_id, claim.store_id, error.message)

    async def _work(self, claim: FileClaim) -> None:
        try:
            try:
                await self._ingest(claim)
            except _Failed as failed:
                await self._fail(claim, failed.error)
            except ExtractFailure as failure:
                await self._fail(claim, FileError(code=failure.code, message=failure.message))
            except FileLost:
                raise
            except Exception:
                log.exception("file %s of %s: a bug, the file ends failed", claim.file_id, claim.store_id)
                await self._fail(claim, FileError(code="server_error", message=UNKNOWN_FAULT))
        except FileLost:
            log.info("file %s of %s: another attempt has it, or it is gone", claim.file_id, claim.store_id)

    async def _fail(self, claim: FileClaim, error: FileError) -> None:
        log.info("file %s of %s failed: %s", claim.file_id, claim.store_id, error.message)
        await self._persist(lambda: self._database.run(fail_file, claim.hold, error))

    async def _ingest(self, claim: FileClaim) -> None:
        embedder = self._embedder(claim.embedder)
        passages = await self._read(claim)
        sizes = claim.chunking
        chunks = await asyncio.to_thread(
            chunk_passages, passages, sizes.max_chunk_size_tokens, sizes.chunk_overlap_tokens, self._tokenizer
        )
        usage_bytes = 0
        for first in range(0, len(chunks), SLICE):
            piece = chunks[first : first + SLICE]
            vectors = await self._patiently(embedder.embed, [chunk.text for chunk in piece])
            stored = await asyncio.to_thread(_stored, first, piece, vectors)
            usage_bytes += sum(one.weight for one in stored)
            await self._append(claim.hold, stored)
        await self._persist(lambda: self._database.run(complete_file, claim.hold, usage_bytes))

    def _embedder(self, name: str) -> Embeddings:
        try:
            return self._embedders.get(name)
        except RunFailure as failure:
            raise _Failed("server_error", failure.message) from None

    async def _read(self, claim: FileClaim) -> list[Passage]:
        """Return the text of the file. Raises ExtractFailure and _Failed."""
        if claim.blob is None:
            raise _Failed("server_error", DELETED)
        blob = claim.blob

        async def read() -> list[Passage]:
            async with self._blobs.local_copy(blob) as path:
                return await self._extractor.extract(path, claim.filename)

        return await self._patiently(read)

    async def _patiently(self, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Ask for something that may be away for a while. Raises _Failed when it stays away."""
        for seconds in (*PATIENCE_SECONDS, None):
            try:
                return await ask(*args, **kwargs)
            except (Unavailable, RunFailure) as error:
                if seconds is None:
                    raise _Failed("server_error", error.message) from error
                log.warning("a file waits %g seconds: %s", seconds, error.message)
            except OSError as error:
                raise _Failed("server_error", f"The bytes of this file can not be read: {error.strerror}.") from error
            await self._clock.sleep(seconds)
        raise AssertionError  # the last try returned or raised

    async def _append(self, hold: FileHold, chunks: list[StoredChunk]) -> None:
        await self._persist(lambda: self._database.run(append_chunks, hold, chunks))

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write, and wait for a store that does not answer: work is stopped when the lease is lost. Raises FileLost."""
        while True:
            try:
                return await write()
            except Unavailable as error:
                log.warning("a file waits for the store: %s", error.message)
            await self._clock.sleep(LOOK_SECONDS)

    # -- rounds

    async def _renew(self) -> None:
        """Extend the leases, and stop work on what was taken away."""
        holds = [one.hold for one in self._held.values()]
        if not holds:
            return
        lost = await self._database.run(renew_file_leases, holds, self._clock.now() + self._settings.lease_seconds)
        for hold in holds:
            one = self._held.get(hold.seq)
            if hold.seq in lost and one is not None and one.hold == hold:
                one.stop("lost")

    async def _tidy(self) -> None:
        """Recover lapsed leases, write down which stores have expired, and delete chunks that nobody needs."""
        now = self._clock.now()
        await self._recover(now)
        for store_id in await self._database.read(list_overdue_stores, int(now)):
            self.files_stopped(await self._database.run(expire_store, store_id, int(now)))
        while await self._database.read(has_dead_chunks) and await self._database.run(sweep_chunks):
            pass

    async def _recover(self, lapsed_before: float | None) -> None:
        for seq in await self._database.read(list_held_files, lapsed_before):
            if seq in self._held:  # in work here: the next renewal mends the lease, or finds it lost
                continue
            if await self._database.run(recover_file, seq, lapsed_before, MOST_RECOVERIES):
                log.warning("file %d of a vector store was dropped by its worker", seq)


def _stored(first: int, chunks: Sequence[Chunk], vectors: Sequence[array[float]]) -> list[StoredChunk]:
    """Return chunks as they are kept, numbered from `first`."""
    return [
        StoredChunk(first + index, chunk.page, chunk.tokens, chunk.text, _packed(vector), pack_terms(chunk.text))
        for index, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True))
    ]


def _packed(vector: array[float]) -> bytes:
    """Return single-precision numbers, little-endian whatever the machine is."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return vector.tobytes()
