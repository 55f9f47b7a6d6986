"""A thread's line over each store: nobody is left behind in it, whatever happens at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.domain.creation import new_message
from perdure.domain.lifecycle import TERMINAL
from perdure.errors import ApiError
from perdure.store.db import Database, Operation, Row, Rows
from perdure.store.endings import end_unheld
from perdure.store.messages import list_all_messages
from perdure.store.run_requests import Birth, Made, Place, add_message, create_run
from perdure.store.runs import find_active_run, request_cancel
from perdure.store.threads import delete_thread
from perdure.wire.kinds import WhenBusy
from perdure.wire.messages import CreateMessage
from perdure.wire.runs import CreateRun
from perdure.wire.runs import Run as ApiRun
from tests.contract.engine_scene import PROJECT, HandModel, Stage, stage, text_of

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def read_line(thread_id: str) -> Operation[list[tuple[str, int]]]:
    """Return what waits, in order."""
    rows = yield Rows(
        "SELECT id, waits FROM runs WHERE thread_id = $1 AND waits > 0 UNION ALL "
        "SELECT id, waits FROM messages WHERE thread_id = $1 AND waits > 0 ORDER BY 2",
        thread_id,
    )
    return [(row[0], row[1]) for row in rows]


def read_status(run_id: str) -> Operation[str | None]:
    row = yield Row("SELECT status FROM runs WHERE id = $1", run_id)
    return row[0] if row else None


class Line:
    """One thread with an active run that nobody works, and what clients do to it."""

    def __init__(self, scene: Stage, thread_id: str) -> None:
        self.scene = scene
        self.thread_id = thread_id

    @property
    def now(self) -> int:
        return int(self.scene.clock.now())

    async def say(self, text: str, busy: WhenBusy = "queue") -> Place | None:
        body = CreateMessage(role="user", content=text)
        message = new_message(body, self.thread_id, self.scene.ids.new("msg"), self.now)
        return await self.scene.database.run(add_message, message, PROJECT, busy, self.now)

    async def ask(self, busy: WhenBusy = "queue", *texts: str) -> Made:
        messages = [CreateMessage(role="user", content=text) for text in texts]
        birth = Birth(
            project_id=PROJECT,
            run_id=self.scene.ids.new("run"),
            thread_id=self.thread_id,
            message_ids=[self.scene.ids.new("msg") for _ in texts],
            now=self.now,
            expiry_seconds=600,
            when_busy=busy,
        )
        body = CreateRun(assistant_id=self.scene.assistant_id, additional_messages=messages or None)
        return await self.scene.database.run(create_run, body, birth)

    async def cancel(self, run_id: str) -> None:
        await self.scene.database.run(request_cancel, run_id, self.thread_id, PROJECT, self.now)
        await self.scene.database.run(end_unheld, run_id, self.now)

    async def active(self) -> str | None:
        return await self.scene.database.read(find_active_run, self.thread_id)

    async def waiting(self) -> list[str]:
        return [one for one, _ in await self.scene.database.read(read_line, self.thread_id)]

    async def texts(self) -> list[str]:
        return [text_of(one) for one in await self.scene.database.read(list_all_messages, self.thread_id)]


@pytest.fixture
def play(run: Run, database: Database) -> Callable[[Callable[[Line, ApiRun], Coroutine[Any, Any, None]]], None]:
    async def on_stage(one: Callable[[Line, ApiRun], Coroutine[Any, Any, None]]) -> None:
        async with stage(database, HandModel()) as scene:
            first = await scene.create("first")
            await one(Line(scene, first.thread_id), first)

    return lambda one: run(on_stage(one))


Director = Callable[[Callable[[Line, ApiRun], Coroutine[Any, Any, None]]], None]


def test_interrupts_come_before_what_is_queued_in_their_own_order(play: Director) -> None:
    async def one(line: Line, first: ApiRun) -> None:
        queued = [(await line.ask("queue", f"queued {number}")).run.id for number in range(2)]
        await line.say("stop", "interrupt")
        urgent = (await line.ask("interrupt", "now")).run.id
        await line.say("last")
        assert await line.scene.database.read(read_status, first.id) == "cancelling"
        assert await line.texts() == ["first"]
        for expected, seen in [
            (urgent, ["stop", "now"]),
            (queued[0], ["queued 0"]),
            (queued[1], ["queued 1"]),
        ]:
            before = await line.texts()
            active = await line.active()
            assert active is not None
            await line.scene.database.run(end_unheld, active, line.now)
            if await line.active() == active:
                await line.cancel(active)
            assert await line.active() == expected
            assert (await line.texts())[len(before) :] == seen
        await line.cancel(queued[1])
        assert (await line.active(), await line.waiting()) == (None, [])
        assert (await line.texts())[-1] == "last"

    play(one)


def test_a_run_cancelled_in_the_line_is_passed_over(play: Director) -> None:
    async def one(line: Line, first: ApiRun) -> None:
        made = [(await line.ask("queue", f"{number}")).run.id for number in range(3)]
        await line.cancel(made[0])
        assert await line.active() == first.id
        await line.scene.database.run(
            request_cancel, made[1], line.thread_id, PROJECT, line.now
        )  # and not wound up yet
        await line.cancel(first.id)
        assert await line.active() == made[2]
        await line.scene.database.run(end_unheld, made[1], line.now)
        assert await line.active() == made[2]
        assert await line.texts() == ["first", "0", "1", "2"]

    play(one)


def test_its_time_begins_when_a_run_is_let_in(play: Director) -> None:
    async def one(line: Line, first: ApiRun) -> None:
        waits = (await line.ask()).run
        line.scene.clock.skip(500)
        await line.cancel(first.id)
        seen = (await line.scene.look(waits)).run
        assert seen.expires_at == line.now + 600

    play(one)


def test_nobody_is_left_behind_whatever_happens_at_once(play: Director) -> None:
    """Joins, ends, cancels and a deletion at the same moment: a line always has an active run before it."""

    async def one(line: Line, first: ApiRun) -> None:
        dice = random.Random(4)  # noqa: S311  # a game, no secret
        known = [first.id]
        refusals: list[str] = []

        async def act() -> None:
            what = dice.choice(["say", "ask", "ask", "stop", "cancel", "cancel", "cancel"])
            try:
                if what == "say":
                    await line.say("x", dice.choice(["queue", "interrupt"]))
                elif what in {"ask", "stop"}:
                    known.append((await line.ask("queue" if what == "ask" else "interrupt", "y")).run.id)
                else:
                    await line.cancel(dice.choice(known))
            except ApiError as refusal:
                refusals.append(refusal.message)

        for _ in range(40):
            await asyncio.gather(*(act() for _ in range(4)))
            assert not await line.waiting() or await line.active() is not None
        while (active := await line.active()) is not None:
            await line.scene.database.run(end_unheld, active, line.now)
            if await line.active() == active:
                await line.cancel(active)
        assert await line.waiting() == []
        statuses = {await line.scene.database.read(read_status, run_id) for run_id in known}
        assert statuses <= TERMINAL
        assert {text.partition("with status")[0] for text in refusals} <= {"Cannot cancel run "}
        await line.ask("reject", "free")
        assert await line.active() is not None

    play(one)


def test_a_thread_is_deleted_with_its_line(play: Director) -> None:
    async def one(line: Line, first: ApiRun) -> None:
        made = [(await line.ask("queue", "x")).run.id for _ in range(3)]
        told, _ = await asyncio.gather(
            line.scene.database.run(delete_thread, line.thread_id, PROJECT, line.now),
            line.scene.database.run(end_unheld, first.id, line.now),
        )
        assert told == [first.id, *made]
        assert await line.waiting() == []
        assert {await line.scene.database.read(read_status, run_id) for run_id in made} == {None}

    play(one)
