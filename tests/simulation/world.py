"""The world of a simulation: one store, processes that crash and freeze, a model and a clock that are played.

Everything that could differ from one time to the next comes from one pair of dice. Faults strike where the engine
waits for the outside: at the store, at its clock, at the model.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import cache
from typing import Any, ParamSpec, TypeVar

from perdure.engine.dispatch import LocalDispatch
from perdure.engine.live import Feeds
from perdure.engine.worker import Worker, WorkerSettings
from perdure.errors import RunFailure, Unavailable
from perdure.models.base import Capacity, Finished, ModelPiece, ModelRequest, ModelUsage, TextDelta, ToolCallDelta
from perdure.models.names import ModelRegistry
from perdure.models.tokens import TokenCounter
from perdure.store.db import Operation, Statement
from perdure.store.migrations import apply_next
from perdure.store.sqlite import DIALECT, _drive

T = TypeVar("T")
P = ParamSpec("P")

BEGIN = 1_800_000_000.0
LEASE = 3.0
EXPIRY = 20
PROJECT = "proj_default"
Alter = Callable[[Statement], None]


class DeadError(BaseException):
    """Raised in what is left of a process that was killed: nothing it does counts any more."""


class LostError(Exception):
    """What a client sees of a process that died under its call."""


class SeededIds:
    """Identifiers in the order in which they are asked for."""

    def __init__(self) -> None:
        self._count = 0

    def new(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}_{self._count:024d}"


@cache
def _template() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    more = True
    while more:
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        more = _drive(cursor, apply_next(DIALECT))
        cursor.execute("COMMIT")
    return connection


class World:
    """What outlives every process: the store, the dice, the trace, and how likely faults are."""

    def __init__(self, seed: int, *, faults: float, alter: Alter | None = None) -> None:
        self.dice = random.Random(seed)  # noqa: S311  # a game, no secret
        self.ids = SeededIds()
        self.faults = faults
        self.alter = alter
        self.trace: list[str] = []
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        _template().backup(self.connection)
        self.model = SeededModel(self)
        self.bugs_wanted = 0
        self.processes: list[Process] = []

    def note(self, who: str, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():8.3f} {who:5} {what}")

    def strikes(self, share: float = 1.0) -> bool:
        """Say whether a fault happens here."""
        return self.dice.random() < self.faults * share

    def transact(self, operation: Callable[[], Operation[T]], *, commit: bool) -> T:
        """Run an operation as one transaction, at once."""
        cursor = self.connection.cursor()
        cursor.execute("BEGIN")
        try:
            answer = _drive(cursor, self._altered(operation()))
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT" if commit else "ROLLBACK")
        return answer

    def _altered(self, steps: Operation[T]) -> Operation[T]:
        """Let a planted bug change the statements."""
        answer: Any = None
        while True:
            try:
                statement = steps.send(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            if self.alter is not None:
                self.alter(statement)
            answer = yield statement


class Process:
    """One server: a worker with its feeds and its dispatch, on a handle that dies with it."""

    def __init__(self, world: World, name: str, *, exclusive: bool) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.frozen_until = 0.0
        self._skew = world.dice.uniform(-0.2, 0.2) * LEASE
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.database = Handle(self)
        self.feeds = Feeds(self.database)
        self.dispatch = LocalDispatch()
        log = logging.getLogger("tests.simulation")
        models = ModelRegistry(
            {"builtin": world.model}, [], "seeded", model_map={}, default_model=None, clock=self, log=log
        )
        settings = WorkerSettings(
            concurrency=world.dice.choice([1, 2, 8]),
            lease_seconds=LEASE,
            grace_seconds=0.5,
            event_log_seconds=10_000_000,
            exclusive=exclusive,
        )
        self.worker = Worker(self.database, models, self.feeds, self, world.ids, settings)
        self.dispatch.listen(self.worker)
        world.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something in this process; all that it begins in turn dies with the process too."""
        IN_PROCESS.append(self)
        try:
            return asyncio.get_running_loop().create_task(work)
        finally:
            IN_PROCESS.pop()

    def own(self, task: asyncio.Task[Any]) -> None:
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    async def serve(self) -> None:
        """Start the worker; a store that refuses at the start ends a process, and its operator starts it again."""
        try:
            await self.worker.start()
        except Unavailable:
            self.world.note(self.name, "could not start")
            self.kill()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Make a client's call. Raises LostError if the process dies before it answers."""
        if self.dead:
            work.close()
            raise LostError
        task = self.spawn(work)
        await asyncio.wait([task])
        if task.cancelled() or isinstance(task.exception(), DeadError):
            raise LostError
        return task.result()

    def kill(self) -> None:
        """SIGKILL."""
        if self.dead:
            return
        self.world.note(self.name, "KILLED")
        self.dead = True
        for task in list(self._tasks):
            task.cancel()

    async def drain(self) -> None:
        """SIGTERM."""
        self.world.note(self.name, "drains")
        await self.call(self.worker.drain())
        self.kill()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.world.note(self.name, f"FROZEN for {seconds:.1f}")
        self.frozen_until = asyncio.get_running_loop().time() + seconds

    async def awake(self) -> None:
        """Pass a point where the process waits for the outside; not before it goes on, never when it is dead."""
        while not self.dead and (left := self.frozen_until - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  # a time that may be put off
            await asyncio.sleep(left)
        if self.dead:
            raise DeadError

    # -- the clock port

    def now(self) -> float:
        return BEGIN + self._skew + asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self.world.strikes(0.02):
            self.kill()
        await self.awake()


IN_PROCESS: list[Process] = []
"""Whose task is being made: the newest entry."""


def make_task(loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> asyncio.Task[Any]:
    """Make a task (a loop's task factory): it belongs to the process whose task makes it, or for which it is made."""
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **named)
    maker = asyncio.current_task(loop)
    owner = IN_PROCESS[-1] if IN_PROCESS else OWNERS.get(maker) if maker else None
    if owner is not None:
        OWNERS[task] = owner
        task.add_done_callback(lambda done: OWNERS.pop(done, None))
        owner.own(task)
    return task


OWNERS: dict[asyncio.Task[Any], Process] = {}


class Handle:
    """The database port of one process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world

    async def run(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        world, process, name = self._world, self._process, operation.__name__.strip("_")
        await self._wait()
        if world.strikes():
            world.note(process.name, f"{name}: the disk is full")
            raise Unavailable("The disk is full.")
        if world.strikes(0.3):
            self._crash(f"{name}/before")
        killed = world.strikes(0.3)
        try:
            answer = world.transact(lambda: operation(*args, **kwargs), commit=not killed)
        except Exception as refusal:
            world.note(process.name, f"{name}: {type(refusal).__name__} {refusal}")
            await self._wait()
            raise
        if killed:
            self._crash(f"{name}/written")
        world.note(process.name, f"{name} {_short(args)}")
        if world.strikes(0.3):
            self._crash(f"{name}/committed")
        await self._wait()
        return answer

    async def read(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        await self._wait()
        if self._world.strikes(0.1):
            self._world.note(self._process.name, f"{operation.__name__}: the store is away")
            raise Unavailable("The store is away.")
        return self._world.transact(lambda: operation(*args, **kwargs), commit=False)

    async def scan(self, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.read(operation, *args, **kwargs)

    async def close(self) -> None:
        pass

    async def _wait(self) -> None:
        """Take a moment; sometimes longer than a lease."""
        dice = self._world.dice
        await self._process.awake()
        if self._world.strikes(0.15):
            self._process.freeze(dice.uniform(0.5, 2.5) * LEASE)
        slow = self._world.strikes(0.15)
        await asyncio.sleep(dice.uniform(0.5, 2) * LEASE if slow else dice.uniform(0, 0.02))
        await self._process.awake()

    def _crash(self, edge: str) -> None:
        self._world.note(self._process.name, f"dies at {edge}")
        self._process.kill()
        raise DeadError


def _short(args: tuple[Any, ...]) -> str:
    return " ".join(one.replace("0" * 20, "") for one in args if isinstance(one, str))


class SeededModel:
    """Answers by the dice. Each answer's pieces name it, so that mixed ones are seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._answers = 0
        self._counter = TokenCounter(lambda texts: [len(text) for text in texts])
        self.kind = False
        """Whether it only answers, from now on."""

    def capacity(self, model: str) -> Capacity:
        del model
        return Capacity(counter=self._counter)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        dice = self._world.dice
        self._answers += 1
        number = self._answers
        called = any(message["role"] == "tool" for message in request.messages)
        length = dice.randrange(1, 5)
        for place in range(length):
            await asyncio.sleep(dice.uniform(0, 0.2))
            self._misbehave(number)
            if self._world.strikes(0.3) and not self.kind:
                await asyncio.sleep(2 * EXPIRY)  # silence
            yield TextDelta(f"<{number}.{place}/{length}>")
        if request.tools and not called and dice.random() < 0.5 and not self.kind:  # every other time
            for index in range(dice.randrange(1, 3)):
                yield ToolCallDelta(index, f"call_{number}_{index}", "look", "")
                await asyncio.sleep(dice.uniform(0, 0.1))
                yield ToolCallDelta(index, None, None, f'{{"n": {number}}}')
            yield Finished("tool_calls")
        else:
            yield Finished("stop")
        if dice.random() < 0.5:
            yield ModelUsage(10, length)

    def _misbehave(self, number: int) -> None:
        if self.kind:
            return
        if self._world.strikes(0.5):
            self._world.note("model", f"answer {number} breaks off")
            raise RunFailure("The model broke off.")
        if self._world.strikes(0.1):
            self._world.note("model", f"answer {number} has a bug")
            self._world.bugs_wanted += 1
            raise RuntimeError("a bug in a model")

    async def list_models(self) -> list[str]:
        return []

    async def warm_up(self) -> None:
        pass

    async def close(self) -> None:
        pass
