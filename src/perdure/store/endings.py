"""Ends that a run does not reach by answering: cancelled, expired, failed, put back into the queue.

Each closes what is open first: the half-written message becomes `incomplete` with the text that the log has, its step
ends, then the run moves. Used by the worker that holds the run and, where nobody does, by recovery and the sweeper.
"""

from __future__ import annotations

import msgspec

from perdure.domain.lifecycle import BROKEN_OFF, TERMINAL, EndReason, move_run, move_step
from perdure.errors import RunFailure
from perdure.store.db import Operation, Row
from perdure.store.event_log import Draft, append_events, number_events, written_calls, written_parts
from perdure.store.messages import find_open_message, write_message
from perdure.store.runs import COLUMNS, Hold, RunRow, Written, lock_held, read_row, write_move
from perdure.store.steps import list_open_steps, write_step
from perdure.wire.events import ATTEMPT_STRIDE, RUN_EVENTS, EventName, LogEvent
from perdure.wire.messages import IncompleteMessage
from perdure.wire.runs import Extra, IncompleteRun, RunStatus
from perdure.wire.steps import FOUND_TEXT, CodeInterpreterStepCall, RunStep, StepCall, ToolCalls, shown_step

STEP_EVENTS: dict[EndReason, EventName] = {
    "cancelled": "thread.run.step.cancelled",
    "failed": "thread.run.step.failed",
    "expired": "thread.run.step.expired",
}


def wind_up(
    hold: Hold,
    pending: list[LogEvent],
    to: RunStatus,
    now: int,
    *,
    failure: RunFailure | None = None,
    extra: Extra | None = None,
) -> Operation[Written]:
    """End a held run as cancelled, expired, failed or cut short in a call, or put it back into the queue.

    A run that was cancelled meanwhile ends cancelled, whatever was asked for. Raises LeaseLost.
    """
    row = yield from lock_held(hold)
    yield from append_events(hold.run_id, pending)
    last = pending[-1].sequence if pending else row.last_event
    return (yield from _end(row, last, to, now, failure=failure, extra=extra, attempt=row.attempt))


def recover_run(run_id: str, now: float, *, lapsed_before: float | None, most: int) -> Operation[Written | None]:
    """Take a run from a worker that is gone and put it back into the queue; None if there is nothing to do any more.

    `lapsed_before` guards against a lease that was renewed since it was listed. After `most` recoveries the run ends
    `failed`: what crashes a worker each time would do it for ever.
    """
    found = yield Row(
        f"SELECT {COLUMNS} FROM runs WHERE id = $1 AND status IN ('in_progress', 'cancelling') "
        "AND worker_id IS NOT NULL",
        run_id,
        lock="wait",
    )
    row = read_row(found) if found else None
    if row is None:
        return None
    if lapsed_before is not None and (row.lease_until or 0) >= lapsed_before:
        return None
    attempt = row.attempt + 1
    last = max(row.last_event, attempt * ATTEMPT_STRIDE)
    interrupted = RunFailure("The worker was interrupted; what it had not finished is done again.")
    to: RunStatus = "queued"
    failure: RunFailure | None = interrupted
    if row.run.expires_at is not None and row.run.expires_at <= now:
        to, failure = "expired", None
    elif row.recoveries + 1 >= most:
        to = "failed"
        failure = RunFailure(f"The run was interrupted {row.recoveries + 1} times and is not tried again.")
    return (yield from _end(row, last, to, int(now), failure=failure, attempt=attempt, recoveries=row.recoveries + 1))


def end_unheld(run_id: str, now: int) -> Operation[Written | None]:
    """End a run that nobody holds: cancelled, or expired. None if there is nothing to do any more.

    No worker claims it for that, so that it never waits for a free place.
    """
    found = yield Row(
        f"SELECT {COLUMNS} FROM runs WHERE id = $1 AND worker_id IS NULL "
        "AND (status = 'cancelling' OR (status IN ('queued', 'requires_action') AND waits = 0 AND expires_at <= $2))",
        run_id,
        now,
        lock="wait",
    )
    if found is None:
        return None
    row = read_row(found)
    return (yield from _end(row, row.last_event, "expired", now, attempt=row.attempt))


def _end(
    row: RunRow,
    last: int,
    to: RunStatus,
    now: int,
    *,
    attempt: int,
    failure: RunFailure | None = None,
    extra: Extra | None = None,
    recoveries: int | None = None,
) -> Operation[Written]:
    extra = extra or row.extra
    drafts: list[Draft] = []
    moved = row.run
    if row.run.status == "cancelling":
        drafts = yield from _close_open(row, "cancelled", now, None)
        drafts.append(("thread.run.cancelling", row.run))
        moved = move_run(row.run, "cancelled", now, usage=extra.usage)
    else:
        how: EndReason = "cancelled" if to == "cancelled" else "expired" if to == "expired" else "failed"
        drafts = yield from _close_open(row, how, now, failure)
        moved = move_run(
            row.run,
            to,
            now,
            usage=extra.usage,
            failure=failure if to == "failed" else None,
            incomplete=IncompleteRun(reason="max_completion_tokens") if to == "incomplete" else None,
        )
    drafts.append((RUN_EVENTS[moved.status], moved))
    events = number_events(drafts, last)
    ended_at = now if moved.status in TERMINAL else None
    let_in = yield from write_move(
        row, moved, events, attempt=attempt, extra=extra, ended_at=ended_at, recoveries=recoveries
    )
    return Written(events, let_in)


def _with_calls(step: RunStep) -> Operation[RunStep]:
    """Return the step with what was shown of its calls, where it broke off before that was stored."""
    if not isinstance(step.step_details, ToolCalls):
        return step
    stored = step.step_details.tool_calls
    shown = yield from written_calls(step.run_id, step.id)
    calls = [_with_outputs(call, one) for call, one in zip(stored, shown, strict=False)] if stored else shown
    return msgspec.structs.replace(step, step_details=ToolCalls(tool_calls=calls))


def _with_outputs(stored: StepCall, shown: StepCall) -> StepCall:
    """Return a call as it was stored, code with the outputs that came since."""
    if isinstance(stored, CodeInterpreterStepCall) and isinstance(shown, CodeInterpreterStepCall):
        code = msgspec.structs.replace(stored.code_interpreter, outputs=shown.code_interpreter.outputs)
        return CodeInterpreterStepCall(id=stored.id, code_interpreter=code)
    return stored


def _close_open(row: RunRow, how: EndReason, now: int, failure: RunFailure | None) -> Operation[list[Draft]]:
    drafts: list[Draft] = []
    for open_step in (yield from list_open_steps(row.run.id)):
        step = move_step((yield from _with_calls(open_step)), how, now, failure=failure)
        yield from write_step(step)
        drafts.append((STEP_EVENTS[how], shown_step(step, found_text=FOUND_TEXT in row.extra.include)))
    message = yield from find_open_message(row.run.id)
    if message is not None:
        parts = yield from written_parts(row.run.id, message.id)
        broken = msgspec.structs.replace(
            message,
            status="incomplete",
            incomplete_details=IncompleteMessage(reason=BROKEN_OFF[how]),
            incomplete_at=now,
            content=parts,
        )
        yield from write_message(broken)
        drafts.append(("thread.message.incomplete", broken))
    return drafts
