"""Bugs planted into the engine, one at a time: the simulation must find each."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from perdure.domain.lifecycle import move_run
from perdure.engine import worker
from perdure.engine.recorder import Recorder
from perdure.engine.turn import Stop
from perdure.engine.worker import Held, Worker
from perdure.store.db import Do, Operation, Row, Statement
from perdure.store.event_log import number_events
from perdure.store.runs import COLUMNS, Change, Claim, Hold, list_held_runs, read_row
from perdure.wire.events import ATTEMPT_STRIDE, RUN_EVENTS
from tests.simulation.run import Outcome, simulate

MOST_SEEDS = 400


def first_found(alter: Callable[[Statement], None] | None = None) -> Outcome:
    """Return the first seed that violates an invariant."""
    for seed in range(MOST_SEEDS):
        outcome = simulate(seed, alter)
        if outcome.violated:
            print(f"found after {seed + 1} seeds: {outcome.detail}")  # noqa: T201  # shown by pytest -s
            return outcome
    raise AssertionError(f"{MOST_SEEDS} seeds have not found it")


def test_writes_without_the_fence_are_found() -> None:
    fence, removed = "attempt = $2 AND worker_id = $3", set[str]()

    def remove(statement: Statement) -> None:
        if fence in statement.sql:
            removed.add(statement.sql)
            statement.sql = statement.sql.replace(fence, "($2 = $2 OR $3 = $3)")

    outcome = first_found(remove)
    assert {sql.partition(" ")[0] for sql in removed} == {"SELECT", "UPDATE"}, "both fences were removed"
    assert outcome.violated in {"log-order", "log-legal", "log-ends", "log-is-true", "deltas-add-up", "answers-once"}


def test_a_status_shown_before_its_commit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Recorder.record

    async def show_first(self: Recorder, change: Change) -> None:
        if change.to is not None:
            moved = move_run(self._run, change.to, 0, required_action=change.required_action, failure=change.failure)
            last = self._pending[-1].sequence if self._pending else self._last
            events = number_events([*change.drafts, (RUN_EVENTS[change.to], moved)], last)
            self._pen.commit(events[-1].sequence, events)
        await record(self, change)

    monkeypatch.setattr(Recorder, "record", show_first)
    assert first_found().violated == "seen-before-commit"


def take_over(run_id: str, worker_id: str, lapsed_before: float | None, until: float) -> Operation[Claim | None]:
    """Take a run from its worker and go on in its place: what recovery must not do."""
    found = yield Row(f"SELECT {COLUMNS} FROM runs WHERE id = $1 AND worker_id IS NOT NULL", run_id)
    row = read_row(found) if found else None
    if row is None or (lapsed_before is not None and (row.lease_until or 0) >= lapsed_before):
        return None
    attempt = row.attempt + 1
    yield Do(
        "UPDATE runs SET attempt = $2, worker_id = $3, lease_until = $4 WHERE id = $1",
        *(run_id, attempt, worker_id, until),
    )
    held = msgspec.structs.replace(row, attempt=attempt, last_event=max(row.last_event, attempt * ATTEMPT_STRIDE))
    return Claim(Hold(run_id, attempt, worker_id), held, [])


def test_a_recovery_that_runs_in_place_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    async def recover(self: Worker, lapsed_before: float | None) -> None:
        for run_id in await self._database.read(list_held_runs, lapsed_before):
            if run_id in self._held:
                continue
            until = self._clock.now() + self._settings.lease_seconds
            claim = await self._database.run(take_over, run_id, self._worker_id, lapsed_before, until)
            if claim is not None:
                taken.append(run_id)
                held = self._held[run_id] = Held(claim.hold, Stop(), claim.row.run.expires_at or 0)
                await self._work(claim, held)

    monkeypatch.setattr(Worker, "_recover", recover)
    outcome = first_found()
    assert taken
    assert outcome.violated in {"log-legal", "nothing-open", "log-is-true", "fence", "log-order"}


def test_the_engine_as_it_is_is_not_found() -> None:
    assert worker.MOST_RECOVERIES > 0
    assert [seed for seed in range(40) if simulate(seed).violated] == []
