"""Files, uploads and their housekeeping on each database, under a clock that the test sets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.blobs import LocalBlobs, new_blob_name
from perdure.domain.creation import new_assistant, new_thread
from perdure.engine.housekeeping import COMPLETION_SECONDS, REMEMBERED_SECONDS, Housekeeping
from perdure.errors import InvalidRequest, NotFound
from perdure.ids import RandomIds, new_file_id, new_hex_id
from perdure.store.assistants import get_assistant, insert_assistant, update_assistant
from perdure.store.db import Database, Operation, Rows
from perdure.store.files import (
    check_files,
    delete_file,
    find_orphans,
    get_file,
    get_file_body,
    insert_file,
    list_files,
)
from perdure.store.keys import DEFAULT_PROJECT
from perdure.store.threads import delete_thread, get_thread_body, insert_thread, update_thread
from perdure.store.uploads import (
    cancel_upload,
    complete_upload,
    insert_part,
    insert_upload,
    read_assembly,
)
from perdure.wire.assistants import CreateAssistant, ModifyAssistant
from perdure.wire.files import File, StoredFile
from perdure.wire.page import PageQuery
from perdure.wire.threads import CreateThread, ModifyThread
from perdure.wire.tools import CodeInterpreterResources, ToolResources
from perdure.wire.uploads import LIFE_SECONDS, StoredPart, Upload, UploadPart
from tests.contract.conftest import Run

NOW = 1_800_000_000
IDS = RandomIds()


class SetClock:
    """A clock that stands where the test sets it."""

    def __init__(self) -> None:
        self.time = float(NOW)

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def blobs(tmp_path: Path, run: Run[Any]) -> Iterator[LocalBlobs]:
    opened = LocalBlobs(tmp_path / "files")
    yield opened
    run(opened.close())


@pytest.fixture
def keeper(database: Database, blobs: LocalBlobs, clock: SetClock) -> Housekeeping:
    return Housekeeping(database, blobs, clock, orphan_seconds=3600)


def file_row(*, purpose: Any = "assistants", expires_at: int | None = None, blob: str = "") -> StoredFile:
    file = File(id=new_file_id(IDS), purpose=purpose, filename="a", bytes=1, created_at=NOW, expires_at=expires_at)
    return StoredFile(file, DEFAULT_PROJECT, blob or new_blob_name(IDS), "0" * 64)


def upload_row(size: int = 1) -> Upload:
    return Upload(
        id=new_hex_id(IDS, "upload"),
        bytes=size,
        created_at=NOW,
        filename="a",
        purpose="batch",
        status="pending",
        expires_at=NOW + LIFE_SECONDS,
    )


def part_row(upload_id: str, size: int = 1, blob: str = "") -> StoredPart:
    part = UploadPart(id=new_hex_id(IDS, "part"), created_at=NOW, upload_id=upload_id)
    return StoredPart(part, size, blob or new_blob_name(IDS))


async def some_bytes() -> AsyncIterator[bytes]:
    yield b"x"


async def listed(database: Database, now: int = NOW, purpose: str | None = None) -> list[str]:
    page = await database.scan(list_files, DEFAULT_PROJECT, PageQuery(limit=100, order="asc"), purpose, now)
    return [page.first_id or "", page.last_id or "", str(len(page.data))]


async def names_in(blobs: LocalBlobs) -> set[str]:
    return {one.name async for page in blobs.list_all() for one in page}


def test_an_expired_file_is_gone_at_once_and_deleted_later(
    database: Database, run: Run[Any], blobs: LocalBlobs, keeper: Housekeeping, clock: SetClock
) -> None:
    kept, passing = file_row(), file_row(expires_at=NOW + 10)
    for row in (kept, passing):
        run(blobs.write(row.blob, some_bytes()))
        run(database.run(insert_file, row))
    run(keeper.expire())
    assert run(database.read(get_file, passing.file.id, DEFAULT_PROJECT, NOW + 9)) == passing
    assert run(listed(database)) == [kept.file.id, passing.file.id, "2"]
    for operation in (get_file, get_file_body, delete_file):
        with pytest.raises(NotFound, match="No such File object"):
            run(database.run(operation, passing.file.id, DEFAULT_PROJECT, NOW + 10))
    with pytest.raises(NotFound):
        run(database.read(check_files, [kept.file.id, passing.file.id], DEFAULT_PROJECT, NOW + 10))
    assert run(listed(database, NOW + 10)) == [kept.file.id, kept.file.id, "1"]
    clock.time = NOW + 10
    run(keeper.expire())
    assert run(names_in(blobs)) == {kept.blob}
    assert run(database.read(get_file, kept.file.id, DEFAULT_PROJECT, NOW + 10)) == kept


def test_more_expire_than_go_at_once(database: Database, run: Run[Any], keeper: Housekeeping, clock: SetClock) -> None:
    async def fill() -> None:
        await asyncio.gather(*(database.run(insert_file, file_row(expires_at=NOW + 1)) for _ in range(230)))
        uploads = [upload_row() for _ in range(230)]
        await asyncio.gather(
            *(database.run(insert_upload, one, "text/plain", None, DEFAULT_PROJECT) for one in uploads)
        )

    def rows() -> Operation[list[Any]]:
        found: list[Any] = yield Rows("SELECT status, count(*) FROM uploads GROUP BY status")
        return found

    run(fill())
    clock.time = NOW + LIFE_SECONDS + COMPLETION_SECONDS
    run(keeper.expire())
    assert run(listed(database, NOW))[2] == "0"
    assert [tuple(row) for row in run(database.read(rows))] == [("expired", 230)]
    clock.time = NOW + LIFE_SECONDS + REMEMBERED_SECONDS
    run(keeper.expire())
    assert run(database.read(rows)) == []


def test_an_upload_expires_for_clients_first(
    database: Database, run: Run[Any], blobs: LocalBlobs, keeper: Housekeeping, clock: SetClock
) -> None:
    upload = upload_row()
    part = part_row(upload.id)
    run(blobs.write(part.blob, some_bytes()))
    run(database.run(insert_upload, upload, "text/plain", None, DEFAULT_PROJECT))
    run(database.run(insert_part, part, DEFAULT_PROJECT, NOW))
    late = NOW + LIFE_SECONDS
    for operation, args in (
        (insert_part, (part_row(upload.id), DEFAULT_PROJECT, late)),
        (read_assembly, (upload.id, DEFAULT_PROJECT, [part.part.id], late)),
        (cancel_upload, (upload.id, DEFAULT_PROJECT, late)),
    ):
        with pytest.raises(InvalidRequest, match="has status 'expired'"):
            run(database.run(operation, *args))
    clock.time = late + COMPLETION_SECONDS - 1
    run(keeper.expire())
    assert run(names_in(blobs)) == {part.blob}  # a completion that began in time may still read it
    clock.time = late + COMPLETION_SECONDS
    run(keeper.expire())
    assert run(names_in(blobs)) == set()


def test_orphans_are_swept_once_they_are_old(
    database: Database, run: Run[Any], blobs: LocalBlobs, keeper: Housekeeping, clock: SetClock
) -> None:
    row, upload, orphan = file_row(), upload_row(), new_blob_name(IDS)
    part = part_row(upload.id)
    for name in (row.blob, part.blob, orphan):
        run(blobs.write(name, some_bytes()))
    run(database.run(insert_file, row))
    run(database.run(insert_upload, upload, "text/plain", None, DEFAULT_PROJECT))
    run(database.run(insert_part, part, DEFAULT_PROJECT, NOW))
    path = run(blobs.path_of(orphan))
    half = path.parent.parent / ".incoming" / new_blob_name(IDS)
    half.write_bytes(b"hal")
    clock.time = path.stat().st_mtime + 3590
    assert run(keeper.sweep()) == 0
    assert run(names_in(blobs)) == {row.blob, part.blob, orphan}
    clock.time = half.stat().st_mtime + 3610
    assert run(keeper.sweep()) == 2
    assert run(names_in(blobs)) == {row.blob, part.blob}
    assert not half.exists()


def test_orphans_are_looked_up_many_at_once(database: Database, run: Run[Any]) -> None:
    rows = [file_row() for _ in range(3)]
    for row in rows:
        run(database.run(insert_file, row))
    orphans = [new_blob_name(IDS) for _ in range(90)]
    mixed = list(itertools.chain(orphans[:40], [row.blob for row in rows], orphans[40:]))
    assert run(database.read(find_orphans, mixed)) == orphans
    assert run(database.read(find_orphans, [])) == []


def test_the_rounds_go_on_until_they_are_stopped(database: Database, run: Run[Any], blobs: LocalBlobs) -> None:
    class QuickClock(SetClock):
        async def sleep(self, seconds: float) -> None:
            assert seconds > 1
            await asyncio.sleep(0.001)

    async def rounds() -> None:
        clock = QuickClock()
        keeper = Housekeeping(database, blobs, clock, orphan_seconds=1)
        keeper.start()
        row = file_row(expires_at=NOW + 5)
        await database.run(insert_file, row)
        clock.time = NOW + 6
        while (await listed(database, NOW))[2] != "0":  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.01)
        await keeper.stop()

    run(rounds())


# -- what names files


def resources(*file_ids: str) -> ToolResources:
    return ToolResources(code_interpreter=CodeInterpreterResources(file_ids=list(file_ids)))


def test_a_file_that_is_deleted_meanwhile_is_refused_by_the_transaction(database: Database, run: Run[Any]) -> None:
    row = file_row()
    run(database.run(insert_file, row))
    named = resources(row.file.id)
    assistant, extra = new_assistant(CreateAssistant(model="m", tool_resources=named), "asst_1", NOW)
    run(database.run(insert_assistant, assistant, extra, DEFAULT_PROJECT))
    run(database.run(insert_thread, new_thread(CreateThread(), "thread_1", NOW), [], DEFAULT_PROJECT))
    assert run(database.run(delete_file, row.file.id, DEFAULT_PROJECT, NOW)) == row.blob
    for call in (
        database.run(update_thread, "thread_1", DEFAULT_PROJECT, ModifyThread(tool_resources=named)),
        database.run(update_assistant, "asst_1", DEFAULT_PROJECT, ModifyAssistant(tool_resources=named)),
        database.run(
            insert_thread, new_thread(CreateThread(tool_resources=named), "thread_2", NOW), [], DEFAULT_PROJECT
        ),
    ):
        with pytest.raises(NotFound, match="No such File object"):
            run(call)
    stripped, _ = run(database.read(get_assistant, "asst_1", DEFAULT_PROJECT))
    assert stripped.tool_resources == resources()


def test_deletes_and_names_at_the_same_time_leave_no_name_behind(database: Database, run: Run[Any]) -> None:
    async def race(number: int) -> None:
        row = file_row()
        await database.run(insert_file, row)
        threads = [
            new_thread(CreateThread(tool_resources=resources(row.file.id)), f"thread_{number}x{one}", NOW)
            for one in range(6)
        ]
        calls: list[Any] = [database.run(insert_thread, thread, [], DEFAULT_PROJECT) for thread in threads]
        calls.insert(3, database.run(delete_file, row.file.id, DEFAULT_PROJECT, NOW))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(one is None or isinstance(one, NotFound | str) for one in results), results
        for thread in threads:
            try:
                body = await database.read(get_thread_body, thread.id, DEFAULT_PROJECT)
            except NotFound:
                continue
            assert row.file.id not in body
            await database.run(delete_thread, thread.id, DEFAULT_PROJECT, NOW)

    async def races() -> None:
        await asyncio.gather(*(race(number) for number in range(20)))

    def uses() -> Operation[list[Any]]:
        found: list[Any] = yield Rows("SELECT file_id FROM file_uses")
        return found

    run(races())
    assert run(database.read(uses)) == []


def test_an_upload_that_was_cancelled_meanwhile_is_not_completed(database: Database, run: Run[Any]) -> None:
    upload = upload_row(2)
    parts = [part_row(upload.id) for _ in range(2)]
    run(database.run(insert_upload, upload, "text/plain", 3600, DEFAULT_PROJECT))
    for part in parts:
        run(database.run(insert_part, part, DEFAULT_PROJECT, NOW))
    found = run(database.read(read_assembly, upload.id, DEFAULT_PROJECT, [one.part.id for one in parts[::-1]], NOW))
    assert (found.blobs, found.expires_after_seconds) == ([parts[1].blob, parts[0].blob], 3600)
    _, freed = run(database.run(cancel_upload, upload.id, DEFAULT_PROJECT, NOW))
    assert sorted(freed) == sorted(part.blob for part in parts)
    with pytest.raises(InvalidRequest, match="has status 'cancelled'"):
        run(database.run(complete_upload, file_row(), upload.id))
    assert run(listed(database))[2] == "0"


def test_a_place_among_files_outlives_its_file(database: Database, run: Run[Any]) -> None:
    rows = [file_row(purpose="vision" if number % 2 else "batch") for number in range(4)]
    for row in rows:
        run(database.run(insert_file, row))
    run(database.run(delete_file, rows[1].file.id, DEFAULT_PROJECT, NOW))
    query = PageQuery(limit=1, order="asc", after=rows[1].file.id)
    page = run(database.scan(list_files, DEFAULT_PROJECT, query, None, NOW))
    assert (page.first_id, page.has_more) == (rows[2].file.id, True)
    page = run(database.scan(list_files, DEFAULT_PROJECT, query, "vision", NOW))
    assert (page.first_id, page.has_more) == (rows[3].file.id, False)
