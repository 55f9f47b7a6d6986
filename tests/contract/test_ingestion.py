"""Ingestion over each database: files are read in the background, through failures, cancels, deletes and crashes.

What reads the bytes and what embeds are played: small, real implementations of their ports. Time stands still but for
what the test skips.
"""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure.blobs import LocalBlobs
from perdure.engine.dispatch import LocalDispatch
from perdure.engine.ingestion import Ingestion, IngestionSettings
from perdure.errors import RunFailure
from perdure.ids import RandomIds
from perdure.models.cuts import TokenCuts
from perdure.search.passages import ExtractFailure, Passage
from perdure.store.db import Database
from perdure.store.file_batches import cancel_batch
from perdure.store.ingestion import claim_file, list_held_files
from perdure.store.vector_store_files import remove_store_file
from perdure.store.vector_stores import delete_vector_store
from tests.contract.engine_scene import PlayedClock
from tests.contract.store_scene import (
    EMBEDDER,
    NOW,
    PROJECT,
    batch_of,
    chunks_kept,
    counts,
    files_of,
    make_file,
    make_store,
    put_batch,
    put_in,
    store_of,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Play = Callable[["Stage"], Awaitable[None]]
LEASE = 30.0
DEADLINE = 20.0


class HandExtractor:
    """Reads text files; one that says `broken` can not be read, one that says `hang` waits for the test."""

    def __init__(self) -> None:
        self.reading: list[str] = []
        self.hanging = asyncio.Event()
        self.read: list[str] = []

    async def extract(self, path: Path, filename: str) -> list[Passage]:
        self.reading.append(filename)
        try:
            text = await asyncio.to_thread(path.read_text, encoding="utf-8")
            if text.startswith("broken"):
                raise ExtractFailure("invalid_file", "It is broken.")
            if text.startswith("bug"):
                raise ZeroDivisionError
            if text.startswith("hang"):
                await self.hanging.wait()
            self.read.append(filename)
            return [Passage(text)]
        finally:
            self.reading.remove(filename)


class HashingEmbeddings:
    """Vectors of four numbers out of a text's hash; as often as `failures` says it fails first."""

    name = EMBEDDER
    dimensions = 4

    def __init__(self) -> None:
        self.failures = 0

    async def embed(self, texts: list[str]) -> list[array[float]]:
        if self.failures:
            self.failures -= 1
            raise RunFailure("The embedding model is away.")
        return [array("f", hashlib.sha256(text.encode()).digest()[:4]) for text in texts]


class Embedders:
    def __init__(self, one: HashingEmbeddings) -> None:
        self.one = one

    def get(self, name: str) -> HashingEmbeddings:
        if name != EMBEDDER:
            raise RunFailure(f"There is no embedding model '{name}'.")
        return self.one


class Stage:
    """A database with one store, blobs in a folder, and ingestions that the test starts and ends."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.blobs = LocalBlobs(folder)
        self.clock = PlayedClock()
        self.extractor = HandExtractor()
        self.embeddings = HashingEmbeddings()
        self.dispatch = LocalDispatch()
        self.ids = RandomIds()

    async def new_file(self, name: str, text: str) -> str:
        async def content() -> AsyncIterator[bytes]:
            yield text.encode()

        await self.blobs.write(f"blob-{name}", content())
        return await make_file(self.database, f"file-{name}", f"{name}.txt", f"blob-{name}")

    async def new_files(self, *texts: str) -> list[str]:
        return [await self.new_file(str(number), text) for number, text in enumerate(texts)]

    def ingestion(self, *, exclusive: bool = True, grace: float = 5.0, concurrency: int = 2) -> Ingestion:
        settings = IngestionSettings(
            concurrency=concurrency, lease_seconds=LEASE, grace_seconds=grace, exclusive=exclusive
        )
        one = Ingestion(
            self.database,
            self.blobs,
            self.extractor,
            Embedders(self.embeddings),
            TokenCuts(),
            self.clock,
            self.ids,
            settings,
        )
        self.dispatch.listen_to_files(one)
        return one

    @asynccontextmanager
    async def running(self, **options: Any) -> AsyncIterator[Ingestion]:
        one = self.ingestion(**options)
        await one.start()
        try:
            yield one
        finally:
            await one.drain()

    async def settled(self, store_id: str = "vs_1") -> None:
        """Wait until no file of the store is in progress."""
        await self.until(lambda: _is_done(self.database, store_id))

    async def until(self, holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not await holds():  # noqa: ASYNC110  # in the database: there is no event to wait for
                await asyncio.sleep(0.01)

    async def until_reading(self, *filenames: str) -> None:
        async def holds() -> bool:
            return set(filenames) <= set(self.extractor.reading)

        await self.until(holds)

    async def until_swept(self, left: int) -> None:
        async def holds() -> bool:
            return await chunks_kept(self.database) == left

        await self.until(holds)


async def _is_done(database: Database, store_id: str) -> bool:
    return (await store_of(database, store_id)).file_counts.in_progress == 0


@pytest.fixture
def play(run: Run, database: Database, tmp_path: Path) -> Callable[[Play], None]:
    async def on_stage(one: Play) -> None:
        stage = Stage(database, tmp_path / "blobs")
        await make_store(database)
        try:
            await one(stage)
        finally:
            await stage.blobs.close()

    return lambda one: run(on_stage(one))


def statuses(files: list[Any]) -> list[str]:
    return [one.status for one in files]


LONG = "The quick brown fox jumps over the lazy dog. " * 400
LONG_CHUNKS = 10


def test_files_are_read_and_one_bad_file_stops_nobody(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        files = await stage.new_files("one", "broken", LONG, "bug", "two")
        async with stage.running():
            await put_batch(stage.database, "vsfb_1", "vs_1", *files)
            stage.dispatch.tell_of_files()
            await stage.settled()
        done = await files_of(stage.database)
        assert statuses(done) == ["completed", "failed", "completed", "failed", "completed"]
        assert [one.last_error.code for one in done if one.last_error] == ["invalid_file", "server_error"]
        batch = await batch_of(stage.database, "vsfb_1")
        assert (counts(batch), batch.status) == ((0, 3, 2, 0, 5), "completed")
        store = await store_of(stage.database)
        assert store.usage_bytes == sum(one.usage_bytes for one in done) > len(LONG)
        assert await chunks_kept(stage.database) == 1 + LONG_CHUNKS + 1

    play(story)


def test_what_nobody_told_of_is_found(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        async with stage.running():
            await put_in(stage.database, "vs_1", await stage.new_file("a", "text"))
            await stage.settled()
        assert statuses(await files_of(stage.database)) == ["completed"]

    play(story)


def test_an_embedding_model_that_is_away_is_waited_for(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        stage.embeddings.failures = 3
        async with stage.running():
            await put_in(stage.database, "vs_1", await stage.new_file("a", "text"))
            await stage.settled()
            stage.embeddings.failures = 1000
            await put_in(stage.database, "vs_1", await stage.new_file("b", "text"))
            await stage.settled()
        first, second = await files_of(stage.database)
        assert first.status == "completed"
        assert second.last_error is not None
        assert (second.last_error.code, second.last_error.message) == ("server_error", "The embedding model is away.")

    play(story)


def test_a_store_whose_embedding_model_is_gone_says_so(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await make_store(stage.database, "vs_other", embedder="other")
        async with stage.running():
            await put_in(stage.database, "vs_other", await stage.new_file("a", "text"))
            await stage.settled("vs_other")
        (one,) = await files_of(stage.database, "vs_other")
        assert one.last_error is not None
        assert one.last_error.message == "There is no embedding model 'other'."

    play(story)


def test_bytes_that_are_gone_fail_the_file(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await stage.new_file("a", "text")
        await stage.blobs.delete("blob-a")
        async with stage.running():
            await put_in(stage.database, "vs_1", "file-a")
            await stage.settled()
        (one,) = await files_of(stage.database)
        assert one.last_error is not None
        assert one.last_error.code == "server_error"

    play(story)


@pytest.mark.parametrize("told", [True, False])
def test_a_cancelled_batch_stops_what_is_read(play: Callable[[Play], None], *, told: bool) -> None:
    async def story(stage: Stage) -> None:
        files = await stage.new_files("hang", "hang", "hang", "hang")
        async with stage.running():
            await put_batch(stage.database, "vsfb_1", "vs_1", *files)
            await stage.until_reading("0.txt", "1.txt")
            _, stopped = await stage.database.run(cancel_batch, "vsfb_1", "vs_1", PROJECT)
            if told:
                stage.dispatch.tell_of_files(stopped)
            await stage.until(lambda: _nothing_read(stage))
        assert statuses(await files_of(stage.database)) == ["cancelled"] * 4
        assert stage.extractor.read == []

    play(story)


async def _nothing_read(stage: Stage) -> bool:
    return not stage.extractor.reading


def test_taking_a_file_out_or_deleting_its_store_ends_the_work(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        first, second = await stage.new_files("hang", "hang")
        await make_store(stage.database, "vs_2")
        async with stage.running():
            await put_in(stage.database, "vs_1", first)
            await put_in(stage.database, "vs_2", second)
            await stage.until_reading("0.txt", "1.txt")
            stage.dispatch.tell_of_files(await stage.database.run(remove_store_file, first, "vs_1", PROJECT, NOW))
            stage.dispatch.tell_of_files(await stage.database.run(delete_vector_store, "vs_2", PROJECT, NOW))
            await stage.until(lambda: _nothing_read(stage))
            await put_in(stage.database, "vs_1", await stage.new_file("next", "text"))
            await stage.settled()
        assert statuses(await files_of(stage.database)) == ["completed"]

    play(story)


def test_what_is_in_work_at_shutdown_goes_back_into_the_line(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        files = await stage.new_files("hang", LONG)
        await put_in(stage.database, "vs_1", *files)
        for _ in range(4):  # more often than a file may crash
            async with stage.running(grace=0.0):
                await stage.until_reading("0.txt")
        assert (await files_of(stage.database))[0].status == "in_progress"
        stage.extractor.hanging.set()
        async with stage.running():
            await stage.settled()
            await stage.until_swept(1 + LONG_CHUNKS)
        assert statuses(await files_of(stage.database)) == ["completed", "completed"]

    play(story)


def test_what_a_dead_process_held_is_taken_up_at_the_start(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        files = await stage.new_files(LONG, "text")
        await put_in(stage.database, "vs_1", *files)
        for _ in files:
            assert await stage.database.run(claim_file, "worker_dead", stage.clock.now() + LEASE) is not None
        async with stage.running():
            await stage.settled()
            await stage.until_swept(1 + LONG_CHUNKS)
        assert statuses(await files_of(stage.database)) == ["completed", "completed"]

    play(story)


def test_what_another_process_dropped_is_taken_when_its_lease_lapses(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await put_in(stage.database, "vs_1", await stage.new_file("a", "text"))
        assert await stage.database.run(claim_file, "worker_dead", stage.clock.now() + LEASE) is not None
        async with stage.running(exclusive=False):
            await put_in(stage.database, "vs_1", await stage.new_file("b", "text"))

            async def second_is_done() -> bool:
                return statuses(await files_of(stage.database))[1] == "completed"

            await stage.until(second_is_done)
            assert statuses(await files_of(stage.database))[0] == "in_progress"
            stage.clock.skip(LEASE + 1)
            await stage.settled()
        assert statuses(await files_of(stage.database)) == ["completed", "completed"]

    play(story)


def test_a_file_that_kills_its_process_three_times_is_given_up(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await put_in(stage.database, "vs_1", await stage.new_file("a", "text"))
        for _ in range(3):
            assert await stage.database.run(claim_file, "worker_dead", 0.0) is not None
            async with stage.running(exclusive=False, concurrency=0):
                await stage.until(lambda: _nobody_holds(stage.database))
        (one,) = await files_of(stage.database)
        assert one.last_error is not None
        assert "3 times" in one.last_error.message

    play(story)


async def _nobody_holds(database: Database) -> bool:
    return not await database.read(list_held_files, None)


def test_a_worker_that_lost_its_lease_writes_nothing(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await put_in(stage.database, "vs_1", await stage.new_file("a", "hang"))
        async with stage.running(exclusive=False), stage.running(exclusive=False) as other:
            await stage.until_reading("a.txt")
            assert len(stage.extractor.reading) == 1
            del other
            stage.clock.skip(LEASE * 10)
            await asyncio.sleep(0.2)
            stage.extractor.hanging.set()
            await stage.settled()
            await stage.until_swept(1)
        (one,) = await files_of(stage.database)
        assert one.status == "completed"
        assert counts(await store_of(stage.database)) == (0, 1, 0, 0, 1)

    play(story)


def test_an_expired_store_is_emptied(play: Callable[[Play], None]) -> None:
    async def story(stage: Stage) -> None:
        await make_store(stage.database, "vs_7", days=7)
        first, second = await stage.new_files("text", "hang")
        async with stage.running():
            await put_in(stage.database, "vs_7", first, second)
            await stage.until_reading("1.txt")
            await stage.until_swept(1)
            stage.clock.skip(7 * 86400)
            await stage.until(lambda: _nothing_read(stage))
            await stage.until_swept(0)
        store = await store_of(stage.database, "vs_7", stage.clock.now())
        assert (store.status, counts(store)) == ("expired", (0, 1, 0, 1, 2))

    play(story)
