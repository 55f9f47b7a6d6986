"""Which session belongs to which thread: made when first used, kept for a while, ended when others need the place.

    use(key)     the session of a thread, alone: calls of one thread never overlap
    idle         after `code_session_seconds` without use it is ended
    full         the session that was idle longest makes room; if all are busy, a call waits, then hears so
    warm         some are started ahead, so that a first call waits for none

Rule: a session that is gone is said to be gone, once, in words for the model. That a thread had one is written into a
small file, so it is known after a restart, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from perdure.ids import Clock
from perdure.sandbox import words
from perdure.sandbox.base import Limits, Sandbox, SandboxFailure, Session, SessionLost
from perdure.settings import Settings

log = logging.getLogger("perdure.sandbox")

Ending = Literal["open", "expired", "evicted", "ended"]
WHY: dict[str, str] = {
    "open": "the server was restarted",
    "expired": "it was not used for too long",
    "evicted": "other threads needed its place",
    "ended": "it broke down",
}
RETRY_SECONDS = 30.0
LOOK_SECONDS = 15.0
REMEMBERED_SECONDS = 60 * 86400


class SessionsBusy(Exception):
    """All sessions are in use, and stayed so. The text is for the model."""


class Used:
    """A session in use by one call. `lost` is what the model must hear first: '' or words about an earlier session."""

    def __init__(self, session: Session, lost: str) -> None:
        self.session = session
        self.lost = lost


class _Place:
    """A thread's place: at most one session, one user at a time."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.session: Session | None = None
        self.users = 0
        self.used_at = 0.0


class Sessions:
    """All sessions of this server, by key (a thread's id)."""

    def __init__(self, sandbox: Sandbox, settings: Settings, clock: Clock) -> None:
        self.sandbox = sandbox
        self.limits = Limits.of(settings)
        self._settings = settings
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._taken = 0
        self._freed = asyncio.Event()
        self._warm: deque[Session] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cold = asyncio.Event()
        self._closed = False
        self._notes = settings.data.absolute() / "sandbox" / "had"

    async def start(self) -> None:
        """Begin to keep sessions warm and to end idle ones."""
        self._notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(self._forget_old_notes)
        self._cold.set()
        for work in (self._keep_warm(), self._end_idle()):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    @property
    def warm(self) -> int:
        """How many sessions stand ready."""
        return len(self._warm)

    @contextlib.asynccontextmanager
    async def use(self, key: str) -> AsyncIterator[Used]:
        """Give the session of `key` to the block, alone. Raises SessionsBusy, SandboxFailure."""
        place = self._places.setdefault(key, _Place())
        place.users += 1
        try:
            async with place.lock:
                lost = await self._fill(key, place)
                assert place.session is not None  # noqa: S101  # _fill fills it or raises
                try:
                    yield Used(place.session, lost)
                except SessionLost:  # whoever called tells the model: the next call begins anew without a word
                    self._note(key).unlink(missing_ok=True)
                    raise
                finally:
                    place.used_at = self._clock.now()
        finally:
            place.users -= 1
            if place.session is not None and not place.session.alive:
                await self._end(place)
            if place.users == 0 and place.session is None and self._places.get(key) is place:
                del self._places[key]
            self._freed.set()

    async def forget(self, key: str) -> None:
        """End the session of a thread that is no more."""
        place = self._places.get(key)
        if place is not None:
            async with place.lock:
                await self._end(place)
            if place.users == 0 and self._places.get(key) is place:
                del self._places[key]
            self._freed.set()
        self._note(key).unlink(missing_ok=True)

    async def close(self) -> None:
        """End every session. What they had is told to the model as lost by a restart."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        ending = [place.session.stop() for place in self._places.values() if place.session is not None]
        await asyncio.gather(*ending, *(session.stop() for session in self._warm))
        self._warm.clear()
        await self.sandbox.close()

    # ---- places

    async def _fill(self, key: str, place: _Place) -> str:
        """See to it that the place has a session that lives; returns what is to be said of an earlier one."""
        if place.session is not None and place.session.alive and not self._is_old(place):
            return ""
        if place.session is not None:
            ending: Ending = "expired" if place.session.alive else "ended"
            await self._end(place)
            self._write_note(key, ending)
        before = self._read_note(key)
        await self._take()
        try:
            place.session = await self._start()
        except BaseException:
            self._taken -= 1
            raise
        self._write_note(key, "open")
        return f"{words.LOST} ({WHY[before]}.)" if before else ""

    async def _take(self) -> None:
        """Take one of the places, making room or waiting for it. Raises SessionsBusy."""
        deadline = self._clock.now() + self._settings.code_session_wait_seconds
        while self._taken >= self._settings.code_sessions:
            self._freed.clear()
            if await self._evict():
                continue
            left = deadline - self._clock.now()
            if left <= 0:
                log.warning("all %d code sessions are busy: a call was refused", self._settings.code_sessions)
                raise SessionsBusy(
                    "The code was not run: all sessions of the code interpreter are busy. Try again in a while."
                )
            await self._wait(left)
        self._taken += 1

    async def _wait(self, seconds: float) -> None:
        """Wait until a place may be free, at most that long by the server's clock."""
        alarm = asyncio.ensure_future(self._clock.sleep(seconds))
        freed = asyncio.ensure_future(self._freed.wait())
        try:
            await asyncio.wait({alarm, freed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            alarm.cancel()
            freed.cancel()

    async def _evict(self) -> bool:
        """End the session that was idle longest; False if none is idle."""
        idle = [(place.used_at, key) for key, place in self._places.items() if place.session and not place.users]
        if not idle:
            return False
        key = min(idle)[1]
        place = self._places.pop(key)
        self._write_note(key, "evicted")
        await self._end(place)
        return True

    async def _end(self, place: _Place) -> None:
        if place.session is None:
            return
        session, place.session = place.session, None
        self._taken -= 1
        await session.stop()

    def _is_old(self, place: _Place) -> bool:
        return self._clock.now() - place.used_at > self._settings.code_session_seconds

    async def _end_idle(self) -> None:
        pause = min(LOOK_SECONDS, self._settings.code_session_seconds / 4)
        while True:
            await self._clock.sleep(pause)
            for key, place in list(self._places.items()):
                if place.session is None or place.users or not self._is_old(place):
                    continue
                del self._places[key]
                self._write_note(key, "expired")
                await self._end(place)
            self._freed.set()

    # ---- warm ones

    async def _start(self) -> Session:
        while self._warm:
            session = self._warm.popleft()
            self._cold.set()
            if session.alive:
                return session
            await session.stop()
        return await self.sandbox.start(self.limits)

    async def _keep_warm(self) -> None:
        while True:
            await self._cold.wait()
            self._cold.clear()
            while len(self._warm) < self._settings.code_warm_sessions:
                try:
                    self._warm.append(await self.sandbox.start(self.limits, preload=True))
                except SandboxFailure as failure:
                    log.warning("no warm code session: %s", failure)
                    await self._clock.sleep(RETRY_SECONDS)

    # ---- what is known after a restart

    def _note(self, key: str) -> Path:
        return self._notes / hashlib.sha256(key.encode()).hexdigest()[:40]

    def _write_note(self, key: str, ending: Ending) -> None:
        self._note(key).write_text(ending, encoding="ascii")

    def _read_note(self, key: str) -> str:
        """Return how the earlier session of this key ended; '' if it had none."""
        try:
            ending = self._note(key).read_text(encoding="ascii")
        except OSError:
            return ""
        return ending if ending in WHY else "ended"

    def _forget_old_notes(self) -> None:
        oldest = self._clock.now() - REMEMBERED_SECONDS
        for note in self._notes.iterdir():
            if note.stat().st_mtime < oldest:
                note.unlink(missing_ok=True)
