"""The live side of the event log: readers follow a run while it is written.

A stream is a reader of the log. What a worker of this process appends, reaches readers here without a look-up, deltas
even before they are committed; all else they read from the store. Rules: a feed forgets only what is committed, and a
reader whose place the feed no longer covers goes to the store. No transaction is open while a reader waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import suppress

from perdure.errors import Unavailable
from perdure.store.db import Database
from perdure.store.event_log import LogEnds, is_log_over, list_events, list_log_ends
from perdure.wire.events import END_EVENTS, LogEvent

TAIL_EVENTS = 1024
LOOK_SECONDS = 1.0
"""How often it is looked into the store for the readers that wait: another process may be writing their runs."""
LOOK_RUNS = 250
"""Runs in one look-up, so that it is short."""


class Signal:
    """Wakes whoever waits for something newer than the version that they have seen."""

    def __init__(self) -> None:
        self.version = 0
        self._waiting: dict[asyncio.Future[None], None] = {}  # a set would wake them in any order

    @property
    def is_awaited(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiting)

    def fire(self) -> None:
        """Raise the version and wake everybody."""
        self.version += 1
        waiting, self._waiting = self._waiting, {}
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seen: int, seconds: float) -> bool:
        """Wait until the version differs from `seen`; False when the time is over."""
        if self.version != seen:
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[future] = None
        timer = loop.call_later(seconds, _resolve, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)
        return self.version != seen


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Feed:
    """The newest events of one run. `news` fires at every event, `moves` only when something was committed."""

    def __init__(self) -> None:
        self.news = Signal()
        self.moves = Signal()
        self.users = 0
        self.looked: int | None = None  # the last event that the store had at the last look
        self._pen: Pen | None = None  # None: nobody here writes the run

    def begin(self, last_event: int) -> Pen:
        """Begin: a worker of this process holds the run now, its log ends at `last_event`. An older pen is dead."""
        self._pen = Pen(self, last_event)
        return self._pen

    def has(self, pen: Pen) -> bool:
        """Say whether nobody has begun since."""
        return self._pen is pen

    def end(self) -> None:
        """End: the worker has let go, all is committed."""
        self._pen = None
        self.fire()

    def fire(self) -> None:
        """Wake all readers: something was committed."""
        self.moves.fire()
        self.news.fire()

    @property
    def needs_look(self) -> bool:
        """Whether somebody waits here for a run that is not written here."""
        return self._pen is None and self.news.is_awaited

    def since(self, cursor: int) -> list[LogEvent] | None:
        """Return the events after `cursor`, or None if only the store can tell."""
        return None if self._pen is None else self._pen.since(cursor)


class Pen:
    """One attempt's right to write a feed. An attempt that has lost its run to a later one shows nothing any more."""

    def __init__(self, feed: Feed, last_event: int) -> None:
        self._feed = feed
        self._tail: deque[LogEvent] = deque()
        self._floor = last_event  # the tail has everything after it
        self._committed = last_event

    def end(self) -> None:
        """Let go; all is committed."""
        if self._feed.has(self):
            self._feed.end()

    def show(self, events: list[LogEvent]) -> None:
        """Show events that are not committed yet: deltas only."""
        self._tail.extend(events)
        if self._feed.has(self):
            self._feed.news.fire()

    def commit(self, up_to: int, events: list[LogEvent]) -> None:
        """Show events that are committed, as is everything up to `up_to`."""
        self._tail.extend(events)
        self._committed = max(self._committed, up_to)
        while len(self._tail) > TAIL_EVENTS and self._tail[0].sequence <= self._committed:
            self._floor = self._tail.popleft().sequence
        if events and self._feed.has(self):
            self._feed.fire()

    def since(self, cursor: int) -> list[LogEvent] | None:
        """Return the events after `cursor`; None if the tail does not reach back so far."""
        if cursor < self._floor:
            return None
        found: list[LogEvent] = []
        for event in reversed(self._tail):  # a reader is seldom far behind
            if event.sequence <= cursor:
                break
            found.append(event)
        found.reverse()
        return found


class Feeds:
    """The feeds of all runs that somebody writes or reads in this process."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feeds: dict[str, Feed] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    def attach(self, run_id: str) -> Feed:
        """Return the run's feed; give it back with `detach`."""
        feed = self._feeds.get(run_id)
        if feed is None:
            feed = self._feeds[run_id] = Feed()
        feed.users += 1
        return feed

    def detach(self, run_id: str) -> None:
        """Give a feed back; the last one out drops it."""
        feed = self._feeds[run_id]
        feed.users -= 1
        if feed.users == 0:
            del self._feeds[run_id]

    def wake(self, run_id: str) -> None:
        """Say that something of a run was committed by somebody other than its worker."""
        feed = self._feeds.get(run_id)
        if feed is not None:
            feed.fire()

    def close(self) -> None:
        """Send all readers away: this process works no runs any more."""
        self._closed = True
        for feed in self._feeds.values():
            feed.fire()

    @property
    def open(self) -> int:
        """How many runs somebody writes or reads here."""
        return len(self._feeds)

    async def follow(
        self, run_id: str, after: int, keepalive_seconds: float, ends: Collection[str] = END_EVENTS
    ) -> AsyncGenerator[list[LogEvent], None]:
        """Yield events after a number in small batches, an empty one after each silence, up to one of `ends`.

        It also ends when the run, or the log of an ended one, is deleted, and when an ended run has no such events.
        Raises Unavailable when the server shuts down before that.
        """
        feed = self.attach(run_id)
        cursor, woken = after, False
        try:
            while True:
                seen = feed.news.version
                batch = feed.since(cursor)
                if batch is None:
                    batch = await self._database.read(list_events, run_id, cursor)
                if batch:
                    batch = _up_to_end(batch, ends)
                    cursor, woken = batch[-1].sequence, False
                    yield batch
                    if batch[-1].name in ends:
                        return
                elif woken and await self._database.read(is_log_over, run_id, cursor):
                    return
                elif self._closed:
                    raise Unavailable(
                        f"The server is shutting down. The run goes on when it is back: retrieve it, or read on after "
                        f"event {cursor}."
                    )
                else:
                    self._look_soon()
                    woken = await feed.news.wait(seen, keepalive_seconds)
                    if not woken:
                        yield []
        finally:
            self.detach(run_id)

    # -- one look for all who wait

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look_again())

    async def _look_again(self) -> None:
        """Wake the readers of runs that another process has written on; end when nobody waits any more."""
        try:
            while self._feeds:
                await asyncio.sleep(LOOK_SECONDS)
                waiting = [run_id for run_id, feed in self._feeds.items() if feed.needs_look]
                for first in range(0, len(waiting), LOOK_RUNS):
                    await self._look(waiting[first : first + LOOK_RUNS])
        finally:
            self._looking = None

    async def _look(self, run_ids: list[str]) -> None:
        ends: LogEnds = {}
        with suppress(Unavailable):  # each reader finds that out for itself, and says so
            ends = await self._database.read(list_log_ends, run_ids, LOOK_RUNS)
        for run_id in run_ids:
            feed = self._feeds.get(run_id)
            last = ends.get(run_id)
            if feed is not None and (last is None or last != feed.looked):
                feed.looked = last
                feed.news.fire()


def _up_to_end(batch: list[LogEvent], ends: Collection[str]) -> list[LogEvent]:
    for index, event in enumerate(batch):
        if event.name in ends:
            return batch[: index + 1]
    return batch
