"""Runs in the store: creation, the claim, the fence, and the one function that writes a status.

Every write of a worker is conditional on its attempt number: whoever lost the lease finds no row and gets `LeaseLost`.
"One active run per thread" is a unique index; the look-up before it is only there for the text of the refusal.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.domain.creation import changed_run
from perdure.domain.lifecycle import ACTIVE, TERMINAL, move_run
from perdure.errors import InvalidRequest, RunFailure
from perdure.store.bodies import encode, read_extra, read_run
from perdure.store.db import Do, Operation, Row, Rows, Value
from perdure.store.event_log import Draft, append_events, no_run, number_events
from perdure.store.messages import insert_messages, let_in_messages, take_metadata, write_message
from perdure.store.pages import list_page
from perdure.store.steps import insert_step, write_step
from perdure.wire.events import ATTEMPT_STRIDE, RUN_EVENTS, LogEvent
from perdure.wire.kinds import Metadata, Usage
from perdure.wire.messages import Message
from perdure.wire.page import Page, PageQuery
from perdure.wire.runs import Extra, IncompleteRun, RequiredAction, Run, RunStatus
from perdure.wire.steps import RunStep

COLUMNS = "body, project_id, attempt, worker_id, lease_until, extra, last_event, recoveries, waits"

NO_END = 2**62
"""Above every number in a line."""


class LeaseLost(Exception):
    """This attempt holds the run no more: another one does, or the run is gone."""


class RunStopped(Exception):
    """The run was moved to `cancelling` under the worker's hands; the worker winds it up."""


class Hold(msgspec.Struct, frozen=True):
    """A worker's hold on a run."""

    run_id: str
    attempt: int
    worker_id: str


class RunRow(msgspec.Struct):
    """A run with the columns beside its body."""

    run: Run
    project_id: str
    attempt: int
    worker_id: str | None
    lease_until: float | None
    extra: Extra
    last_event: int
    recoveries: int
    waits: int


class Written(msgspec.Struct, frozen=True):
    """What a transaction wrote to a run's log, and the run that it let in from the thread's line, if one waited."""

    events: list[LogEvent]
    let_in: str | None = None


class Claim(msgspec.Struct, frozen=True):
    """A run that a worker has just got hold of, and the events that this wrote."""

    hold: Hold
    row: RunRow
    events: list[LogEvent]


class Change(msgspec.Struct, kw_only=True):
    """What one transaction of a worker writes: objects, their events in order, and at last a move of the run."""

    new_steps: list[RunStep] = []
    new_messages: list[Message] = []
    steps: list[RunStep] = []
    messages: list[Message] = []
    drafts: list[Draft] = []
    to: RunStatus | None = None
    usage: Usage | None = None
    required_action: RequiredAction | None = None
    incomplete: IncompleteRun | None = None
    failure: RunFailure | None = None
    extra: Extra | None = None


def find_active_run(thread_id: str) -> Operation[str | None]:
    """Return the id of the run that locks the thread."""
    row = yield Row(
        "SELECT id FROM runs WHERE thread_id = $1 AND waits = 0 "
        "AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling')",
        thread_id,
    )
    return row[0] if row else None


def lock_active_run(thread_id: str) -> Operation[RunRow | None]:
    """Return the run that locks the thread, locked itself."""
    while True:
        row = yield Row(
            f"SELECT {COLUMNS} FROM runs WHERE thread_id = $1 AND waits = 0 "
            "AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling')",
            thread_id,
            lock="wait",
        )
        if row is not None:
            return read_row(row)
        # On Postgres, whoever held the row may just have ended this run and let in another one.
        if (yield from find_active_run(thread_id)) is None:
            return None


def insert_run(run: Run, extra: Extra, project_id: str, before: Sequence[Draft], waits: int = 0) -> Operation[None]:
    """Store a queued run and begin its log; with `waits` it stands in the thread's line at that number.

    The caller holds the thread's lock. Raises InvalidRequest if the thread is busy and the run does not wait.
    """
    events = number_events([*before, ("thread.run.created", run), ("thread.run.queued", run)], 0)
    written = yield Do(
        "INSERT INTO runs (id, thread_id, project_id, assistant_id, status, expires_at, created_at, extra, body, "
        "last_event, waits) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT DO NOTHING",
        run.id,
        run.thread_id,
        project_id,
        run.assistant_id,
        run.status,
        run.expires_at,
        run.created_at,
        encode(extra),
        encode(run),
        events[-1].sequence,
        waits,
    )
    if written != 1:
        active = yield from find_active_run(run.thread_id)
        raise InvalidRequest(f"Thread {run.thread_id} already has an active run {active}.")
    yield from append_events(run.id, events)


def get_run_body(run_id: str, thread_id: str, project_id: str) -> Operation[str]:
    """Return the stored JSON. Raises NotFound."""
    row = yield Row(
        "SELECT body FROM runs WHERE id = $1 AND thread_id = $2 AND project_id = $3", run_id, thread_id, project_id
    )
    if row is None:
        raise no_run(run_id)
    return str(row[0])


def lock_run(run_id: str, thread_id: str, project_id: str) -> Operation[RunRow]:
    """Return the run, locked. Raises NotFound."""
    row = yield Row(
        f"SELECT {COLUMNS} FROM runs WHERE id = $1 AND thread_id = $2 AND project_id = $3",
        run_id,
        thread_id,
        project_id,
        lock="wait",
    )
    if row is None:
        raise no_run(run_id)
    return read_row(row)


def read_row(row: tuple[str, str, int, str | None, float | None, str, int, int, int]) -> RunRow:
    """Return the columns of `COLUMNS` as a RunRow."""
    body, project_id, attempt, worker_id, lease_until, extra, last_event, recoveries, waits = row
    run = read_run(body)
    return RunRow(run, project_id, attempt, worker_id, lease_until, read_extra(extra), last_event, recoveries, waits)


def write_move(
    row: RunRow,
    moved: Run,
    events: list[LogEvent],
    *,
    attempt: int,
    worker_id: str | None = None,
    lease_until: float | None = None,
    extra: Extra | None = None,
    ended_at: int | None = None,
    recoveries: int | None = None,
) -> Operation[str | None]:
    """Write a run over its old self: the only statement that sets a run's status.

    It is conditional on the old status and the old attempt. Raises LeaseLost when neither is there any more. A run
    that ends lets in what waits for it in the thread's line; returns the id of the run that is active now, if any.
    """
    written = yield Do(
        "UPDATE runs SET status = $4, body = $5, extra = $6, last_event = $7, attempt = $8, worker_id = $9, "
        "lease_until = $10, ended_at = $11, recoveries = $12, waits = $13 "
        "WHERE id = $1 AND status = $2 AND attempt = $3",
        row.run.id,
        row.run.status,
        row.attempt,
        moved.status,
        encode(moved),
        encode(row.extra if extra is None else extra),
        events[-1].sequence if events else row.last_event,
        attempt,
        worker_id,
        lease_until,
        ended_at,
        row.recoveries if recoveries is None else recoveries,
        row.waits if ended_at is None else 0,
    )
    if written != 1:
        raise LeaseLost
    yield from append_events(row.run.id, events)
    if ended_at is None or row.waits:
        return None
    return (yield from _let_in(row.run.thread_id, ended_at))


def _let_in(thread_id: str, now: int) -> Operation[str | None]:
    """Let in what stands at the head of the thread's line, up to and with the first run; return that run's id.

    Its time begins now, as if it had just been created. The caller has ended the run that locked the thread.
    """
    row = yield from _lock_first_waiting(thread_id)
    yield from let_in_messages(thread_id, row.waits if row else NO_END)
    if row is None:
        return None
    run = row.run
    expires_at = now + (run.expires_at or run.created_at) - run.created_at
    yield Do(
        "UPDATE runs SET waits = 0, expires_at = $2, body = $3 WHERE id = $1",
        run.id,
        expires_at,
        encode(msgspec.structs.replace(run, expires_at=expires_at)),
    )
    return run.id


def _lock_first_waiting(thread_id: str) -> Operation[RunRow | None]:
    """Return the first run of the line, locked. One that was cancelled in the line is not let in."""
    waiting = "FROM runs WHERE thread_id = $1 AND waits > 0 AND status = 'queued'"
    while (yield Row(f"SELECT 1 {waiting} LIMIT 1", thread_id)) is not None:
        row = yield Row(f"SELECT {COLUMNS} {waiting} ORDER BY waits LIMIT 1", thread_id, lock="wait")
        if row is not None:  # on Postgres None if it was cancelled while we waited for its lock
            return read_row(row)
    return None


def claim_run(worker_id: str, now: float, lease_until: float, run_id: str | None = None) -> Operation[Claim | None]:
    """Take hold of a waiting run, the oldest unless one is named; None if there is none.

    It moves to in_progress. A run that was cancelled in the queue is nobody's to work: `end_unheld` ends it.
    """
    one = "AND id = $1 " if run_id else ""
    args: list[Value] = [run_id] if run_id else []
    found = yield Row(
        f"SELECT {COLUMNS} FROM runs WHERE status = 'queued' AND waits = 0 {one}ORDER BY seq LIMIT 1",
        *args,
        lock="skip",
    )
    if found is None:
        return None
    row = read_row(found)
    attempt = row.attempt + 1
    moved = move_run(row.run, "in_progress", int(now))
    events = number_events([("thread.run.in_progress", moved)], attempt * ATTEMPT_STRIDE)
    yield from write_move(row, moved, events, attempt=attempt, worker_id=worker_id, lease_until=lease_until)
    held = msgspec.structs.replace(
        row, run=moved, attempt=attempt, worker_id=worker_id, lease_until=lease_until, last_event=events[-1].sequence
    )
    return Claim(Hold(row.run.id, attempt, worker_id), held, events)


def has_waiting() -> Operation[bool]:
    """Say whether a run waits for a worker."""
    return (yield Row("SELECT 1 FROM runs WHERE status = 'queued' AND waits = 0 LIMIT 1")) is not None


def renew_leases(holds: list[Hold], lease_until: float) -> Operation[dict[str, RunStatus | None]]:
    """Extend the leases; return each run's status, None where the hold is lost."""
    statuses: dict[str, RunStatus | None] = {}
    for hold in holds:
        row = yield Row(
            "UPDATE runs SET lease_until = $3 WHERE id = $1 AND attempt = $2 AND worker_id IS NOT NULL "
            "RETURNING status",
            hold.run_id,
            hold.attempt,
            lease_until,
        )
        statuses[hold.run_id] = row[0] if row else None
    return statuses


def lock_held(hold: Hold) -> Operation[RunRow]:
    """Return the run, locked, if the hold still holds. Raises LeaseLost."""
    row = yield Row(
        f"SELECT {COLUMNS} FROM runs WHERE id = $1 AND attempt = $2 AND worker_id = $3",
        hold.run_id,
        hold.attempt,
        hold.worker_id,
        lock="wait",
    )
    if row is None:
        raise LeaseLost
    return read_row(row)


def record_change(hold: Hold, pending: list[LogEvent], change: Change, now: int) -> Operation[Written]:
    """Write what a worker did; the new events may be shown once this is committed.

    `pending` are deltas that live readers have seen already. A move lets go of the run unless it goes on being worked.
    Raises LeaseLost, and RunStopped when the run was cancelled meanwhile and the change would move it.
    """
    row = yield from lock_held(hold)
    drafts = list(change.drafts)
    moved = row.run
    if change.to is not None:
        if row.run.status == "cancelling":
            raise RunStopped
        moved = move_run(
            row.run,
            change.to,
            now,
            usage=change.usage,
            required_action=change.required_action,
            failure=change.failure,
            incomplete=change.incomplete,
        )
        drafts.append((RUN_EVENTS[change.to], moved))
    for message in change.messages:
        yield from take_metadata(message)
    events = number_events(drafts, pending[-1].sequence if pending else row.last_event)
    for step in change.new_steps:
        yield from insert_step(step)
    yield from insert_messages(change.new_messages)
    for message in change.messages:
        yield from write_message(message)
    for step in change.steps:
        yield from write_step(step)
    if change.to is None:
        yield from _write_extra(row, [*pending, *events], change.extra or row.extra)
        return Written(events)
    ended_at = now if change.to in TERMINAL else None
    let_in = yield from write_move(
        row, moved, [*pending, *events], attempt=row.attempt, extra=change.extra, ended_at=ended_at
    )
    return Written(events, let_in)


def _write_extra(row: RunRow, events: list[LogEvent], extra: Extra) -> Operation[None]:
    last = events[-1].sequence if events else row.last_event
    yield Do("UPDATE runs SET last_event = $2, extra = $3 WHERE id = $1", row.run.id, last, encode(extra))
    yield from append_events(row.run.id, events)


def append_deltas(hold: Hold, events: list[LogEvent]) -> Operation[None]:
    """Commit deltas. Raises LeaseLost."""
    written = yield Do(
        "UPDATE runs SET last_event = $4 WHERE id = $1 AND attempt = $2 AND worker_id = $3",
        hold.run_id,
        hold.attempt,
        hold.worker_id,
        events[-1].sequence,
    )
    if written != 1:
        raise LeaseLost
    yield from append_events(hold.run_id, events)


def update_run(
    run_id: str, thread_id: str, project_id: str, metadata: Metadata | None | msgspec.UnsetType
) -> Operation[Run]:
    """Change an ended run's metadata. Raises NotFound, and InvalidRequest while it is active."""
    row = yield from lock_run(run_id, thread_id, project_id)
    if row.run.status in ACTIVE:
        raise InvalidRequest(f"Cannot update run with status '{row.run.status}'.")
    run = changed_run(row.run, metadata)
    yield Do("UPDATE runs SET body = $2 WHERE id = $1", run_id, encode(run))
    return run


def request_cancel(run_id: str, thread_id: str, project_id: str, now: int) -> Operation[Run]:
    """Move a run to cancelling; whoever holds it, or the next to claim it, winds it up. Raises as the API does."""
    row = yield from lock_run(run_id, thread_id, project_id)
    if row.run.status not in {"queued", "in_progress", "requires_action"}:
        raise InvalidRequest(f"Cannot cancel run with status '{row.run.status}'.")
    return (yield from begin_cancel(row, now))


def begin_cancel(row: RunRow, now: int) -> Operation[Run]:
    """Move a locked run to cancelling."""
    # The log's writer is whoever holds the run: the event `thread.run.cancelling` comes with the winding up.
    run = move_run(row.run, "cancelling", now)
    yield from write_move(row, run, [], attempt=row.attempt, worker_id=row.worker_id, lease_until=row.lease_until)
    return run


def list_runs(thread_id: str, query: PageQuery) -> Operation[Page]:
    """Return a page of the thread's runs."""
    return (yield from list_page("runs", ("thread_id", thread_id), query))


def list_held_runs(lapsed_before: float | None) -> Operation[list[str]]:
    """Return the runs that somebody holds; with a time, only those whose lease lapsed before it."""
    until = "AND lease_until < $1" if lapsed_before is not None else ""
    args: list[Value] = [lapsed_before] if lapsed_before is not None else []
    rows = yield Rows(
        f"SELECT id FROM runs WHERE status IN ('in_progress', 'cancelling') AND worker_id IS NOT NULL {until}", *args
    )
    return [row[0] for row in rows]


def list_unheld_ends(now: int) -> Operation[list[str]]:
    """Return the runs that nobody holds and that have to end: cancelled, or past their expiry."""
    rows = yield Rows(
        "SELECT id FROM runs WHERE status IN ('queued', 'requires_action') AND waits = 0 AND expires_at <= $1 "
        "UNION ALL SELECT id FROM runs WHERE status = 'cancelling' AND worker_id IS NULL",
        now,
    )
    return [row[0] for row in rows]
