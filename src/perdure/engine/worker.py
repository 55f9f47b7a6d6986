"""The worker: claims runs, renews its leases, works them, lets go; recovers what others dropped; drains at the end.

Rules. A run is worked only under a claim, and every write carries its attempt number. Recovery puts a run back into the
queue and never works it in place. A worker that can not reach the store stops renewing and lets the leases lapse.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from perdure.engine.answer import work_run
from perdure.engine.live import Feeds
from perdure.engine.recorder import Recorder
from perdure.engine.rounds import Rounds
from perdure.engine.turn import Stop, Stopped
from perdure.errors import RunFailure, Unavailable
from perdure.ids import Clock, Ids
from perdure.models.names import ModelRegistry
from perdure.store.db import Database
from perdure.store.endings import end_unheld, recover_run
from perdure.store.event_log import delete_logs, list_old_logs
from perdure.store.runs import (
    Claim,
    Hold,
    LeaseLost,
    RunStopped,
    claim_run,
    has_waiting,
    list_held_runs,
    list_unheld_ends,
    renew_leases,
)
from perdure.tools.toolbox import NO_TOOLS, Toolbox

log = logging.getLogger("perdure.engine")

LOOK_SECONDS = 1.0
"""How often the queue and the clocks are looked at where no hint came."""
CLEAN_EVERY = 60
MOST_RECOVERIES = 3
UNKNOWN_FAULT = "Sorry, something went wrong."


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know. Durations in seconds."""

    concurrency: int
    lease_seconds: float
    grace_seconds: float
    event_log_seconds: int
    exclusive: bool
    """No other process can hold runs of this store: what is held at the start was dropped."""


class Held(msgspec.Struct):
    """A run in work."""

    hold: Hold
    stop: Stop
    expires_at: float


class Worker:
    """Works runs. `run_waits` and `run_cancelled` are its ears (`dispatch.Listener`)."""

    def __init__(
        self,
        database: Database,
        models: ModelRegistry,
        feeds: Feeds,
        clock: Clock,
        ids: Ids,
        settings: WorkerSettings,
        toolbox: Toolbox = NO_TOOLS,
    ) -> None:
        self._database = database
        self._toolbox = toolbox
        self._models = models
        self._feeds = feeds
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._worker_id = ids.new("worker")
        self._held: dict[str, Held] = {}
        self._taking: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._rounds = Rounds(clock, log, "the worker")
        self._behind = False  # more runs may wait than there were free places
        self._claiming = 0
        self._early: set[str] = set()  # cancelled while a claim was under way that may bring just this run
        self._draining = False
        self._grace_over = False

    # -- life

    async def start(self) -> None:
        """Recover what a dead process left, then work until `drain`. Raises Unavailable.

        What can not be recovered now, on a full disk say, is recovered when its lease lapses.
        """
        if self._settings.exclusive:
            await self._recover(None)
        self._rounds.begin(
            (self._look, LOOK_SECONDS),
            (self._renew, self._settings.lease_seconds / 3),
            (self._sweep, LOOK_SECONDS),
            (self._clean, CLEAN_EVERY),
        )

    async def drain(self) -> None:
        """Claim nothing more, give running turns their grace, put the rest back into the queue, send readers away."""
        self._draining = True
        if self._taking:
            await asyncio.wait(self._taking, timeout=self._settings.grace_seconds)
        self._grace_over = True
        for held in self._held.values():
            held.stop.fire("drained")
        if self._taking or self._ending:
            await asyncio.wait(self._taking | self._ending, timeout=self._settings.lease_seconds)
        await self._rounds.end()
        self._feeds.close()

    # -- hints

    def run_waits(self, run_id: str) -> None:
        """Take the run at once if there is a free place."""
        if self._has_place():
            self._take(run_id)
        else:
            self._behind = True

    def run_cancelled(self, run_id: str) -> None:
        """Stop a run in work; end one that nobody holds, without waiting for a free place."""
        held = self._held.get(run_id)
        if held is not None:
            held.stop.fire("cancelled")
            return
        if self._claiming:
            self._early.add(run_id)
        one = asyncio.get_running_loop().create_task(self._end_unheld(run_id))
        self._ending.add(one)
        one.add_done_callback(self._ended)

    def _ended(self, one: asyncio.Task[None]) -> None:
        self._ending.discard(one)
        if not one.cancelled() and (fault := one.exception()) is not None:
            log.error("a run could not be ended", exc_info=fault)

    # -- claims

    def _has_place(self) -> bool:
        return not self._draining and len(self._taking) < self._settings.concurrency

    def _take(self, run_id: str | None) -> None:
        one = asyncio.get_running_loop().create_task(self._claim_and_work(run_id))
        self._taking.add(one)
        one.add_done_callback(self._let_go)

    def _let_go(self, one: asyncio.Task[None]) -> None:
        self._taking.discard(one)
        if not one.cancelled() and (fault := one.exception()) is not None:
            log.error("a run could not be worked", exc_info=fault)
        elif self._behind and not self._draining:
            self._take(None)

    async def _claim_and_work(self, run_id: str | None) -> None:
        if self._draining:
            return
        if run_id is None:
            self._behind = False  # a hint that comes while we look sets it again
        self._claiming += 1
        try:
            claim = await self._claim(run_id)
            held = None if claim is None else self._hold(claim)
        finally:
            self._claiming -= 1
            if not self._claiming:
                self._early.clear()
        if claim is None or held is None:
            return
        if run_id is None:  # where one waited more may: the next looks in a place of its own
            self._behind = True
            if self._has_place():
                self._take(None)
        await self._work(claim, held)

    async def _claim(self, run_id: str | None) -> Claim | None:
        now = self._clock.now()
        try:
            return await self._database.run(claim_run, self._worker_id, now, now + self._settings.lease_seconds, run_id)
        except Unavailable as error:
            log.warning("no run can be claimed: %s", error.message)
            return None

    def _hold(self, claim: Claim) -> Held:
        """Take note of a claim, and of what happened to its run while it was under way."""
        run = claim.row.run
        older = self._held.get(run.id)
        if older is not None:  # recovered by another process, and we had not heard of it
            older.stop.fire("lost")
        held = self._held[run.id] = Held(claim.hold, Stop(), run.expires_at or 0)
        if run.id in self._early:
            held.stop.fire("cancelled")
        elif held.expires_at <= self._clock.now():
            held.stop.fire("expired")
        elif self._grace_over:
            held.stop.fire("drained")
        return held

    async def _look(self) -> None:
        """Find runs that nobody told of."""
        if self._has_place() and await self._database.read(has_waiting) and self._has_place():
            self._take(None)

    # -- work

    async def _work(self, claim: Claim, held: Held) -> None:
        run = claim.row.run
        pen = self._feeds.attach(run.id).begin(claim.row.last_event - len(claim.events))
        pen.commit(claim.row.last_event, claim.events)
        recorder = Recorder(self._database, pen, self._clock, self._ids, claim, self.run_waits)
        try:
            await self._turns(claim, recorder, held.stop)
        except LeaseLost:
            log.warning("run %s: the lease was lost, another attempt has it or its thread is gone", run.id)
        except Unavailable as error:
            log.error(  # noqa: TRY400  # the driver has logged the cause
                "run %s: left for recovery, the store does not answer: %s", run.id, error.message
            )
        finally:
            try:
                await recorder.close()
            finally:
                if self._held.get(run.id) is held:
                    del self._held[run.id]
                pen.end()
                self._feeds.detach(run.id)

    async def _turns(self, claim: Claim, recorder: Recorder, stop: Stop) -> None:
        run = claim.row.run
        try:
            await work_run(recorder, claim, stop, self._database, self._models, self._toolbox)
        except RunStopped:
            await recorder.wind_up("cancelled")
        except Stopped as stopped:
            await self._stopped(recorder, stopped, run.id)
        except RunFailure as failure:
            log.info("run %s failed: %s", run.id, failure.message)
            await recorder.wind_up("failed", failure=failure)
        except (LeaseLost, Unavailable):
            raise
        except Exception:
            log.exception("run %s: a bug, the run ends failed", run.id)
            await recorder.wind_up("failed", failure=RunFailure(UNKNOWN_FAULT))

    async def _stopped(self, recorder: Recorder, stopped: Stopped, run_id: str) -> None:
        if stopped.reason == "lost":
            raise LeaseLost
        if stopped.reason == "drained":
            interrupted = RunFailure("The server was shut down; what was not finished is done again.")
            await recorder.wind_up("queued", failure=interrupted)
            log.info("run %s went back to the queue", run_id)
        else:
            await recorder.wind_up("expired" if stopped.reason == "expired" else "cancelled")

    # -- rounds

    async def _renew(self) -> None:
        """Extend the leases, and learn what another process did to the runs."""
        holds = [held.hold for held in self._held.values()]
        if not holds:
            return
        until = self._clock.now() + self._settings.lease_seconds
        statuses = await self._database.run(renew_leases, holds, until)
        for run_id, status in statuses.items():
            held = self._held.get(run_id)
            if held is None or held.hold not in holds:
                continue
            if status is None:
                held.stop.fire("lost")
            elif status == "cancelling":
                held.stop.fire("cancelled")

    async def _sweep(self) -> None:
        """Expire overdue runs, end those that nobody holds, and recover lapsed leases."""
        now = self._clock.now()
        for held in self._held.values():
            if held.expires_at <= now:
                held.stop.fire("expired")
        for run_id in await self._database.read(list_unheld_ends, int(now)):
            await self._end_unheld(run_id)
        await self._recover(now)

    async def _end_unheld(self, run_id: str) -> None:
        try:
            written = await self._database.run(end_unheld, run_id, int(self._clock.now()))
        except Unavailable as error:
            log.warning("run %s can not be ended, it is tried again: %s", run_id, error.message)
            return
        if written is not None:
            self._feeds.wake(run_id)
            if written.let_in is not None:
                self.run_waits(written.let_in)

    async def _recover(self, lapsed_before: float | None) -> None:
        for run_id in await self._database.read(list_held_runs, lapsed_before):
            if run_id in self._held:  # in work here: the next renewal mends the lease, or finds it lost
                continue
            try:
                written = await self._database.run(
                    recover_run, run_id, self._clock.now(), lapsed_before=lapsed_before, most=MOST_RECOVERIES
                )
            except Unavailable as error:  # one that lies on a damaged page holds up no others
                log.warning("run %s can not be recovered, it is tried again: %s", run_id, error.message)
                continue
            if written is not None:
                log.warning("run %s was dropped by its worker: %s", run_id, written.events[-1].name)
                self._feeds.wake(run_id)
                self.run_waits(run_id if written.let_in is None else written.let_in)

    async def _clean(self) -> None:
        """Delete the logs of runs that ended long ago."""
        before = int(self._clock.now()) - self._settings.event_log_seconds
        while old := await self._database.scan(list_old_logs, before):  # looked for off the writer
            await self._database.run(delete_logs, old)
