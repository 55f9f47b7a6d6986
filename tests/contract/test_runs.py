"""Operations on runs over each store: the lock of a thread, refusals in the recorded words, leases, old logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.errors import InvalidRequest, NotFound
from perdure.store.db import Database
from perdure.store.endings import end_unheld, recover_run
from perdure.store.event_log import delete_logs, is_log_over, list_events, list_old_logs
from perdure.store.run_requests import add_message
from perdure.store.runs import (
    claim_run,
    get_run_body,
    has_waiting,
    list_held_runs,
    list_runs,
    list_unheld_ends,
    renew_leases,
    request_cancel,
    update_run,
)
from perdure.wire.messages import Message
from perdure.wire.page import PageQuery
from tests.contract.engine_scene import LEASE, PROJECT, HandModel, Stage, stage

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Play = Callable[[Stage], Coroutine[Any, Any, None]]
Director = Callable[[Play], None]


@pytest.fixture
def play(run: Run, database: Database) -> Director:
    async def on_stage(one: Play) -> None:
        async with stage(database, HandModel()) as scene:
            await one(scene)

    return lambda one: run(on_stage(one))


def user_message(scene: Stage, thread_id: str) -> Message:
    return Message(
        id=scene.ids.new("msg"),
        created_at=0,
        assistant_id=None,
        thread_id=thread_id,
        run_id=None,
        status="completed",
        incomplete_details=None,
        incomplete_at=None,
        completed_at=0,
        role="user",
        content=[],
        attachments=[],
        metadata={},
    )


def test_an_active_run_locks_its_thread(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create()
        with pytest.raises(InvalidRequest) as refused:
            await scene.create_on(run.thread_id)
        assert refused.value.message == f"Thread {run.thread_id} already has an active run {run.id}."
        with pytest.raises(InvalidRequest) as refused:
            await scene.database.run(add_message, user_message(scene, run.thread_id), PROJECT)
        assert refused.value.message == f"Can't add messages to {run.thread_id} while a run {run.id} is active."
        await scene.cancel(run)
        await scene.database.run(end_unheld, run.id, int(scene.clock.now()))
        await scene.database.run(add_message, user_message(scene, run.thread_id), PROJECT)
        await scene.create_on(run.thread_id)

    play(one)


def test_of_many_runs_created_at_once_on_a_thread_one_is_stored(play: Director) -> None:
    async def one(scene: Stage) -> None:
        first = await scene.create()
        await scene.cancel(first)
        await scene.database.run(end_unheld, first.id, int(scene.clock.now()))
        answers = await asyncio.gather(*(scene.create_on(first.thread_id) for _ in range(8)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(refused) == 7
        assert {type(failure) for failure in refused} == {InvalidRequest}

    play(one)


def test_a_run_of_another_project_or_thread_is_not_there(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create()
        for thread_id, project_id in ((run.thread_id, "proj_other"), ("thread_other", PROJECT)):
            with pytest.raises(NotFound, match=f"No run found with id '{run.id}'"):
                await scene.database.read(get_run_body, run.id, thread_id, project_id)
            with pytest.raises(NotFound):
                await scene.database.run(request_cancel, run.id, thread_id, project_id, 0)
            with pytest.raises(NotFound):
                await scene.database.run(update_run, run.id, thread_id, project_id, {})

    play(one)


def test_refusals_name_the_status(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create()
        with pytest.raises(InvalidRequest, match='Runs in status "queued" do not accept tool outputs'):
            await scene.submit(run, {"call_1": "x"})
        await scene.cancel(run)
        with pytest.raises(InvalidRequest, match="Cannot cancel run with status 'cancelling'"):
            await scene.cancel(run)
        await scene.database.run(end_unheld, run.id, int(scene.clock.now()))
        with pytest.raises(InvalidRequest, match="Cannot cancel run with status 'cancelled'"):
            await scene.cancel(run)

    play(one)


def test_a_lease_is_renewed_by_its_attempt_only(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create()
        assert await scene.database.read(has_waiting)
        now = scene.clock.now()
        first = await scene.database.run(claim_run, "worker_x", now, now + LEASE)
        assert first is not None
        assert not await scene.database.read(has_waiting)
        assert await scene.database.read(list_held_runs, None) == [run.id]
        assert await scene.database.read(list_held_runs, now) == []
        assert await scene.database.read(list_held_runs, now + LEASE + 1) == [run.id]
        assert await scene.database.run(renew_leases, [first.hold], now + 100) == {run.id: "in_progress"}
        # listed as lapsed, renewed before it was recovered: nothing to do
        recovered = await scene.database.run(recover_run, run.id, now, lapsed_before=now + 50, most=3)
        assert recovered is None
        await scene.cancel(run)
        assert await scene.database.run(renew_leases, [first.hold], now + 100) == {run.id: "cancelling"}
        assert await scene.database.read(list_unheld_ends, int(now)) == [], "its worker winds it up"
        assert await scene.database.run(end_unheld, run.id, int(now)) is None
        await scene.database.run(recover_run, run.id, now, lapsed_before=now + 101, most=3)
        assert (await scene.look(run)).status == "cancelled"
        assert await scene.database.run(renew_leases, [first.hold], now + 100) == {run.id: None}
        assert await scene.database.run(recover_run, run.id, now, lapsed_before=None, most=3) is None

    play(one)


def test_runs_past_their_expiry_are_listed_until_they_have_ended(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create(expiry_seconds=60)
        now = int(scene.clock.now())
        assert await scene.database.read(list_unheld_ends, now + 59) == []
        assert await scene.database.run(end_unheld, run.id, now + 59) is None
        assert await scene.database.read(list_unheld_ends, now + 60) == [run.id]
        assert await scene.database.run(end_unheld, run.id, now + 60)
        assert await scene.database.read(list_unheld_ends, now + 60) == []
        assert await scene.database.run(end_unheld, run.id, now + 60) is None
        assert (await scene.look(run)).status == "expired"

    play(one)


def test_runs_are_listed_in_the_order_of_their_creation(play: Director) -> None:
    async def one(scene: Stage) -> None:
        run = await scene.create()
        made = [run.id]
        for _ in range(4):
            await scene.cancel(run)
            await scene.database.run(end_unheld, run.id, int(scene.clock.now()))
            run = await scene.create_on(run.thread_id)
            made.append(run.id)
        page = await scene.database.read(list_runs, run.thread_id, PageQuery(order="asc", limit=3))
        assert (page.first_id, page.last_id, page.has_more) == (made[0], made[2], True)
        page = await scene.database.read(list_runs, run.thread_id, PageQuery(order="asc", after=made[2]))
        assert (page.first_id, page.last_id, page.has_more) == (made[3], made[4], False)

    play(one)


def test_the_log_of_a_run_that_ended_long_ago_goes_and_its_readers_end(play: Director) -> None:
    async def one(scene: Stage) -> None:
        ended, active = await scene.create(), await scene.create()
        await scene.cancel(ended)
        now = int(scene.clock.now())
        await scene.database.run(end_unheld, ended.id, now)
        last = (await scene.look(ended)).last_event
        assert await scene.database.scan(list_old_logs, now) == []
        assert await scene.database.scan(list_old_logs, now + 1) == [ended.id]
        assert not await scene.database.read(is_log_over, ended.id, last - 1)
        assert await scene.database.read(is_log_over, ended.id, last)
        await scene.database.run(delete_logs, [ended.id])
        assert await scene.database.scan(list_old_logs, now + 1) == []
        assert await scene.database.read(list_events, ended.id, 0) == []
        assert await scene.database.read(is_log_over, ended.id, 0)
        assert not await scene.database.read(is_log_over, active.id, 1_000)
        assert await scene.database.read(is_log_over, "run_gone", 0)
        assert await scene.worker().read(ended) == []

    play(one)
