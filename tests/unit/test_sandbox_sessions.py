"""Sessions under a played clock: who gets one, who loses one, and what the model hears of it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from perdure.sandbox.base import CheckReport, Depth, FileInfo, Limits, Result, SandboxFailure, SessionLost, Tell
from perdure.sandbox.sessions import Sessions, SessionsBusy
from perdure.settings import Settings


class PlayedClock:
    """Time goes on when the test says so."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self._order = itertools.count()
        self._alarms: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._alarms, (self.time + seconds, next(self._order), alarm))
        await alarm

    async def go_on(self, seconds: float) -> None:
        end = self.time + seconds
        await settle()
        while self._alarms and self._alarms[0][0] <= end:
            self.time, _, alarm = heapq.heappop(self._alarms)
            if not alarm.done():
                alarm.set_result(None)
            await settle()
        self.time = end


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class CountedSession:
    """A session without a box."""

    packages: list[str] = []

    def __init__(self, number: int, preload: bool) -> None:
        self.number = number
        self.preload = preload
        self.alive = True

    async def run(self, code: str, tell: Tell) -> Result:
        del tell
        if not self.alive or code == "die":
            self.alive = False
            raise SessionLost("gone")
        return Result("ok")

    async def put(self, name: str, content: Path | bytes) -> None:
        raise NotImplementedError

    async def get(self, name: str) -> AsyncIterator[bytes]:
        yield name.encode()

    async def files(self) -> dict[str, FileInfo]:
        return {}

    async def interrupt(self) -> None:
        pass

    async def stop(self) -> None:
        self.alive = False


class CountedSandbox:
    """A kind without boxes: it counts the sessions that it starts."""

    name = "counted"
    about = ""

    def __init__(self) -> None:
        self.started: list[CountedSession] = []
        self.fails = False

    async def start(self, limits: Limits, *, preload: bool = False) -> CountedSession:
        del limits
        if self.fails:
            raise SandboxFailure("no more")
        await asyncio.sleep(0)
        self.started.append(CountedSession(len(self.started), preload))
        return self.started[-1]

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        return CheckReport(f"counted {depth}", [])

    async def close(self) -> None:
        pass


class Stage:
    """Sessions over a counted sandbox."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.clock = PlayedClock()
        self.sandbox = CountedSandbox()
        chosen = {"code_warm_sessions": 0, "code_sessions": 2, **settings}
        self.sessions = Sessions(self.sandbox, Settings.model_validate({"data": data, **chosen}), self.clock)

    async def number_of(self, key: str) -> int:
        async with self.sessions.use(key) as used:
            assert isinstance(used.session, CountedSession)
            return used.session.number

    async def lost_of(self, key: str) -> str:
        async with self.sessions.use(key) as used:
            return used.lost

    def living(self) -> list[int]:
        return [session.number for session in self.sandbox.started if session.alive]

    def play(self, scene: Coroutine[Any, Any, None]) -> None:
        async def whole() -> None:
            await self.sessions.start()
            await settle()
            await scene
            await self.sessions.close()
            assert self.living() == []

        asyncio.run(whole())


def test_a_thread_keeps_its_session(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def scene() -> None:
        assert [await stage.number_of(key) for key in ("a", "b", "a", "b")] == [0, 1, 0, 1]
        assert await stage.lost_of("a") == ""

    stage.play(scene())


def test_calls_of_one_thread_do_not_overlap(tmp_path: Path) -> None:
    stage, order = Stage(tmp_path), []

    async def call(name: str) -> None:
        async with stage.sessions.use("a"):
            order.append(f"{name} begins")
            await settle()
            order.append(f"{name} ends")

    async def scene() -> None:
        await asyncio.gather(call("first"), call("second"))
        assert order == ["first begins", "first ends", "second begins", "second ends"]

    stage.play(scene())


def test_an_idle_session_ends_and_the_model_hears_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, code_session_seconds=100)

    async def scene() -> None:
        await stage.number_of("a")
        await stage.clock.go_on(90)
        assert stage.living() == [0]
        await stage.number_of("a")
        await stage.clock.go_on(150)
        assert stage.living() == []
        lost = await stage.lost_of("a")
        assert "variables, imports and functions" in lost
        assert "not used for too long" in lost
        assert await stage.lost_of("a") == ""

    stage.play(scene())


def test_the_one_that_was_idle_longest_makes_room(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def scene() -> None:
        for key in ("a", "b", "a"):
            await stage.number_of(key)
            await stage.clock.go_on(1)
        assert await stage.number_of("c") == 2
        assert stage.living() == [0, 2]
        assert "other threads needed its place" in await stage.lost_of("b")

    stage.play(scene())


def test_when_all_are_busy_a_call_waits_and_then_hears_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, code_session_wait_seconds=30)
    leave = asyncio.Event()

    async def hold(key: str) -> None:
        async with stage.sessions.use(key):
            await leave.wait()

    async def scene() -> None:
        holding = [asyncio.create_task(hold(key)) for key in ("a", "b")]
        await settle()
        late = asyncio.create_task(stage.number_of("c"))
        await stage.clock.go_on(29)
        assert not late.done()
        await stage.clock.go_on(2)
        with pytest.raises(SessionsBusy, match="busy"):
            await late
        patient = asyncio.create_task(stage.number_of("d"))
        await settle()
        leave.set()
        await asyncio.gather(*holding)
        assert await patient == 2

    stage.play(scene())


def test_a_restart_is_told(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.play(_use(stage, "a"))
    again = Stage(tmp_path)

    async def scene() -> None:
        assert "server was restarted" in await again.lost_of("a")
        assert await again.lost_of("b") == ""
        await again.sessions.forget("a")
        assert await again.lost_of("a") == ""

    again.play(scene())


async def _use(stage: Stage, key: str) -> None:
    assert await stage.lost_of(key) == ""


def test_a_session_that_dies_in_a_call_is_told_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    async def tell(_: object) -> None:
        pass

    async def scene() -> None:
        with pytest.raises(SessionLost):
            async with stage.sessions.use("a") as used:
                await used.session.run("die", tell)
        assert await stage.lost_of("a") == ""
        assert await stage.number_of("a") == 1
        stage.sandbox.started[1].alive = False  # and one that dies between two calls
        assert "it broke down" in await stage.lost_of("a")

    stage.play(scene())


def test_warm_sessions_are_kept_ready(tmp_path: Path) -> None:
    stage = Stage(tmp_path, code_warm_sessions=2)

    async def scene() -> None:
        assert [session.preload for session in stage.sandbox.started] == [True, True]
        assert await stage.number_of("a") == 0
        await settle()
        assert len(stage.sandbox.started) == 3
        stage.sandbox.started[1].alive = False
        assert await stage.number_of("b") == 2

    stage.play(scene())


def test_a_sandbox_that_fails_is_tried_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path, code_warm_sessions=1)
    stage.sandbox.fails = True

    async def scene() -> None:
        with pytest.raises(SandboxFailure):
            await stage.number_of("a")
        stage.sandbox.fails = False
        await stage.clock.go_on(60)
        assert len(stage.sandbox.started) == 1
        assert await stage.number_of("a") == 0

    stage.play(scene())
