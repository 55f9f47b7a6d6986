"""What happens in a simulation: clients at work, an operator who starts again what died, and then quiet.

`CLIENT_ACTS` lists what clients do, as the API's handlers would do it for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from perdure.domain.creation import new_assistant, new_message
from perdure.domain.lifecycle import ACTIVE
from perdure.errors import ApiError
from perdure.store.assistants import insert_assistant
from perdure.store.run_requests import (
    Birth,
    Made,
    add_message,
    create_run,
    create_thread_and_run,
    retry_run,
    submit_outputs,
)
from perdure.store.runs import request_cancel
from perdure.store.threads import delete_thread
from perdure.wire.assistants import CreateAssistant
from perdure.wire.events import LAST_EVENTS, LogEvent
from perdure.wire.messages import CreateMessage
from perdure.wire.runs import CreateRun, CreateThreadAndRun, Run, ToolOutput
from perdure.wire.threads import CreateThread
from perdure.wire.tools import FunctionDefinition, FunctionTool
from tests.simulation.world import BEGIN, EXPIRY, PROJECT, LostError, Process, World

STORM_SECONDS = 20.0
QUIET_SECONDS = 120.0


class ViolationError(Exception):
    """An invariant does not hold. Its name comes first."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.name = name


class Reader(msgspec.Struct):
    """Somebody who follows a run, leaves and comes back."""

    run_id: str
    cursor: int = 0
    seen: list[LogEvent] = []
    done: bool = False


class Acknowledged(msgspec.Struct):
    """What clients were told."""

    messages: dict[str, tuple[str, str]] = {}  # id: thread, text
    runs: dict[str, str] = {}  # id: thread
    outputs: dict[str, str] = {}  # call: output
    deleted: list[str] = []
    threads: list[str] = []


class Play:
    """One simulation."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.acknowledged = Acknowledged()
        self.readers: list[Reader] = []
        self.assistant_id = ""
        self.several = self.dice.random() < 0.5
        self.servers: list[Process] = []
        self.storm = True
        self._said = 0

    @property
    def now(self) -> int:
        return int(BEGIN + asyncio.get_running_loop().time())

    # -- servers

    async def start(self, place: int) -> None:
        process = Process(self.world, f"P{place}", exclusive=not self.several)
        self.world.note(process.name, "starts")
        if place < len(self.servers):
            self.servers[place] = process
        else:
            self.servers.append(process)
        process.spawn(process.serve())

    async def operate(self) -> None:
        """Start again what died; now and then shut one down in good order."""
        while self.storm:
            await asyncio.sleep(self.dice.uniform(0.1, 1.5))
            for place, process in enumerate(self.servers):
                if process.dead:
                    await self.start(place)
                elif self.world.strikes(0.1):
                    try:
                        await process.drain()
                    except LostError:
                        continue

    def server(self) -> Process:
        return self.dice.choice(self.servers)

    # -- clients

    async def client(self) -> None:
        while self.storm:
            await asyncio.sleep(self.dice.uniform(0.05, 2.0))
            act = self.dice.choice(CLIENT_ACTS)
            try:
                await act(self, self.server())
            except LostError:
                continue
            except ApiError as refusal:
                self.world.note("", f"refused: {refusal.message}")

    def text(self) -> str:
        self._said += 1
        return f"said {self._said}"

    def birth(self, process: Process, thread_id: str, messages: int) -> Birth:
        return Birth(
            project_id=PROJECT,
            run_id=self.world.ids.new("run"),
            thread_id=thread_id,
            message_ids=[self.world.ids.new("msg") for _ in range(messages)],
            now=int(process.now()),
            expiry_seconds=EXPIRY,
            when_busy=self.dice.choice(["reject", "reject", "queue", "interrupt"]),
        )

    def thread(self) -> str | None:
        threads = [one for one in self.acknowledged.threads if one not in self.acknowledged.deleted]
        return self.dice.choice(threads) if threads else None

    async def begin_thread(self, process: Process) -> None:
        text, birth = self.text(), self.birth(process, self.world.ids.new("thread"), 1)
        if len(self.acknowledged.threads) > 3:  # few threads: they shall be busy
            return
        body = CreateThreadAndRun(
            assistant_id=self.assistant_id,
            thread=CreateThread(messages=[CreateMessage(role="user", content=text)]),
        )

        async def call() -> Run:
            run = await process.database.run(create_thread_and_run, body, birth)
            process.dispatch.tell(run.id)
            return run

        run = await process.call(call())
        self.acknowledged.threads.append(run.thread_id)
        self.acknowledged.messages[birth.message_ids[0]] = (run.thread_id, text)
        self._has_begun(run)

    def _has_begun(self, run: Run) -> None:
        self.acknowledged.runs[run.id] = run.thread_id
        for _ in range(self.dice.randrange(3)):
            self.readers.append(Reader(run.id))

    async def begin_run(self, process: Process) -> None:
        thread_id = self.thread()
        if thread_id is None:
            return
        text, birth = self.text(), self.birth(process, thread_id, 1)
        body = CreateRun(assistant_id=self.assistant_id, additional_messages=[CreateMessage(role="user", content=text)])

        async def call() -> Made:
            return self._told(process, await process.database.run(create_run, body, birth))

        made = await process.call(call())
        self.acknowledged.messages[birth.message_ids[0]] = (thread_id, text)
        self._has_begun(made.run)

    def _told(self, process: Process, made: Made) -> Made:
        if made.place is not None and made.place.interrupts:
            process.dispatch.interrupt(made.place.behind)
        process.dispatch.tell(made.run.id)
        return made

    async def retry(self, process: Process) -> None:
        if not self.acknowledged.runs:
            return
        run_id = self.dice.choice(list(self.acknowledged.runs))
        birth = self.birth(process, self.acknowledged.runs[run_id], 0)

        async def call() -> Made:
            return self._told(process, await process.database.run(retry_run, run_id, birth))

        self._has_begun((await process.call(call())).run)

    async def say(self, process: Process) -> None:
        thread_id = self.thread()
        if thread_id is None:
            return
        text, message_id = self.text(), self.world.ids.new("msg")
        message = new_message(CreateMessage(role="user", content=text), thread_id, message_id, self.now)
        busy = self.birth(process, thread_id, 0).when_busy

        async def call() -> None:
            place = await process.database.run(add_message, message, PROJECT, busy, self.now)
            if place is not None and place.interrupts:
                process.dispatch.interrupt(place.behind)

        await process.call(call())
        self.acknowledged.messages[message_id] = (thread_id, text)

    async def cancel(self, process: Process) -> None:
        if not self.acknowledged.runs:
            return
        run_id = self.dice.choice(list(self.acknowledged.runs)[-3:])

        async def call() -> None:
            thread_id = self.acknowledged.runs[run_id]
            await process.database.run(request_cancel, run_id, thread_id, PROJECT, int(process.now()))
            process.dispatch.interrupt(run_id)

        await process.call(call())

    async def submit(self, process: Process) -> None:
        """Answer calls that wait, sometimes twice, sometimes those of long ago."""
        for run_id, body in self.world.connection.execute(
            "SELECT id, body FROM runs WHERE status = 'requires_action'"
        ).fetchall():
            action = msgspec.json.decode(body)["required_action"]
            calls = action["submit_tool_outputs"]["tool_calls"]
            outputs = [ToolOutput(tool_call_id=one["id"], output=self.text()) for one in calls]
            for _ in range(self.dice.choice([1, 1, 2])):
                await process.call(self._submit(process, run_id, msgspec.json.decode(body)["thread_id"], outputs))
                for output in outputs:
                    self.acknowledged.outputs[str(output.tool_call_id)] = str(output.output)

    async def _submit(self, process: Process, run_id: str, thread_id: str, outputs: list[ToolOutput]) -> None:
        await process.database.run(submit_outputs, run_id, thread_id, PROJECT, outputs, int(process.now()))
        process.feeds.wake(run_id)
        process.dispatch.tell(run_id)

    async def delete(self, process: Process) -> None:
        thread_id = self.thread()
        if thread_id is None or self.dice.random() < 0.8:  # seldom
            return
        self.acknowledged.deleted.append(thread_id)  # from now on it may be gone

        async def call() -> None:
            for run_id in await process.database.run(delete_thread, thread_id, PROJECT, self.now):
                process.dispatch.interrupt(run_id)
                process.feeds.wake(run_id)

        await process.call(call())

    # -- readers

    async def read(self) -> None:
        """Let everybody who follows a run follow it, and come back after each break."""
        following: dict[int, asyncio.Task[None]] = {}
        while self.storm or any(not one.done() for one in following.values()):
            for place, reader in enumerate(self.readers):
                leg = following.get(place)
                if not reader.done and (leg is None or leg.done()):
                    _raise_violation(leg)
                    process = self.server()
                    if not process.dead:
                        following[place] = process.spawn(self._leg(process, reader))
            await asyncio.sleep(0.3)
        for leg in following.values():
            _raise_violation(leg)

    async def _leg(self, process: Process, reader: Reader) -> None:
        try:
            async with aclosing(process.feeds.follow(reader.run_id, reader.cursor, 1.0, LAST_EVENTS)) as batches:
                async for batch in batches:
                    for event in batch:
                        self._see(reader, event)
                    if reader.done or self.world.strikes(0.5):
                        return
            reader.done = True  # the run, or its thread, is gone
        except ApiError as failure:
            self.world.note(process.name, f"a stream breaks: {failure.message}")

    def _see(self, reader: Reader, event: LogEvent) -> None:
        if event.sequence <= reader.cursor:
            raise ViolationError("reader-order", f"{reader.run_id} got {event.sequence} after {reader.cursor}")
        if not event.name.endswith(".delta"):
            rows = self.world.connection.execute(
                "SELECT events FROM run_events WHERE run_id = ? AND last_sequence >= ? ORDER BY last_sequence LIMIT 1",
                (reader.run_id, event.sequence),
            ).fetchall()
            found = [one for row in rows for one in msgspec.json.decode(row[0]) if one[0] == event.sequence]
            exists = self.world.connection.execute("SELECT 1 FROM runs WHERE id = ?", (reader.run_id,)).fetchone()
            if exists and [one[1] for one in found] != [event.name]:
                raise ViolationError("seen-before-commit", f"{reader.run_id} saw {event.name} {event.sequence}")
        reader.cursor = event.sequence
        reader.seen.append(event)
        reader.done = event.name in LAST_EVENTS

    # -- the whole

    async def run(self) -> None:
        """Storm, then quiet. Raises ViolationError if something does not come to an end."""
        await self._make_assistant()
        for place in range(2 if self.several else 1):
            await self.start(place)
        loop = asyncio.get_running_loop()
        players = [loop.create_task(self.client()) for _ in range(3)]
        players += [loop.create_task(self.operate()), loop.create_task(self.read())]
        await asyncio.sleep(STORM_SECONDS)
        self.storm = False
        self.world.note("", "quiet")
        self.world.faults = 0.0
        self.world.model.kind = True
        await asyncio.gather(*players[:-1])
        for place, process in enumerate(self.servers):
            if process.dead:
                await self.start(place)
        await self._until_still()
        await players[-1]
        await self._ask_everywhere()
        for process in self.servers:
            await process.drain()
        await asyncio.sleep(1)

    async def _make_assistant(self) -> None:
        tool = FunctionTool(function=FunctionDefinition(name="look"))
        body = CreateAssistant(model="seeded", tools=[tool])
        assistant, extra = new_assistant(body, self.world.ids.new("asst"), self.now)
        self.world.transact(lambda: insert_assistant(assistant, extra, PROJECT), commit=True)
        self.assistant_id = assistant.id

    def active(self) -> list[str]:
        marks = ", ".join("?" for _ in ACTIVE)
        rows = self.world.connection.execute(f"SELECT id FROM runs WHERE status IN ({marks})", sorted(ACTIVE))
        return [row[0] for row in rows.fetchall()]

    async def _until_still(self) -> None:
        until = asyncio.get_running_loop().time() + QUIET_SECONDS
        while active := self.active():
            if asyncio.get_running_loop().time() > until:
                raise ViolationError("every-run-ends", f"{active} are still active")
            await asyncio.sleep(0.5)

    async def _ask_everywhere(self) -> None:
        """Each thread that is there takes a further run, which completes."""
        rows = self.world.connection.execute("SELECT id FROM threads").fetchall()
        process = self.servers[0]
        for (thread_id,) in rows:
            birth = msgspec.structs.replace(self.birth(process, thread_id, 1), when_busy="reject")
            message = CreateMessage(role="user", content=self.text())
            body = CreateRun(assistant_id=self.assistant_id, additional_messages=[message])
            try:
                made = await process.database.run(create_run, body, birth)
            except ApiError as refusal:
                raise ViolationError("thread-is-free", refusal.message) from None
            process.dispatch.tell(made.run.id)
            self.acknowledged.runs[made.run.id] = thread_id
        await self._until_still()


def _raise_violation(leg: asyncio.Task[None] | None) -> None:
    if leg is not None and leg.done() and not leg.cancelled() and isinstance(leg.exception(), ViolationError):
        leg.result()


Act = Callable[[Play, Process], Awaitable[None]]

CLIENT_ACTS: tuple[Act, ...] = (
    Play.begin_thread,
    Play.begin_run,
    Play.begin_run,
    Play.say,
    Play.cancel,
    Play.submit,
    Play.submit,
    Play.submit,
    Play.retry,
    Play.delete,
)
