"""Operations on vector stores over each database: counts that are always exact, fences, places in lists, expiry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.errors import InvalidRequest, NotFound
from perdure.store.chunks import LiveFile, StoredVector, list_texts, list_vectors, read_snapshot, sweep_chunks
from perdure.store.db import Database
from perdure.store.file_batches import cancel_batch, list_files_of_batch
from perdure.store.ingestion import (
    FileClaim,
    FileLost,
    append_chunks,
    claim_file,
    complete_file,
    expire_store,
    fail_file,
    list_held_files,
    rebuild_store,
    recover_file,
    release_file,
    renew_file_leases,
)
from perdure.store.vector_store_files import list_store_files, remove_from_stores, remove_store_file, update_attributes
from perdure.store.vector_stores import (
    delete_vector_store,
    get_store_row,
    list_overdue_stores,
    list_vector_stores,
    touch_stores,
    update_vector_store,
)
from perdure.wire.page import PageQuery
from perdure.wire.tools import StaticChunking, StaticChunkingStrategy
from perdure.wire.vector_stores import FileError, ModifyVectorStore
from tests.contract.store_scene import (
    NOW,
    PROJECT,
    a_chunk,
    batch_of,
    chunks_kept,
    counts,
    files_of,
    make_file,
    make_files,
    make_store,
    put_batch,
    put_in,
    store_of,
)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
SMALL = StaticChunkingStrategy(static=StaticChunking(max_chunk_size_tokens=100, chunk_overlap_tokens=0))
BROKEN = FileError(code="invalid_file", message="It is broken.")
DAY = 86400
UNTIL = float(NOW + 30)


async def claim(database: Database) -> FileClaim:
    found = await database.run(claim_file, "worker_1", UNTIL)
    assert found is not None
    return found


async def complete(database: Database, chunks: int = 2) -> FileClaim:
    one = await claim(database)
    await database.run(append_chunks, one.hold, [a_chunk(number) for number in range(chunks)])
    await database.run(complete_file, one.hold, 100 * chunks)
    return one


async def live_files(database: Database) -> list[LiveFile]:
    snapshot = await database.read(read_snapshot, "vs_1")
    assert snapshot is not None
    return snapshot.files


async def sweep(database: Database) -> None:
    while await database.run(sweep_chunks):
        pass


def test_counts_follow_every_move(database: Database, run: Run) -> None:
    async def story() -> None:
        first, second, third, fourth = await make_files(database, 4)
        await make_store(database)
        assert (await store_of(database)).status == "completed"
        await put_in(database, "vs_1", first)
        batch = await put_batch(database, "vsfb_1", "vs_1", second, third, fourth)
        assert counts(batch) == (3, 0, 0, 0, 3)
        assert (counts(await store_of(database)), (await store_of(database)).status) == ((4, 0, 0, 0, 4), "in_progress")
        await complete(database)
        await database.run(fail_file, (await claim(database)).hold, BROKEN)
        assert counts(await store_of(database)) == (2, 1, 1, 0, 4)
        assert counts(await batch_of(database, "vsfb_1")) == (2, 0, 1, 0, 3)
        await complete(database)
        await complete(database)
        done = await store_of(database)
        assert (counts(done), done.status, done.usage_bytes) == ((0, 3, 1, 0, 4), "completed", 600)
        batch = await batch_of(database, "vsfb_1")
        assert (counts(batch), batch.status) == ((0, 2, 1, 0, 3), "completed")
        assert [(one.status, one.last_error) for one in await files_of(database)] == [
            ("completed", None),
            ("failed", BROKEN),
            ("completed", None),
            ("completed", None),
        ]

    run(story())


def test_a_cancelled_batch_ends_at_once_and_its_worker_can_write_nothing_more(database: Database, run: Run) -> None:
    async def story() -> None:
        ids = await make_files(database, 3)
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *ids)
        await complete(database)
        held = await claim(database)
        await database.run(append_chunks, held.hold, [a_chunk(0)])
        batch, stopped = await database.run(cancel_batch, "vsfb_1", "vs_1", PROJECT)
        assert (batch.status, counts(batch), stopped) == ("cancelled", (0, 1, 0, 2, 3), [held.hold.seq])
        assert await batch_of(database, "vsfb_1") == batch
        assert counts(await store_of(database)) == (0, 1, 0, 2, 3)
        with pytest.raises(FileLost):
            await database.run(append_chunks, held.hold, [a_chunk(1)])
        with pytest.raises(FileLost):
            await database.run(complete_file, held.hold, 1)
        with pytest.raises(FileLost):
            await database.run(fail_file, held.hold, BROKEN)
        assert await database.run(claim_file, "worker_1", UNTIL) is None
        await sweep(database)
        assert await chunks_kept(database) == 2
        again, stopped = await database.run(cancel_batch, "vsfb_1", "vs_1", PROJECT)
        assert (again, stopped) == (batch, [])

    run(story())


def test_a_batch_that_is_done_can_not_be_cancelled(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *await make_files(database, 1))
        await complete(database)
        batch, stopped = await database.run(cancel_batch, "vsfb_1", "vs_1", PROJECT)
        assert (batch.status, stopped) == ("completed", [])

    run(story())


def test_a_file_stands_once_in_a_store(database: Database, run: Run) -> None:
    async def story() -> None:
        first, second = await make_files(database, 2)
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", first, second, first)
        await complete(database)
        await complete(database)
        version = (await database.read(get_store_row, "vs_1", PROJECT)).version
        batch = await put_batch(database, "vsfb_2", "vs_1", first, attributes={"k": 1})
        assert (counts(batch), batch.status) == ((0, 1, 0, 0, 1), "completed")
        assert counts(await batch_of(database, "vsfb_1")) == (0, 1, 0, 0, 1)
        assert [one.attributes for one in await files_of(database)] == [{"k": 1}, {}]
        assert (await database.read(get_store_row, "vs_1", PROJECT)).version == version + 1
        await put_in(database, "vs_1", first)
        assert [one.attributes for one in await files_of(database)] == [{"k": 1}, {}]
        assert counts(await store_of(database)) == (0, 2, 0, 0, 2)

    run(story())


def test_other_chunks_and_failed_files_are_read_again(database: Database, run: Run) -> None:
    async def story() -> None:
        first, second = await make_files(database, 2)
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", first, second)
        await complete(database, chunks=3)
        await database.run(fail_file, (await claim(database)).hold, BROKEN)
        added = await put_in(database, "vs_1", first, second, chunking=SMALL)
        assert [(one.status, one.last_error, one.usage_bytes) for one in added.files] == [("in_progress", None, 0)] * 2
        assert (await store_of(database)).usage_bytes == 0
        assert counts(await batch_of(database, "vsfb_1")) == (2, 0, 0, 0, 2)
        assert await live_files(database) == []
        one = await complete(database, chunks=1)
        await sweep(database)
        assert await chunks_kept(database) == 1
        assert one.chunking == SMALL.static
        assert await database.read(list_texts, one.hold.seq, one.hold.attempt) == ["text"]

    run(story())


def test_work_on_a_file_that_is_to_be_cut_otherwise_is_stopped(database: Database, run: Run) -> None:
    async def story() -> None:
        (only,) = await make_files(database, 1)
        await make_store(database)
        await put_in(database, "vs_1", only)
        held = await claim(database)
        assert (await put_in(database, "vs_1", only)).stopped == []
        assert (await put_in(database, "vs_1", only, chunking=SMALL)).stopped == [held.hold.seq]
        with pytest.raises(FileLost):
            await database.run(complete_file, held.hold, 1)
        assert counts(await store_of(database)) == (1, 0, 0, 0, 1)

    run(story())


def test_chunks_come_back_as_they_were_written(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_in(database, "vs_1", *await make_files(database, 1))
        held = await claim(database)
        written = [a_chunk(number, f"text {number} 한국어 \0") for number in range(70)]
        await database.run(append_chunks, held.hold, written[:40])
        await database.run(append_chunks, held.hold, written[40:])
        await database.run(complete_file, held.hold, 1)
        read = await database.read(list_vectors, held.hold.seq, held.hold.attempt, 9, 100)
        assert read == [StoredVector(one.number, one.vector, one.terms) for one in written[10:]]
        texts = await database.read(list_texts, held.hold.seq, held.hold.attempt)
        assert texts[10] == "text 10 한국어 \N{REPLACEMENT CHARACTER}"

    run(story())


def test_few_files_go_before_many(database: Database, run: Run) -> None:
    async def story() -> None:
        many, few = await make_files(database, 11, "many"), await make_files(database, 1, "few")
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *many)
        await put_in(database, "vs_1", *few)
        assert (await claim(database)).file_id == "few-0"
        assert (await claim(database)).file_id == "many-0"

    run(story())


def test_two_workers_never_claim_the_same_file(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *await make_files(database, 20))
        claims = await asyncio.gather(*(database.run(claim_file, f"worker_{one}", UNTIL) for one in range(20)))
        taken = [one.hold.seq for one in claims if one is not None]
        while (one := await database.run(claim_file, "worker_x", UNTIL)) is not None:
            taken.append(one.hold.seq)
        assert len(taken) == len(set(taken)) == 20

    run(story())


def test_leases_lapse_and_files_go_back_into_the_line(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_in(database, "vs_1", *await make_files(database, 1))
        for times in (1, 2, 3):
            held = await claim(database)
            await database.run(append_chunks, held.hold, [a_chunk(0)])
            assert await database.run(renew_file_leases, [held.hold], UNTIL) == set()
            assert await database.read(list_held_files, UNTIL) == []
            assert await database.read(list_held_files, UNTIL + 1) == [held.hold.seq]
            assert not await database.run(recover_file, held.hold.seq, UNTIL, 3)
            assert await database.run(recover_file, held.hold.seq, UNTIL + 1, 3)
            assert not await database.run(recover_file, held.hold.seq, None, 3)
            assert await database.run(renew_file_leases, [held.hold], UNTIL) == {held.hold.seq}
            assert (await files_of(database))[0].status == ("in_progress" if times < 3 else "failed")
        error = (await files_of(database))[0].last_error
        assert error is not None
        assert error.code == "server_error"
        assert "interrupted 3 times" in error.message
        assert counts(await store_of(database)) == (0, 0, 1, 0, 1)
        await sweep(database)
        assert await chunks_kept(database) == 0

    run(story())


def test_a_file_that_was_let_go_is_no_crash(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_in(database, "vs_1", *await make_files(database, 1))
        for _ in range(5):
            held = await claim(database)
            await database.run(append_chunks, held.hold, [a_chunk(0)])
            await database.run(release_file, held.hold)
            with pytest.raises(FileLost):
                await database.run(release_file, held.hold)
        await complete(database)
        await sweep(database)
        assert await chunks_kept(database) == 2

    run(story())


def test_an_unknown_file_adds_nothing(database: Database, run: Run) -> None:
    async def story() -> None:
        (there,) = await make_files(database, 1)
        await make_file(database, "file-foreign", project="proj_other")
        await make_store(database)
        for unknown in ("file-none", "file-foreign"):
            with pytest.raises(NotFound, match=f"No such File object: {unknown}"):
                await put_batch(database, "vsfb_1", "vs_1", there, unknown)
        with pytest.raises(NotFound, match=r"Vector store with id \[vs_none\] not found."):
            await put_in(database, "vs_none", there)
        assert counts(await store_of(database)) == (0, 0, 0, 0, 0)
        with pytest.raises(NotFound):
            await batch_of(database, "vsfb_1")

    run(story())


def test_taking_files_out(database: Database, run: Run) -> None:
    async def story() -> None:
        first, second, third = await make_files(database, 3)
        await make_store(database)
        await make_store(database, "vs_2")
        await put_batch(database, "vsfb_1", "vs_1", first, second, third)
        await complete(database)
        held = await claim(database)
        assert await database.run(remove_store_file, first, "vs_1", PROJECT, NOW) == []
        assert await database.run(remove_store_file, second, "vs_1", PROJECT, NOW) == [held.hold.seq]
        with pytest.raises(NotFound):
            await database.run(remove_store_file, second, "vs_1", PROJECT, NOW)
        with pytest.raises(FileLost):
            await database.run(complete_file, held.hold, 1)
        left = await store_of(database)
        assert (counts(left), left.usage_bytes) == ((1, 0, 0, 0, 1), 0)
        assert counts(await batch_of(database, "vsfb_1")) == (1, 0, 0, 0, 1)
        await put_in(database, "vs_2", third)
        await database.run(remove_from_stores, third, PROJECT, NOW)
        for store_id in ("vs_1", "vs_2"):
            assert counts(await store_of(database, store_id)) == (0, 0, 0, 0, 0)
        await sweep(database)
        assert await chunks_kept(database) == 0

    run(story())


def test_lists_keep_the_places_of_files_that_come_and_go(database: Database, run: Run) -> None:
    async def after(cursor: str, status: Any = None) -> list[str | None]:
        query = PageQuery(order="asc", after=cursor)
        in_store = await database.read(list_store_files, "vs_1", PROJECT, query, status)
        in_batch = await database.read(list_files_of_batch, "vsfb_1", "vs_1", PROJECT, query, status)
        assert in_store.data == in_batch.data
        return [in_store.first_id, in_store.last_id]

    async def story() -> None:
        first, second, third, fourth = await make_files(database, 4)
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", first, second, third, fourth)
        assert await after(first) == [second, fourth]
        await database.run(remove_store_file, second, "vs_1", PROJECT, NOW)
        assert await after(second) == [third, fourth]
        await database.run(remove_store_file, fourth, "vs_1", PROJECT, NOW)
        await put_batch(database, "vsfb_1b", "vs_1", second)
        await database.run(remove_store_file, second, "vs_1", PROJECT, NOW)
        assert (await database.read(list_store_files, "vs_1", PROJECT, PageQuery(after=second), None)).first_id == third
        await complete(database)
        assert await after(first, "completed") == [None, None]
        assert await after(first, "in_progress") == [third, third]
        with pytest.raises(InvalidRequest):
            await after("file-none")

    run(story())


def test_attributes_are_replaced(database: Database, run: Run) -> None:
    async def story() -> None:
        (only,) = await make_files(database, 1)
        await make_store(database)
        await put_in(database, "vs_1", only, attributes={"a": 1, "b": True, "c": 1.5, "d": "x"})
        await complete(database)
        live = (await live_files(database))[0]
        changed = await database.run(update_attributes, only, "vs_1", PROJECT, {"e": 2})
        assert changed.attributes == {"e": 2}
        again = (await live_files(database))[0]
        assert (again.attempt, again.changed) == (live.attempt, live.changed + 1)

    run(story())


def test_a_store_expires_at_once_and_is_emptied_later(database: Database, run: Run) -> None:
    async def story() -> None:
        first, second = await make_files(database, 2)
        await make_store(database, days=1)
        await put_in(database, "vs_1", first, second)
        await complete(database)
        held = await claim(database)
        over = NOW + DAY
        assert (await store_of(database, now=over - 1)).status == "in_progress"
        assert (await store_of(database, now=over)).status == "expired"
        page = await database.read(list_vector_stores, PROJECT, PageQuery(), over)
        assert b'"status":"expired"' in bytes(page.data[0])
        with pytest.raises(InvalidRequest, match="has expired"):
            await database.run(rebuild_store, "vs_1", PROJECT, "other", over)
        assert await database.read(list_overdue_stores, over - 1) == []
        assert await database.read(list_overdue_stores, over) == ["vs_1"]
        assert await database.run(expire_store, "vs_1", over) == [held.hold.seq]
        assert await database.run(expire_store, "vs_1", over) == []
        assert await database.read(list_overdue_stores, over) == []
        await sweep(database)
        store = await store_of(database, now=over)
        assert (counts(store), store.usage_bytes, store.expires_at) == ((0, 1, 0, 1, 2), 0, over)
        assert await chunks_kept(database) == 0
        assert [one.id for one in await files_of(database)] == [first, second]
        await database.run(remove_store_file, first, "vs_1", PROJECT, over)
        assert (await store_of(database, now=over)).usage_bytes == 0

    run(story())


def test_use_moves_the_expiry(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database, days=1)
        await make_store(database, "vs_2")
        await database.run(touch_stores, ["vs_1", "vs_2", "vs_none"], NOW + 59)
        assert (await store_of(database)).last_active_at == NOW
        await database.run(touch_stores, ["vs_1", "vs_2", "vs_none"], NOW + 60)
        store = await store_of(database)
        assert (store.last_active_at, store.expires_at) == (NOW + 60, NOW + 60 + DAY)
        assert (await store_of(database, "vs_2")).expires_at is None
        await database.run(touch_stores, ["vs_1"], NOW + 3 * DAY)
        assert (await store_of(database, now=NOW + 3 * DAY)).status == "expired"
        changed = await database.run(update_vector_store, "vs_2", PROJECT, ModifyVectorStore(name=None), NOW)
        assert changed.name == ""

    run(story())


def test_a_deleted_store_takes_all_with_it(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *await make_files(database, 3))
        await complete(database)
        held = await claim(database)
        assert await database.run(delete_vector_store, "vs_1", PROJECT, NOW) == [held.hold.seq]
        with pytest.raises(FileLost):
            await database.run(append_chunks, held.hold, [a_chunk(0)])
        with pytest.raises(FileLost):
            await database.run(complete_file, held.hold, 1)
        assert not await database.run(recover_file, held.hold.seq, None, 3)
        with pytest.raises(NotFound):
            await database.run(delete_vector_store, "vs_1", PROJECT, NOW)
        await sweep(database)
        assert (await chunks_kept(database), await files_of(database)) == (0, [])

    run(story())


def test_a_rebuild_reads_everything_again(database: Database, run: Run) -> None:
    async def story() -> None:
        await make_store(database)
        await put_in(database, "vs_1", *await make_files(database, 3))
        await complete(database)
        await database.run(fail_file, (await claim(database)).hold, BROKEN)
        held = await claim(database)
        store, stopped = await database.run(rebuild_store, "vs_1", PROJECT, "other", NOW)
        assert (counts(store), stopped) == ((3, 0, 0, 0, 3), [held.hold.seq])
        for _ in range(3):
            assert (await complete(database, chunks=1)).embedder == "other"
        await sweep(database)
        assert (await store_of(database)).usage_bytes == 300
        assert await chunks_kept(database) == 3

    run(story())


def test_moves_at_once_lose_no_count(database: Database, run: Run) -> None:
    async def story() -> None:
        ids = await make_files(database, 30)
        await make_store(database)
        await put_batch(database, "vsfb_1", "vs_1", *ids[:15])
        await put_batch(database, "vsfb_2", "vs_1", *ids[15:])
        claims = [await claim(database) for _ in ids]
        ends = [
            database.run(complete_file, one.hold, 10) if index % 3 else database.run(fail_file, one.hold, BROKEN)
            for index, one in enumerate(claims)
        ]
        removals = [database.run(remove_store_file, one, "vs_1", PROJECT, NOW) for one in ids[::10]]
        await asyncio.gather(*ends, *removals, return_exceptions=True)
        files = await files_of(database)
        tally = {status: sum(one.status == status for one in files) for status in ("completed", "failed")}
        store = await store_of(database)
        assert counts(store) == (0, tally["completed"], tally["failed"], 0, 27)
        assert store.usage_bytes == 10 * tally["completed"]
        batches = [counts(await batch_of(database, one)) for one in ("vsfb_1", "vsfb_2")]
        assert tuple(map(sum, zip(*batches, strict=True))) == counts(store)

    run(story())
