"""What every driver promises, shown on SQLite and on a real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.errors import OperatorError, Unavailable
from perdure.store.db import Database, Do, Operation, Row, Rows

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Open = Callable[[], Coroutine[Any, Any, Database]]

INSERT = "INSERT INTO projects (id, name, created_at) VALUES ($1, $2, $3)"
ACTIVE = "('queued', 'in_progress', 'requires_action', 'cancelling')"


class RefusedError(Exception):
    """Raised by operations of these tests."""


def insert(name: str, number: int = 0) -> Operation[str]:
    (found,) = yield Row(f"{INSERT} RETURNING name", f"proj_{name}", name, number)
    return str(found)


def insert_then_refuse(name: str) -> Operation[None]:
    yield Do(INSERT, f"proj_{name}", name, 0)
    raise RefusedError(name)


def names() -> Operation[set[str]]:
    rows = yield Rows("SELECT name FROM projects WHERE id <> 'proj_default'")
    return {name for (name,) in rows}


def number_of(name: str) -> Operation[int | None]:
    row = yield Row("SELECT created_at FROM projects WHERE name = $1", name)
    return None if row is None else int(row[0])


def add_one(name: str) -> Operation[None]:
    """Read, then write what was read plus one: loses counts unless the row is held in between."""
    (number,) = yield Row("SELECT created_at FROM projects WHERE name = $1", name, lock="wait")
    yield Do("UPDATE projects SET created_at = $2 WHERE name = $1", name, number + 1)


def insert_run(run_id: str, thread_id: str, status: str = "queued") -> Operation[int]:
    written: int = yield Do(
        "INSERT INTO runs (id, thread_id, project_id, assistant_id, status, expires_at, created_at, body) "
        "VALUES ($1, $2, 'proj_default', 'asst_1', $3, 1, 1, '{}') "
        f"ON CONFLICT (thread_id) WHERE waits = 0 AND status IN {ACTIVE} DO NOTHING",
        run_id,
        thread_id,
        status,
    )
    return written


def insert_body(name: str, body: str) -> Operation[str]:
    (kept,) = yield Row(
        "INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, 'proj_default', 1, $2) RETURNING body",
        name,
        body,
    )
    return str(kept)


def body_of(name: str) -> Operation[str]:
    (body,) = yield Row("SELECT body FROM threads WHERE id = $1", name)
    return str(body)


def test_a_commit_is_visible_to_later_reads(database: Database, run: Run) -> None:
    async def story() -> None:
        assert await database.run(insert, "one", number=7) == "one"
        assert await database.read(number_of, "one") == 7
        assert await database.scan(names) == {"one"}

    run(story())


def test_an_operations_error_undoes_it_and_leaves_no_trace(database: Database, run: Run) -> None:
    async def story() -> None:
        with pytest.raises(RefusedError):
            await database.run(insert_then_refuse, "gone")
        assert await database.read(names) == set()
        await database.run(insert, "gone")

    run(story())


def test_an_error_undoes_only_its_own_operation_among_many(database: Database, run: Run) -> None:
    async def story() -> None:
        work = [database.run(insert_then_refuse if i % 3 == 0 else insert, f"n{i}") for i in range(60)]
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert [type(one) for one in outcomes] == [RefusedError if i % 3 == 0 else str for i in range(60)]
        assert await database.read(names) == {f"n{i}" for i in range(60) if i % 3}

    run(story())


def test_a_broken_constraint_reaches_only_its_caller(database: Database, run: Run) -> None:
    async def story() -> None:
        outcomes = await asyncio.gather(
            *(database.run(insert, name) for name in ("a", "b", "a", "c")), return_exceptions=True
        )
        assert sum(isinstance(one, str) for one in outcomes) == 3
        (error,) = (one for one in outcomes if isinstance(one, BaseException))
        assert not isinstance(error, Unavailable)
        assert await database.read(names) == {"a", "b", "c"}

    run(story())


def test_an_operation_that_does_not_write_may_fail_too(database: Database, run: Run) -> None:
    def refuse() -> Operation[None]:
        yield Row("SELECT 1")
        raise RefusedError

    async def story() -> None:
        outcomes = await asyncio.gather(
            database.run(insert, "a"), database.run(refuse), database.run(insert, "b"), return_exceptions=True
        )
        assert [type(one) for one in outcomes] == [str, RefusedError, str]
        assert await database.read(names) == {"a", "b"}

    run(story())


def test_do_counts_the_rows_written(database: Database, run: Run) -> None:
    def counts() -> Operation[list[int]]:
        again = f"{INSERT} ON CONFLICT DO NOTHING"
        return [
            (yield Do(again, "proj_a", "a", 1)),
            (yield Do(again, "proj_a", "a", 1)),
            (yield Do(again, "proj_b", "b", 1)),
            (yield Do("UPDATE projects SET created_at = created_at + 1 WHERE created_at = 1")),
            (yield Do("UPDATE projects SET created_at = 0 WHERE id = 'nobody'")),
            (yield Do("DELETE FROM projects WHERE created_at = $1", 2)),
        ]

    assert run(database.run(counts)) == [1, 0, 1, 2, 0, 2]


def test_a_row_that_is_not_there_is_none(database: Database, run: Run) -> None:
    assert run(database.read(number_of, "nobody")) is None


def test_one_thread_has_one_active_run(database: Database, run: Run) -> None:
    def end(run_id: str) -> Operation[None]:
        yield Do("UPDATE runs SET status = 'completed' WHERE id = $1", run_id)

    async def story() -> None:
        assert await database.run(insert_run, "run_1", "thread_1") == 1
        assert await database.run(insert_run, "run_2", "thread_1", "in_progress") == 0
        assert await database.run(insert_run, "run_3", "thread_2") == 1
        assert await database.run(insert_run, "run_4", "thread_1", "completed") == 1
        await database.run(end, "run_1")
        assert await database.run(insert_run, "run_5", "thread_1", "requires_action") == 1
        raced = await asyncio.gather(*(database.run(insert_run, f"run_r{i}", "thread_3") for i in range(20)))
        assert sum(raced) == 1

    run(story())


def test_sequence_numbers_rise_and_are_never_used_again(database: Database, run: Run) -> None:
    def add(name: str) -> Operation[int]:
        (seq,) = yield Row(
            "INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, 'p', 1, '{}') RETURNING seq", name
        )
        return int(seq)

    def delete(name: str) -> Operation[None]:
        yield Do("DELETE FROM threads WHERE id = $1", name)

    async def story() -> None:
        first, second = await database.run(add, "a"), await database.run(add, "b")
        await database.run(delete, "b")
        third = await database.run(add, "c")
        assert first < second < third

    run(story())


def test_increments_under_a_lock_lose_nothing(database: Database, run: Run) -> None:
    async def story() -> None:
        await database.run(insert, "counter")
        await asyncio.gather(*(database.run(add_one, "counter") for _ in range(200)))
        assert await database.read(number_of, "counter") == 200

    run(story())


def test_skip_passes_over_held_rows(database: Database, run: Run) -> None:
    def take() -> Operation[str | None]:
        row = yield Row(
            "SELECT name FROM projects WHERE created_at = 1 ORDER BY name LIMIT 1",
            lock="skip",
        )
        if row is None:
            return None
        yield Do("UPDATE projects SET created_at = 2 WHERE name = $1", row[0])
        return str(row[0])

    async def story() -> None:
        for i in range(30):
            await database.run(insert, f"n{i}", number=1)
        taken: list[str] = []
        while len(taken) < 30:
            found = await asyncio.gather(*(database.run(take) for _ in range(10)))
            taken += [name for name in found if name is not None]
        assert sorted(taken) == sorted(f"n{i}" for i in range(30))

    run(story())


def test_operations_that_lock_in_opposite_order_both_finish(database: Database, run: Run) -> None:
    def add_to_both(first: str, second: str) -> Operation[None]:
        yield from add_one(first)
        yield from add_one(second)

    async def story() -> None:
        await database.run(insert, "a")
        await database.run(insert, "b")
        for _ in range(5):
            await asyncio.gather(database.run(add_to_both, "a", "b"), database.run(add_to_both, "b", "a"))
        assert await database.read(number_of, "a") == await database.read(number_of, "b") == 10

    run(story())


def test_a_cancelled_caller_does_not_undo_its_commit(database: Database, run: Run) -> None:
    noise: list[dict[str, Any]] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        waiting = [
            asyncio.create_task(database.run(insert if i % 2 else insert_then_refuse, f"n{i}")) for i in range(20)
        ]
        await asyncio.sleep(0)
        for one in waiting:
            one.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
        expected = {f"n{i}" for i in range(1, 20, 2)}
        while await database.read(names) != expected:  # noqa: ASYNC110 - nobody tells of a commit but the database
            await asyncio.sleep(0.01)
        await asyncio.gather(*(database.run(insert, f"later{i}") for i in range(20)))

    run(asyncio.wait_for(story(), 30))
    assert noise == []


def test_reads_refuse_to_write(database: Database, run: Run) -> None:
    async def story() -> None:
        for reading in (database.read, database.scan):
            with pytest.raises(Exception, match=r"read-?only"):
                await reading(insert, "never")
        assert await database.read(names) == set()
        await database.run(insert, "still")
        assert await database.read(names) == {"still"}

    run(story())


def test_an_error_in_a_read_leaves_the_database_usable(database: Database, run: Run) -> None:
    def refuse() -> Operation[None]:
        yield Rows("SELECT name FROM projects")
        raise RefusedError

    async def story() -> None:
        for reading in (database.read, database.scan):
            with pytest.raises(RefusedError):
                await reading(refuse)
            assert await reading(names) == set()

    run(story())


def test_a_scan_sees_one_snapshot(database: Database, run: Run) -> None:
    def move() -> Operation[None]:
        yield Do("UPDATE projects SET created_at = created_at - 1 WHERE name = 'a'")
        yield Do("UPDATE projects SET created_at = created_at + 1 WHERE name = 'b'")

    def total() -> Operation[tuple[int, int]]:
        sums = []
        for _ in range(20):
            (a,) = yield Row("SELECT created_at FROM projects WHERE name = 'a'")
            (b,) = yield Row("SELECT created_at FROM projects WHERE name = 'b'")
            sums.append((a, b))
        assert len(set(sums)) == 1
        return a, b

    async def story() -> None:
        await database.run(insert, "a", number=1000)
        await database.run(insert, "b", number=0)
        writing = asyncio.gather(*(database.run(move) for _ in range(300)))
        while not writing.done():
            assert sum(await database.scan(total)) == 1000
            assert sum(await database.read(total)) == 1000
            await asyncio.sleep(0)
        await writing
        assert await database.scan(total) == (700, 300)

    run(story())


@pytest.mark.parametrize(
    "body",
    [
        "한국어 문장, 이모지 🦦👩‍👩‍👧‍👦, العربية, \u2028 and quotes ' \" \\ $1 ?1",
        json.dumps({"text": "a NUL \x00 inside, and a lone half \ud800"}),
        "x" * 1_000_000,
        "",
    ],
    ids=["unicode", "escaped", "one-megabyte", "empty"],
)
def test_texts_come_back_as_they_were(database: Database, run: Run, body: str) -> None:
    async def story() -> None:
        assert await database.run(insert_body, "thread_1", body) == body
        assert await database.read(body_of, "thread_1") == body

    run(story())


def test_numbers_come_back_as_they_were(database: Database, run: Run) -> None:
    def lease(until: float, attempt: int) -> Operation[tuple[Any, ...]]:
        yield from insert_run("run_1", "thread_1")
        row = yield Row(
            "UPDATE runs SET lease_until = $1, attempt = $2 WHERE id = 'run_1' "
            "RETURNING lease_until, attempt, ended_at",
            until,
            attempt,
        )
        return tuple(row)

    kept = run(database.run(lease, 1795212345.123456, 2**62))
    assert kept == (1795212345.123456, 2**62, None)
    assert isinstance(kept[1], int)


def test_closing_drains_what_was_begun(open_database: Open, run: Run) -> None:
    async def story() -> None:
        database = await open_database()
        writing = [asyncio.create_task(database.run(insert, f"n{i}")) for i in range(50)]
        await asyncio.sleep(0)
        await database.close()
        assert await asyncio.gather(*writing) == [f"n{i}" for i in range(50)]
        for calling in (database.run, database.read, database.scan):
            with pytest.raises(Unavailable, match="shutting down"):
                await calling(names)
        await database.close()
        again = await open_database()
        assert len(await again.read(names)) == 50
        await again.close()

    run(story())


def test_a_newer_database_is_refused(open_database: Open, run: Run) -> None:
    def grow() -> Operation[None]:
        yield Do("INSERT INTO schema_version (version) VALUES (9999)")

    async def story() -> None:
        database = await open_database()
        await database.run(grow)
        await database.close()
        with pytest.raises(
            OperatorError, match=r"^the database has schema version 9999, this Perdure knows \d+: start"
        ):
            await open_database()

    run(story())


def test_opening_again_migrates_nothing(open_database: Open, run: Run) -> None:
    def versions() -> Operation[list[int]]:
        rows = yield Rows("SELECT version FROM schema_version ORDER BY version")
        return [version for (version,) in rows]

    def default_project() -> Operation[tuple[Any, ...]]:
        row = yield Row("SELECT id, name, created_at FROM projects")
        return tuple(row)

    async def story() -> None:
        for _ in range(3):
            database = await open_database()
            found = await database.read(versions)
            assert found == sorted(set(found))
            assert found[0] == 1
            assert await database.read(default_project) == ("proj_default", "default", 0)
            await database.close()

    run(story())
