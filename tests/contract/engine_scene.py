"""A stage for the engine: real workers, feeds and store; a model played by hand, and a clock that the test moves.

Rounds and small waits go fast in real time; leases and expiries lapse when the test says so.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import msgspec

from perdure.domain.creation import new_assistant
from perdure.domain.lifecycle import TERMINAL
from perdure.engine.dispatch import LocalDispatch
from perdure.engine.live import Feeds
from perdure.engine.worker import Worker, WorkerSettings
from perdure.ids import RandomIds
from perdure.models.base import (
    Capacity,
    Finished,
    FinishReason,
    Model,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    TextDelta,
)
from perdure.models.names import ModelRegistry
from perdure.models.tokens import TokenCounter
from perdure.store.assistants import insert_assistant
from perdure.store.bodies import read_extra, read_message, read_run, read_step
from perdure.store.db import Database, Operation, Row, Rows
from perdure.store.event_log import list_events
from perdure.store.run_requests import Birth, create_run, create_thread_and_run, submit_outputs
from perdure.store.runs import request_cancel
from perdure.store.threads import delete_thread
from perdure.wire.assistants import CreateAssistant
from perdure.wire.events import END_EVENTS, LogEvent
from perdure.wire.messages import CreateMessage, Message, TextPart
from perdure.wire.runs import CreateRun, CreateThreadAndRun, Extra, Run, ToolOutput
from perdure.wire.steps import RunStep
from perdure.wire.threads import CreateThread
from perdure.wire.tools import FunctionDefinition, FunctionTool

T = TypeVar("T")
PROJECT = "proj_default"
LEASE = 30.0
DEADLINE = 20.0


class PlayedClock:
    """Time that stands still but for `skip`; sleepers come back after a moment, however long they wanted to sleep."""

    def __init__(self) -> None:
        self._now = 1_800_000_000.0

    def now(self) -> float:
        return self._now

    def skip(self, seconds: float) -> None:
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.01))


class Played:
    """One request to the hand-played model, and what the test lets it answer."""

    def __init__(self, request: ModelRequest) -> None:
        self.request = request
        self.closed = False
        self.pieces: asyncio.Queue[ModelPiece | BaseException | None] = asyncio.Queue()

    def say(self, *texts: str) -> None:
        for text in texts:
            self.pieces.put_nowait(TextDelta(text))

    def give(self, *pieces: ModelPiece | BaseException) -> None:
        for piece in pieces:
            self.pieces.put_nowait(piece)

    def end(self, reason: FinishReason = "stop", prompt: int = 10, completion: int = 5) -> None:
        self.give(Finished(reason), ModelUsage(prompt, completion))
        self.pieces.put_nowait(None)


class HandModel:
    """A model that waits for the test at each piece."""

    def __init__(self) -> None:
        self.played: list[Played] = []

    def capacity(self, model: str) -> Capacity:
        del model
        return Capacity(counter=TokenCounter())

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        one = Played(request)
        self.played.append(one)
        try:
            while (piece := await one.pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
        finally:
            one.closed = True

    async def list_models(self) -> list[str]:
        return []

    async def warm_up(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def asked(self, number: int = 1) -> Played:
        """Wait until it was asked so many times; return the newest of them."""
        await until(lambda: len(self.played) >= number)
        return self.played[number - 1]


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds; a test that waits too long is wrong."""
    async with asyncio.timeout(DEADLINE):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.002)


class Seen(msgspec.Struct):
    """A run with all that hangs on it, as the store has it."""

    run: Run
    status: str
    attempt: int
    worker_id: str | None
    last_event: int
    recoveries: int
    extra: Extra
    messages: list[Message]
    steps: list[RunStep]
    events: list[LogEvent]

    @property
    def names(self) -> list[str]:
        """The log's event names without `thread.` and without repetitions."""
        names = [event.name.removeprefix("thread.") for event in self.events]
        return [name for name, _ in itertools.groupby(names)]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Status and text of the run's messages."""
        return [(message.status, text_of(message)) for message in self.messages]


def text_of(message: Message) -> str:
    return "".join(part.text.value for part in message.content if isinstance(part, TextPart))


def look(run_id: str) -> Operation[Seen]:
    """Read everything of a run on one snapshot, and check what must hold at any time."""
    row = yield Row(
        "SELECT body, status, attempt, worker_id, last_event, recoveries, extra FROM runs WHERE id = $1", run_id
    )
    messages = yield Rows("SELECT body FROM messages WHERE run_id = $1 ORDER BY seq", run_id)
    steps = yield Rows("SELECT body FROM steps WHERE run_id = $1 ORDER BY seq", run_id)
    events: list[LogEvent] = []
    while more := (yield from list_events(run_id, events[-1].sequence if events else 0)):
        events += more
    seen = Seen(
        read_run(row[0]),
        row[1],
        row[2],
        row[3],
        row[4],
        row[5],
        read_extra(row[6]),
        [read_message(one[0]) for one in messages],
        [read_step(one[0]) for one in steps],
        events,
    )
    check(seen)
    return seen


def check(seen: Seen) -> None:
    """What must hold of every run at every moment."""
    assert seen.run.status == seen.status
    numbers = [event.sequence for event in seen.events]
    assert all(left < right for left, right in itertools.pairwise(numbers)), "the log's numbers rise"
    assert seen.last_event == numbers[-1]
    check_log(seen.events, whole=True)
    data = latest(seen.events)
    for message in seen.messages:
        assert data[message.id] == msgspec.to_builtins(message), "the log tells each message's state"
        if message.status != "in_progress":
            assert written(seen.events, message.id) == text_of(message), "deltas concatenate to the text"
    for step in seen.steps:
        assert data[step.id] == msgspec.to_builtins(step) or step.status == "in_progress"
    held = seen.worker_id is not None
    assert not held or seen.status in {"in_progress", "cancelling"}
    if seen.status in TERMINAL:
        assert data[seen.run.id] == msgspec.to_builtins(seen.run), "the log ends with the run's end"
        assert seen.events[-1].name == f"thread.run.{seen.status}"
        statuses = {*(step.status for step in seen.steps), *(message.status for message in seen.messages)}
        assert "in_progress" not in statuses, "nothing stays open"


def check_log(events: list[LogEvent], *, whole: bool) -> None:
    """One END event for each leg: after it the log goes on only by submitted outputs."""
    for left, right in itertools.pairwise(events):
        if left.name in END_EVENTS:
            assert left.name == "thread.run.requires_action"
            assert right.name.startswith("thread.run.step.")
    if whole:
        assert events[0].name in {"thread.created", "thread.run.created"}


def latest(events: list[LogEvent]) -> dict[str, Any]:
    """Return the last state of each object that the events tell."""
    return {
        data["id"]: data for event in events if "delta" not in event.name for data in [msgspec.json.decode(event.data)]
    }


def written(events: list[LogEvent], message_id: str) -> str:
    """Concatenate a message's deltas."""
    deltas = [msgspec.json.decode(event.data) for event in events if event.name == "thread.message.delta"]
    parts = [part for delta in deltas if delta["id"] == message_id for part in delta["delta"]["content"]]
    return "".join(part["text"]["value"] for part in parts)


class Stage:
    """A store with one assistant, and the workers that the test puts on it."""

    def __init__(self, database: Database, model: Model, clock: PlayedClock) -> None:
        self.database = database
        self.clock = clock
        self.ids = RandomIds()
        self.assistant_id = ""
        self._models = ModelRegistry(
            {"builtin": model}, [], "hand", model_map={}, default_model=None, clock=clock, log=logging.getLogger("test")
        )

    def worker(self, concurrency: int = 8, *, exclusive: bool = False) -> Crew:
        """Return a worker with its own feeds and dispatch, as one process has them; it is not started yet."""
        settings = WorkerSettings(
            concurrency=concurrency,
            lease_seconds=LEASE,
            grace_seconds=0.05,
            event_log_seconds=10_000_000,
            exclusive=exclusive,
        )
        feeds, dispatch = Feeds(self.database), LocalDispatch()
        worker = Worker(self.database, self._models, feeds, self.clock, self.ids, settings)
        dispatch.listen(worker)
        return Crew(worker, feeds, dispatch)

    @asynccontextmanager
    async def working(self, concurrency: int = 8) -> AsyncIterator[Crew]:
        """Give a started worker; drained at the end, when nobody may follow a run any more."""
        crew = self.worker(concurrency)
        await crew.worker.start()
        try:
            yield crew
        finally:
            await crew.worker.drain()
        assert crew.feeds.open == 0

    async def make_assistant(self) -> None:
        tool = FunctionTool(function=FunctionDefinition(name="get_weather"))
        body = CreateAssistant(model="hand", instructions="Be brief.", tools=[tool])
        assistant, extra = new_assistant(body, self.ids.new("asst"), self._now())
        await self.database.run(insert_assistant, assistant, extra, PROJECT)
        self.assistant_id = assistant.id

    def _now(self) -> int:
        return int(self.clock.now())

    async def create(self, question: str = "hello", expiry_seconds: int = 600) -> Run:
        """Store a thread with a question and a run on it. Nobody is told."""
        message = CreateMessage(role="user", content=question)
        body = CreateThreadAndRun(assistant_id=self.assistant_id, thread=CreateThread(messages=[message]))
        return await self.database.run(
            create_thread_and_run, body, self._birth(self.ids.new("thread"), 1, expiry_seconds)
        )

    async def create_on(self, thread_id: str) -> Run:
        """Store another run on a thread: it shows that the thread is free."""
        body = CreateRun(assistant_id=self.assistant_id)
        return (await self.database.run(create_run, body, self._birth(thread_id, 0, 600))).run

    def _birth(self, thread_id: str, messages: int, expiry_seconds: int) -> Birth:
        return Birth(
            project_id=PROJECT,
            run_id=self.ids.new("run"),
            thread_id=thread_id,
            message_ids=[self.ids.new("msg") for _ in range(messages)],
            now=self._now(),
            expiry_seconds=expiry_seconds,
        )

    async def cancel(self, run: Run, *crews: Crew) -> Run:
        """Cancel as the API does."""
        moved = await self.database.run(request_cancel, run.id, run.thread_id, PROJECT, self._now())
        for crew in crews:
            crew.dispatch.interrupt(run.id)
        return moved

    async def submit(self, run: Run, outputs: dict[str, str], *crews: Crew) -> int:
        """Submit outputs as the API does; returns the number where the submit stream begins."""
        given = [ToolOutput(tool_call_id=call_id, output=output) for call_id, output in outputs.items()]
        _, after = await self.database.run(submit_outputs, run.id, run.thread_id, PROJECT, given, self._now())
        for crew in crews:
            crew.feeds.wake(run.id)
            crew.dispatch.tell(run.id)
        return after

    async def delete_thread(self, run: Run, *crews: Crew) -> None:
        """Delete the run's thread as the API does."""
        for run_id in await self.database.run(delete_thread, run.thread_id, PROJECT, self._now()):
            for crew in crews:
                crew.dispatch.interrupt(run_id)
                crew.feeds.wake(run_id)

    async def look(self, run: Run) -> Seen:
        return await self.database.scan(look, run.id)

    async def reached(self, run: Run, *statuses: str) -> Seen:
        """Wait until the run has one of the statuses."""

        async def has() -> bool:
            return (await self.look(run)).status in statuses

        await until(has)
        return await self.look(run)

    async def said(self, run: Run, text: str) -> None:
        """Wait until the log has the text of the run's newest message."""

        async def has() -> bool:
            seen = await self.look(run)
            return bool(seen.messages) and written(seen.events, seen.messages[-1].id) == text

        await until(has)

    async def ended(self, run: Run) -> Seen:
        """Wait until the run is over; its thread must take another run."""
        seen = await self.reached(run, *TERMINAL)
        assert seen.worker_id is None
        assert seen.run.expires_at is None
        return seen


class Crew(msgspec.Struct):
    """What one process has: a worker, its feeds, its dispatch."""

    worker: Worker
    feeds: Feeds
    dispatch: LocalDispatch

    async def read(self, run: Run, after: int = 0) -> list[LogEvent]:
        """Follow a run to the end of its leg."""
        found: list[LogEvent] = []
        async with asyncio.timeout(DEADLINE), aclosing(self.feeds.follow(run.id, after, 0.05)) as batches:
            async for batch in batches:
                found += batch
        return found


@asynccontextmanager
async def stage(database: Database, model: Model | None = None) -> AsyncIterator[Stage]:
    """Set the stage."""
    one = Stage(database, model or HandModel(), PlayedClock())
    await one.make_assistant()
    yield one
