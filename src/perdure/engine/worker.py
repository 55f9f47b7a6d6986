"""The worker: claims runs, renews its leases, works them, lets go; recovers what others dropped; drains at the end.

Rules. A run is worked only under a claim, and every write carries its attempt number. Recovery puts a run back into the
queue and never works it in place. A worker that can not reach the store stops renewing and lets the leases lapse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from perdure.engine.live import Feeds
from perdure.engine.recorder import Recorder
from perdure.engine.turn import Stop, Stopped, model_request, read_history, run_turn
from perdure.errors import RunFailure, Unavailable
from perdure.ids import Clock, Ids
from perdure.models.names import ModelRegistry
from perdure.store.db import Database
from perdure.store.endings import expire_run, recover_run
from perdure.store.event_log import delete_old_events
from perdure.store.runs import (
    Claim,
    Hold,
    LeaseLost,
    RunStopped,
    claim_run,
    count_waiting,
    list_held_runs,
    list_overdue_runs,
    renew_leases,
)

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
    ) -> None:
        self._database = database
        self._models = models
        self._feeds = feeds
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._worker_id = ids.new("worker")
        self._held: dict[str, Held] = {}
        self._taking: set[asyncio.Task[None]] = set()
        self._rounds: set[asyncio.Task[None]] = set()
        self._behind = False  # more runs wait than there were free places
        self._draining = False

    # -- life

    async def start(self) -> None:
        """Recover what a dead process left, then work until `drain`. Raises Unavailable."""
        if self._settings.exclusive:
            await self._recover(None)
        loop = asyncio.get_running_loop()
        for one_round, seconds in (
            (self._look, LOOK_SECONDS),
            (self._renew, self._settings.lease_seconds / 3),
            (self._sweep, LOOK_SECONDS),
            (self._clean, CLEAN_EVERY),
        ):
            self._rounds.add(loop.create_task(self._repeat(one_round, seconds)))

    async def drain(self) -> None:
        """Claim nothing more, give running turns their grace, then put the rest back into the queue."""
        self._draining = True
        if self._taking:
            await asyncio.wait(self._taking, timeout=self._settings.grace_seconds)
        for held in self._held.values():
            held.stop.fire("drained")
        if self._taking:
            await asyncio.wait(self._taking, timeout=self._settings.lease_seconds)
        for one_round in self._rounds:
            one_round.cancel()
        if self._rounds:
            await asyncio.wait(self._rounds)

    async def _repeat(self, one_round: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                await one_round()
            except Unavailable as error:
                log.warning("the store does not answer: %s", error.message)
            await self._clock.sleep(seconds)

    # -- hints

    def run_waits(self, run_id: str) -> None:
        """Take the run at once if there is a free place."""
        if self._draining:
            return
        if len(self._taking) >= self._settings.concurrency:
            self._behind = True
            return
        self._take(run_id)

    def run_cancelled(self, run_id: str) -> None:
        """Stop a run in work; one that nobody holds waits to be wound up."""
        held = self._held.get(run_id)
        if held is not None:
            held.stop.fire("cancelled")
        else:
            self.run_waits(run_id)

    # -- claims

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
        now = self._clock.now()
        try:
            claim = await self._database.run(
                claim_run, self._worker_id, now, now + self._settings.lease_seconds, run_id
            )
        except Unavailable as error:
            log.warning("no run can be claimed: %s", error.message)
            return
        if claim is not None:
            await self._work(claim)
        elif run_id is None:
            self._behind = False

    async def _look(self) -> None:
        """Find runs that nobody told of."""
        free = not self._draining and len(self._taking) < self._settings.concurrency
        if free and await self._database.read(count_waiting) > 0:
            self._behind = True
            self._take(None)

    # -- work

    async def _work(self, claim: Claim) -> None:
        run = claim.row.run
        stop = Stop()
        self._held[run.id] = Held(claim.hold, stop)
        feed = self._feeds.attach(run.id)
        feed.begin(claim.row.last_event - len(claim.events))
        feed.commit(claim.row.last_event, claim.events)
        seconds = max(0.0, (run.expires_at or 0) - self._clock.now())
        deadline = asyncio.get_running_loop().call_later(seconds, stop.fire, "expired")
        recorder = Recorder(self._database, feed, self._clock, self._ids, claim)
        try:
            await self._turns(claim, recorder, stop)
        except LeaseLost:
            log.warning("run %s: the lease was lost, another attempt has it or its thread is gone", run.id)
        except Unavailable as error:
            log.error(  # noqa: TRY400  # the driver has logged the cause
                "run %s: left for recovery, the store does not answer: %s", run.id, error.message
            )
        finally:
            deadline.cancel()
            await recorder.close()
            del self._held[run.id]
            feed.end()
            self._feeds.detach(run.id)

    async def _turns(self, claim: Claim, recorder: Recorder, stop: Stop) -> None:
        run, extra = claim.row.run, claim.row.extra
        try:
            if run.status == "cancelling":
                raise RunStopped  # noqa: TRY301  # one place winds up
            stop.check()
            model, name = await self._models.resolve(run.model)
            messages, steps = await self._database.scan(read_history, run)
            request = model_request(run, extra, name, messages, steps)
            await run_turn(recorder, run, extra, model, request, stop)
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
        """Expire overdue runs that nobody holds, and recover lapsed leases."""
        now = int(self._clock.now())
        for run_id in await self._database.read(list_overdue_runs, now):
            await self._database.run(expire_run, run_id, now)
            self._feeds.wake(run_id)
        await self._recover(self._clock.now())

    async def _recover(self, lapsed_before: float | None) -> None:
        for run_id in await self._database.read(list_held_runs, lapsed_before):
            held = self._held.get(run_id)
            if held is not None:
                held.stop.fire("lost")
            events = await self._database.run(
                recover_run, run_id, None, self._clock.now(), lapsed_before=lapsed_before, most=MOST_RECOVERIES
            )
            if events:
                log.warning("run %s was dropped by its worker: %s", run_id, events[-1].name)
                self._feeds.wake(run_id)
                self.run_waits(run_id)

    async def _clean(self) -> None:
        """Delete the logs of runs that ended long ago."""
        before = int(self._clock.now()) - self._settings.event_log_seconds
        while await self._database.run(delete_old_events, before):
            pass
