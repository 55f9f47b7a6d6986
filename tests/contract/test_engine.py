"""The engine over each store: claim, fence, recovery, cancel, expiry, drain, and readers of the log."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import msgspec
import pytest

from perdure.errors import RunFailure, Unavailable
from perdure.models.base import ToolCallDelta
from perdure.store.db import Database, Operation, Row
from perdure.store.endings import recover_run, wind_up
from perdure.store.runs import Change, Claim, Hold, LeaseLost, append_deltas, claim_run, record_change
from perdure.wire.events import END_EVENTS, LogEvent
from perdure.wire.runs import Run as ApiRun
from tests.contract.engine_scene import LEASE, HandModel, Played, Stage, check_log, stage, text_of, until

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Play = Callable[[Stage, HandModel], Coroutine[Any, Any, None]]

PLAIN = [
    *("created", "run.created", "run.queued", "run.in_progress", "run.step.created", "run.step.in_progress"),
    *("message.created", "message.in_progress", "message.delta", "message.completed"),
    *("run.step.completed", "run.completed"),
]
BEGUN = PLAIN[:9]


@pytest.fixture
def play(run: Run, database: Database) -> Callable[[Play], None]:
    """Run a test's play on a stage with a model played by hand."""

    async def on_stage(one: Play) -> None:
        model = HandModel()
        async with stage(database, model) as scene:
            await one(scene, model)

    return lambda one: run(on_stage(one))


Director = Callable[[Play], None]
P = ParamSpec("P")
T = TypeVar("T")


class LateClaims:
    """A store whose answers to claims, committed long since, arrive when the test says so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.let_go = asyncio.Event()

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        answer = await self._database.run(operation, *args, **kwargs)
        if isinstance(answer, Claim):
            await self.let_go.wait()
        return answer

    async def read(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._database.read(operation, *args, **kwargs)

    async def scan(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._database.scan(operation, *args, **kwargs)

    async def close(self) -> None:
        await self._database.close()


async def claim(scene: Stage, run_id: str | None = None, worker_id: str = "worker_x") -> Claim | None:
    now = scene.clock.now()
    return await scene.database.run(claim_run, worker_id, now, now + LEASE, run_id)


def text_call(number: int = 0) -> list[ToolCallDelta]:
    return [
        ToolCallDelta(number, f"call_{number}", "get_weather", ""),
        ToolCallDelta(number, None, None, '{"city": "Seoul"}'),
    ]


async def begun(model: HandModel, *texts: str, number: int = 1) -> Played:
    """Wait for the model to be asked and let it say something."""
    played = await model.asked(number)
    played.say(*texts)
    return played


# -- claim and fence


def test_one_of_two_workers_gets_a_run(play: Director) -> None:
    async def one(scene: Stage, _: HandModel) -> None:
        for _round in range(10):
            run = await scene.create()
            claims = await asyncio.gather(*(claim(scene, run.id, f"worker_{number}") for number in range(4)))
            got = [each for each in claims if each is not None]
            assert len(got) == 1
            seen = await scene.look(run)
            assert (seen.worker_id, seen.attempt) == (got[0].hold.worker_id, got[0].hold.attempt)
            assert await claim(scene) is None

    play(one)


def test_runs_are_claimed_oldest_first(play: Director) -> None:
    async def one(scene: Stage, _: HandModel) -> None:
        runs = [await scene.create() for _ in range(5)]
        claims = [await claim(scene) for _ in runs]
        assert [each.row.run.id for each in claims if each] == [run.id for run in runs]

    play(one)


def test_an_attempt_that_lost_its_run_writes_nothing(play: Director) -> None:
    async def one(scene: Stage, _: HandModel) -> None:
        run = await scene.create()
        first = await claim(scene)
        assert first is not None
        scene.clock.skip(LEASE + 1)
        now = scene.clock.now()
        assert await scene.database.run(recover_run, run.id, now, lapsed_before=now, most=3)
        for again in (False, True):
            if again:
                assert await claim(scene) is not None
            before = await scene.look(run)
            delta = LogEvent(first.row.last_event + 1, "thread.message.delta", msgspec.Raw(b'{"id": "msg_x"}'))
            hold = first.hold
            with pytest.raises(LeaseLost):
                await scene.database.run(append_deltas, hold, [delta])
            with pytest.raises(LeaseLost):
                await scene.database.run(record_change, hold, [delta], Change(to="completed"), int(now))
            with pytest.raises(LeaseLost):
                await scene.database.run(wind_up, hold, [delta], "failed", int(now))
            assert await scene.look(run) == before

    play(one)


def test_a_hold_is_of_one_worker_and_one_attempt(play: Director) -> None:
    async def one(scene: Stage, _: HandModel) -> None:
        run = await scene.create()
        got = await claim(scene)
        assert got is not None
        for hold in (Hold(run.id, got.hold.attempt + 1, "worker_x"), Hold(run.id, got.hold.attempt, "worker_y")):
            with pytest.raises(LeaseLost):
                await scene.database.run(wind_up, hold, [], "failed", 0)

    play(one)


# -- an answer


def test_an_answer_is_logged_in_the_recorded_order(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, "one ", "two")
            played.end()
            seen = await scene.ended(run)
        assert seen.names == PLAIN
        assert seen.texts == [("completed", "one two")]
        assert seen.run.usage is not None
        assert seen.run.usage.total_tokens == 15
        assert played.closed
        await scene.create_on(run.thread_id)

    play(one)


def test_a_run_that_nobody_was_told_of_is_found(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        runs = [await scene.create() for _ in range(4)]
        async with scene.working(concurrency=4):
            await model.asked(4)
            for played in model.played:
                played.end()
            for run in runs:
                assert (await scene.ended(run)).texts == [("completed", "")]

    play(one)


def test_usage_is_summed_over_the_legs_of_a_function_call(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            reader = asyncio.create_task(crew.read(run))
            played = await model.asked(1)
            played.give(*text_call(0), *text_call(1))
            played.end("tool_calls", prompt=100, completion=20)
            waiting = await scene.reached(run, "requires_action")
            assert (await reader)[-1].name == "thread.run.requires_action"
            assert waiting.worker_id is None
            assert waiting.run.usage is None
            assert waiting.steps[0].status == "in_progress"
            after = await scene.submit(run, {"call_0": "warm", "call_1": "cold"}, crew)
            second = asyncio.create_task(crew.read(run, after))
            played = await model.asked(2)
            assert [each["content"] for each in played.request.messages if each["role"] == "tool"] == ["warm", "cold"]
            played.say("It is warm.")
            played.end(prompt=7, completion=3)
            seen = await scene.ended(run)
            names = [event.name for event in await second]
            assert names[:3] == ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
            assert names[-1] == "thread.run.completed"
        usage = seen.run.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (107, 23, 130)
        assert [step.usage.total_tokens if step.usage else None for step in seen.steps] == [120, 10]
        assert [event.name for event in seen.events if event.name in END_EVENTS] == [
            "thread.run.requires_action",
            "thread.run.completed",
        ]

    play(one)


def test_text_behind_a_call_leaves_no_message_open(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, "Let me see.")
            played.give(*text_call())
            played.say("I have asked.")
            played.end("tool_calls")
            seen = await scene.reached(run, "requires_action")
            assert seen.texts == [("completed", "Let me see."), ("completed", "I have asked.")]
            await scene.submit(run, {"call_0": "warm"}, crew)
            (await begun(model, "Warm.", number=2)).end()
            await scene.ended(run)

    play(one)


# -- failures


@pytest.mark.parametrize("said", [(), ("half", " an answer")])
def test_a_model_that_fails_ends_the_run(play: Director, said: tuple[str, ...]) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, *said)
            played.give(RunFailure("The upstream is down.", code="rate_limit_exceeded"))
            seen = await scene.ended(run)
            assert seen.status == "failed"
            assert seen.run.last_error is not None
            assert (seen.run.last_error.code, seen.run.last_error.message) == (
                "rate_limit_exceeded",
                "The upstream is down.",
            )
            assert seen.texts == ([("incomplete", "half an answer")] if said else [])
            assert [step.status for step in seen.steps] == (["failed"] if said else [])
            end = ["run.step.failed", "message.incomplete"] if said else []
            assert seen.names == [*(BEGUN if said else BEGUN[:4]), *end, "run.failed"]
            again = await scene.create_on(run.thread_id)
            crew.dispatch.tell(again.id)
            (await begun(model, "fine", number=2)).end()
            assert (await scene.ended(again)).status == "completed"

    play(one)


@pytest.mark.parametrize("fault", [ZeroDivisionError("a bug"), asyncio.CancelledError()])
def test_a_model_that_breaks_ends_its_run_and_nothing_else(play: Director, fault: BaseException) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            (await begun(model, "half")).give(fault)
            seen = await scene.ended(run)
            assert seen.status == "failed"
            assert seen.run.last_error is not None
            assert seen.run.last_error.code == "server_error"
            other = await scene.create()
            crew.dispatch.tell(other.id)
            (await begun(model, "fine", number=2)).end()
            assert (await scene.ended(other)).status == "completed"

    play(one)


# -- recovery


def test_a_dropped_run_is_done_again_by_another_worker(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        dead = scene.worker()  # never started: it renews nothing
        run = await scene.create()
        dead.dispatch.tell(run.id)
        zombie = await begun(model, "half ", "an answer")
        await scene.said(run, "half an answer")
        scene.clock.skip(LEASE + 1)
        async with scene.working() as crew:
            played = await model.asked(2)
            assert played.request.messages == zombie.request.messages
            zombie.say(" that comes too late")
            zombie.end()
            await until(lambda: dead.feeds.open == 0)
            played.say("a whole answer")
            played.end()
            seen = await scene.ended(run)
            assert await crew.read(run) == seen.events
        assert seen.texts == [("incomplete", "half an answer"), ("completed", "a whole answer")]
        assert seen.messages[0].incomplete_details is not None
        assert [step.status for step in seen.steps] == ["failed", "completed"]
        assert seen.recoveries == 1
        assert seen.names == [
            *BEGUN,
            *("run.step.failed", "message.incomplete", "run.queued"),
            *PLAIN[3:],
        ]

    play(one)


def test_a_run_that_kills_its_worker_three_times_fails(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        run = await scene.create()
        for number in range(1, 4):
            dead = scene.worker()
            dead.dispatch.tell(run.id)
            zombie = await begun(model, f"try {number}", number=number)
            await scene.said(run, f"try {number}")
            after = scene.worker(exclusive=True)  # a restart: whatever is held was dropped
            after.worker._draining = True  # it only recovers
            await after.worker._recover(None)
            zombie.end()
            await until(lambda dead=dead: dead.feeds.open == 0)
        seen = await scene.ended(run)
        assert seen.status == "failed"
        assert seen.run.last_error is not None
        assert "3 times" in seen.run.last_error.message
        assert seen.texts == [("incomplete", f"try {number}") for number in range(1, 4)]
        await scene.create_on(run.thread_id)

    play(one)


def test_a_live_worker_keeps_its_runs_past_the_lease(play: Director) -> None:
    """A machine that slept finds its leases lapsed; what it still holds is not thrown away."""

    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, "one ")
            for _ in range(3):
                scene.clock.skip(LEASE + 1)
                await asyncio.sleep(0.05)
            played.say("two")
            played.end()
            seen = await scene.ended(run)
        assert (seen.texts, seen.recoveries, seen.attempt) == ([("completed", "one two")], 0, 1)

    play(one)


def test_a_worker_that_was_overtaken_leaves_the_new_attempt_alone(play: Director) -> None:
    """The same worker claims a run again that another process recovered, while its old attempt still runs."""

    async def one(scene: Stage, model: HandModel) -> None:
        crew = scene.worker()
        run = await scene.create()
        crew.dispatch.tell(run.id)
        old = await begun(model, "old")
        await scene.said(run, "old")
        scene.clock.skip(LEASE + 1)
        now = scene.clock.now()
        await scene.database.run(recover_run, run.id, now, lapsed_before=now, most=3)
        reader = asyncio.create_task(crew.read(run))
        crew.dispatch.tell(run.id)
        new = await begun(model, "new ", number=2)
        old.say("late")
        await until(lambda: old.closed)
        await scene.said(run, "new ")
        new.say("answer")
        new.end()
        seen = await scene.ended(run)
        assert [event.sequence for event in await reader] == [event.sequence for event in seen.events]
        assert seen.texts == [("incomplete", "old"), ("completed", "new answer")]
        await until(lambda: crew.feeds.open == 0)

    play(one)


# -- cancel


def test_cancel_in_mid_stream(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, "half ", "an answer")
            await scene.said(run, "half an answer")
            assert (await scene.cancel(run, crew)).status == "cancelling"
            seen = await scene.ended(run)
        assert seen.names == [
            *BEGUN,
            *("run.step.cancelled", "message.incomplete", "run.cancelling", "run.cancelled"),
        ]
        assert seen.texts == [("incomplete", "half an answer")]
        assert played.closed
        await scene.create_on(run.thread_id)

    play(one)


def test_cancel_in_the_queue_needs_no_free_place(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working(concurrency=1) as crew:
            busy = await scene.create()
            crew.dispatch.tell(busy.id)
            await model.asked()
            run = await scene.create()
            crew.dispatch.tell(run.id)
            await scene.cancel(run, crew)
            seen = await scene.ended(run)
            assert seen.names == [*PLAIN[:3], "run.cancelling", "run.cancelled"]
            assert seen.run.started_at is None
            lost = await scene.create()
            await scene.cancel(lost)  # nobody is told
            assert (await scene.ended(lost)).status == "cancelled"
            assert len(model.played) == 1

    play(one)


def test_cancel_while_tool_outputs_are_awaited(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await model.asked()
            played.give(*text_call())
            played.end("tool_calls", prompt=3, completion=2)
            waiting = await scene.reached(run, "requires_action")
            reader = asyncio.create_task(crew.read(run, waiting.last_event))
            await scene.cancel(run, crew)
            seen = await scene.ended(run)
            names = [event.name for event in await reader]
        assert names == ["thread.run.step.cancelled", "thread.run.cancelling", "thread.run.cancelled"]
        assert seen.run.required_action is None
        assert seen.run.usage is not None
        assert seen.run.usage.total_tokens == 5

    play(one)


def test_cancel_that_comes_while_the_claim_is_under_way(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        crew = scene.worker()  # not started: only the hint can tell it
        for _ in range(20):
            run = await scene.create()
            crew.dispatch.tell(run.id)
            await scene.cancel(run, crew)
            assert (await scene.ended(run)).status == "cancelled"
        assert all(played.closed for played in model.played)

    play(one)


def test_cancel_that_overtakes_the_answer_to_the_claim(run: Run, database: Database) -> None:
    """The claim is committed and the cancel after it, but the worker hears of the cancel first."""

    async def one() -> None:
        model = HandModel()
        late = LateClaims(database)
        async with stage(late, model) as scene:
            crew = scene.worker()  # not started: no renewal tells it either
            created = await scene.create()
            crew.dispatch.tell(created.id)
            await scene.reached(created, "in_progress")
            await scene.cancel(created, crew)
            late.let_go.set()
            assert (await scene.ended(created)).status == "cancelled"
            await until(lambda: crew.feeds.open == 0)
        assert not model.played

    run(one())


def test_cancel_against_completion(play: Director) -> None:
    """Whoever comes first wins; nothing is between the two. Readers see every event, whichever it is."""

    async def one(scene: Stage, model: HandModel) -> None:
        dice = random.Random(7)  # noqa: S311  # a game, no secret
        ends = set()
        async with scene.working() as crew:
            for number in range(1, 41):
                run = await scene.create()
                reader = asyncio.create_task(crew.read(run))
                crew.dispatch.tell(run.id)
                played = await begun(model, "one ", "two ", number=number)
                await until(lambda run=run: bool(crew.feeds.attach(run.id)))
                crew.feeds.detach(run.id)
                if dice.random() < 0.5:
                    await scene.said(run, "one two ")
                played.say("three")
                played.end()
                for _ in range(dice.randrange(12)):
                    await asyncio.sleep(0)
                with_cancel = asyncio.gather(scene.cancel(run, crew), return_exceptions=True)
                seen = await scene.ended(run)
                await with_cancel
                events = await reader
                assert [event.sequence for event in events] == [event.sequence for event in seen.events]
                ends.add(seen.status)
                if seen.status == "completed":
                    assert seen.texts == [("completed", "one two three")]
                else:
                    assert all(status == "incomplete" for status, _ in seen.texts)
        assert ends <= {"completed", "cancelled"}

    play(one)


def test_a_cancel_that_beats_the_end_loses_no_delta_that_readers_saw(play: Director) -> None:
    """The model has ended, the last deltas are not committed: they must be in the log before the run is wound up."""

    async def one(scene: Stage, model: HandModel) -> None:
        crew = scene.worker()
        run = await scene.create()
        crew.dispatch.tell(run.id)
        played = await begun(model, "one ")
        await scene.said(run, "one ")
        await scene.cancel(run)  # committed, but the worker has not heard of it
        reader = asyncio.create_task(crew.read(run))
        played.say(*"abcdefgh")
        played.end()
        seen = await scene.ended(run)
        assert seen.texts == [("incomplete", "one abcdefgh")]
        assert [event.sequence for event in await reader] == [event.sequence for event in seen.events]
        assert seen.status == "cancelled"

    play(one)


class BrokenFlushes(LateClaims):
    """A store that fails when deltas are written, and only then."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.let_go.set()

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if operation is append_deltas:
            raise Unavailable("The disk is full.")
        return await super().run(operation, *args, **kwargs)


def test_a_run_whose_deltas_can_not_be_stored_is_left_for_recovery(run: Run, database: Database) -> None:
    async def one() -> None:
        model = HandModel()
        async with stage(BrokenFlushes(database), model) as broken:
            crew = broken.worker()
            created = await broken.create()
            crew.dispatch.tell(created.id)
            played = await begun(model, "lost ")
            async with asyncio.timeout(20):
                while not played.closed:
                    played.say("words ")
                    await asyncio.sleep(0.01)
            await until(lambda: crew.feeds.open == 0)
            left = await broken.look(created)
            assert (left.status, left.texts) == ("in_progress", [("in_progress", "")])
        async with stage(database, model) as scene:
            scene.clock.skip(LEASE + 1)
            async with scene.working() as crew:
                reader = asyncio.create_task(crew.read(created))
                (await begun(model, "whole", number=2)).end()
                seen = await scene.ended(created)
                assert await reader == seen.events
        assert seen.texts == [("incomplete", ""), ("completed", "whole")]

    run(one())


class OneSlowFailure(LateClaims):
    """A store whose first write of deltas takes its time and fails; everything else works."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.let_go.set()
        self.writes = 0
        self.fail = asyncio.Event()

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        if operation is append_deltas:
            self.writes += 1
            if self.writes == 1:
                await self.fail.wait()
                raise Unavailable("The disk is full.")
        return await super().run(operation, *args, **kwargs)


def test_behind_deltas_that_could_not_be_stored_no_later_ones_are(run: Run, database: Database) -> None:
    """A log with a gap would give a message that nobody wrote."""

    async def one() -> None:
        model, slow = HandModel(), OneSlowFailure(database)
        async with stage(slow, model) as broken:
            crew = broken.worker()
            created = await broken.create()
            crew.dispatch.tell(created.id)
            played = await begun(model, "first ")
            await until(lambda: slow.writes == 1)
            played.say("second ")  # its own write stands behind the one that is about to fail
            await asyncio.sleep(0.1)
            slow.fail.set()
            await asyncio.sleep(0.1)
            played.end()
            await until(lambda: crew.feeds.open == 0)
            left = await broken.look(created)
            assert slow.writes == 1
            assert [event.name for event in left.events if event.name.endswith(".delta")] == []

    run(one())


# -- expiry


def test_expiry_in_mid_stream(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create(expiry_seconds=60)
            crew.dispatch.tell(run.id)
            played = await begun(model, "half")
            await scene.said(run, "half")
            scene.clock.skip(61)
            seen = await scene.ended(run)
        assert seen.names == [*BEGUN, "run.step.expired", "message.incomplete", "run.expired"]
        assert seen.messages[0].incomplete_details is not None
        assert seen.messages[0].incomplete_details.reason == "run_expired"
        assert played.closed
        await scene.create_on(run.thread_id)

    play(one)


def test_expiry_in_the_queue_and_while_outputs_are_awaited(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working(concurrency=1) as crew:
            calling = await scene.create()
            crew.dispatch.tell(calling.id)
            played = await model.asked()
            played.give(*text_call())
            played.end("tool_calls")
            await scene.reached(calling, "requires_action")
            busy = await scene.create(expiry_seconds=10_000)
            crew.dispatch.tell(busy.id)
            await model.asked(2)
            queued = await scene.create()
            crew.dispatch.tell(queued.id)
            scene.clock.skip(601)
            assert (await scene.ended(queued)).names == [*PLAIN[:3], "run.expired"]
            assert (await scene.ended(calling)).names[-2:] == ["run.step.expired", "run.expired"]
            assert (await scene.look(busy)).status == "in_progress"

    play(one)


def test_a_run_whose_worker_died_before_its_expiry_expires(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        dead = scene.worker()
        run = await scene.create(expiry_seconds=10)
        dead.dispatch.tell(run.id)
        zombie = await begun(model, "half")
        await scene.said(run, "half")
        scene.clock.skip(LEASE + 1)
        async with scene.working():
            assert (await scene.ended(run)).status == "expired"
        zombie.end()
        await until(lambda: dead.feeds.open == 0)

    play(one)


# -- drain


def test_drain_gives_the_run_back_and_another_worker_finishes_it(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            first = await begun(model, "half")
            await scene.said(run, "half")
        assert first.closed
        back = await scene.look(run)
        assert (back.status, back.worker_id, back.recoveries) == ("queued", None, 0)
        assert back.texts == [("incomplete", "half")]
        crew.dispatch.tell(run.id)  # a drained worker takes nothing
        await asyncio.sleep(0.02)
        assert (await scene.look(run)).status == "queued"
        async with scene.working():
            (await begun(model, "whole", number=2)).end()
            assert (await scene.ended(run)).texts == [("incomplete", "half"), ("completed", "whole")]

    play(one)


def test_drain_lets_a_short_answer_end(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        crew = scene.worker()
        crew.worker._settings = msgspec.structs.replace(crew.worker._settings, grace_seconds=20.0)
        await crew.worker.start()
        run = await scene.create()
        crew.dispatch.tell(run.id)
        played = await begun(model, "short")
        draining = asyncio.create_task(crew.worker.drain())
        await asyncio.sleep(0)
        played.end()
        await draining
        assert (await scene.look(run)).status == "completed"

    play(one)


def test_drain_right_after_a_hint_leaves_nothing_held(play: Director) -> None:
    async def one(scene: Stage, _model: HandModel) -> None:
        for pauses in range(8):
            runs = [await scene.create() for _ in range(3)]
            async with scene.working(concurrency=2) as crew:
                for run in runs:
                    crew.dispatch.tell(run.id)
                for _ in range(pauses):
                    await asyncio.sleep(0)
            for run in runs:
                seen = await scene.look(run)
                assert (seen.status, seen.worker_id) == ("queued", None)

    play(one)


# -- deletion


def test_a_thread_deleted_in_mid_run_takes_everything_with_it(play: Director) -> None:
    def left(run: ApiRun) -> Operation[int]:
        count = 0
        for table, column, value in (
            ("runs", "id", run.id),
            ("steps", "run_id", run.id),
            ("messages", "thread_id", run.thread_id),
            ("run_events", "run_id", run.id),
        ):
            count += (yield Row(f"SELECT count(*) FROM {table} WHERE {column} = $1", value))[0]
        return count

    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            for number in range(1, 11):
                run = await scene.create()
                reader = asyncio.create_task(crew.read(run))
                crew.dispatch.tell(run.id)
                played = await begun(model, "one ", number=number)
                if number % 2:
                    await scene.said(run, "one ")
                played.say("two ", "three")
                if number % 3 == 0:
                    played.end()
                await scene.delete_thread(run, crew)
                events = await reader
                check_log(events, whole=False)
                await until(lambda played=played: played.closed)
                await until(lambda: crew.feeds.open == 0)
                assert await scene.database.read(left, run) == 0

    play(one)


# -- concurrency


def test_no_more_runs_than_allowed_and_the_rest_oldest_first(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        runs = [await scene.create(f"question {number}") for number in range(8)]
        async with scene.working(concurrency=2) as crew:
            for run in runs:
                crew.dispatch.tell(run.id)
            for number in range(1, 9):
                played = await model.asked(number)
                await asyncio.sleep(0.02)
                assert sum(not each.closed for each in model.played) <= 2
                if number >= 2:
                    model.played[number - 2].end()
            played.end()
            for run in runs:
                await scene.ended(run)
        asked = [each.request.messages[-1]["content"] for each in model.played]
        assert sorted(asked[:2]) == ["question 0", "question 1"]
        assert asked[2:] == [f"question {number}" for number in range(2, 8)]

    play(one)


# -- readers


def test_every_reader_gets_the_same_log(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        elsewhere = scene.worker()  # another process: its feeds hear nothing
        async with scene.working() as crew:
            run = await scene.create()
            early = [asyncio.create_task(crew.read(run)) for _ in range(2)]
            polling = asyncio.create_task(elsewhere.read(run))
            crew.dispatch.tell(run.id)
            played = await begun(model, "one ", "two ")
            await scene.said(run, "one two ")
            late = asyncio.create_task(crew.read(run))
            for word in ("three ", "four ", "five"):
                played.say(word)
                await asyncio.sleep(0.01)
            played.end()
            seen = await scene.ended(run)
            for reader in (*early, polling, late):
                events = await reader
                assert events == seen.events
            for place in range(len(seen.events)):
                rest = await crew.read(run, seen.events[place].sequence)
                assert rest == seen.events[place + 1 :]
        assert text_of(seen.messages[0]) == "one two three four five"
        assert elsewhere.feeds.open == 0

    play(one)


def test_a_reader_that_comes_back_at_any_event_of_a_run_in_work_misses_nothing(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            played = await begun(model, *(f"w{number} " for number in range(30)))
            await scene.said(run, "".join(f"w{number} " for number in range(30)))
            half = (await scene.look(run)).events
            readers = [asyncio.create_task(crew.read(run, event.sequence)) for event in half]
            await asyncio.sleep(0.01)
            played.say("and the rest")
            played.end()
            seen = await scene.ended(run)
            for place, reader in enumerate(readers):
                assert await reader == seen.events[place + 1 :]

    play(one)


def test_a_long_answer_outgrows_the_feed_and_slow_readers_go_to_the_store(play: Director) -> None:
    async def one(scene: Stage, model: HandModel) -> None:
        async with scene.working() as crew:
            run = await scene.create()
            crew.dispatch.tell(run.id)
            slow: list[LogEvent] = []

            async def read_slowly() -> None:
                async for batch in crew.feeds.follow(run.id, 0, 0.05):
                    slow.extend(batch)
                    await asyncio.sleep(0.05)

            reader = asyncio.create_task(read_slowly())
            played = await model.asked()
            for _ in range(30):
                played.say(*("x" * 100))
                await asyncio.sleep(0.01)
            played.end()
            seen = await scene.ended(run)
            await reader
            assert slow == seen.events
        assert seen.texts == [("completed", "x" * 3000)]

    play(one)
