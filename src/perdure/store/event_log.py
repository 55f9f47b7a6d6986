"""The event log of a run.

One row holds the events of one transaction, with the number of the last one. Rule: a log has one writer at a time,
whoever holds the run; while nobody holds it, the transaction that moves it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.domain.deltas import calls_of_deltas, parts_of_deltas
from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode
from perdure.store.db import Do, Operation, Row, Rows
from perdure.wire.events import EventName, LogEvent, MessageDelta, StepDelta
from perdure.wire.messages import ContentPart
from perdure.wire.steps import StepCall

_read_events = msgspec.json.Decoder(list[LogEvent]).decode
_read_delta = msgspec.json.Decoder(MessageDelta).decode
_read_step_delta = msgspec.json.Decoder(StepDelta).decode
READ_ROWS = 200
CLEAN_RUNS = 100

Draft = tuple[EventName, Any]
"""An event that has no number yet: its name and the object that is its data."""


def number_events(drafts: list[Draft], last: int) -> list[LogEvent]:
    """Return the events with the numbers after `last`."""
    events: list[LogEvent] = []
    before: Any = None
    raw = msgspec.Raw()
    for sequence, (name, data) in enumerate(drafts, last + 1):
        if data is not before:  # created and queued, created and in_progress: the same object twice in a row
            before, raw = data, msgspec.Raw(msgspec.json.encode(data))
        events.append(LogEvent(sequence=sequence, name=name, data=raw))
    return events


def append_events(run_id: str, events: list[LogEvent]) -> Operation[None]:
    """Append events; the caller also raises the run's `last_event`."""
    if events:
        yield Do(
            "INSERT INTO run_events (run_id, last_sequence, events) VALUES ($1, $2, $3)",
            run_id,
            events[-1].sequence,
            encode(events),
        )


def list_events(run_id: str, after: int) -> Operation[list[LogEvent]]:
    """Return events after a number, oldest first, some hundred rows of the log at most."""
    rows = yield Rows(
        f"SELECT events FROM run_events WHERE run_id = $1 AND last_sequence > $2 "
        f"ORDER BY last_sequence LIMIT {READ_ROWS}",
        run_id,
        after,
    )
    return [event for row in rows for event in _read_events(row[0]) if event.sequence > after]


def _deltas_of(run_id: str, name: EventName) -> Operation[list[msgspec.Raw]]:
    rows = yield Rows("SELECT events FROM run_events WHERE run_id = $1 ORDER BY last_sequence", run_id)
    return [event.data for row in rows for event in _read_events(row[0]) if event.name == name]


def written_parts(run_id: str, message_id: str) -> Operation[list[ContentPart]]:
    """Return what the log has of a message that was never finished: the sum of its deltas."""
    read = [_read_delta(data) for data in (yield from _deltas_of(run_id, "thread.message.delta"))]
    return parts_of_deltas([delta for delta in read if delta.id == message_id])


def written_calls(run_id: str, step_id: str) -> Operation[list[StepCall]]:
    """Return what the log has of tool calls that were never finished: the sum of their deltas."""
    read = [_read_step_delta(data) for data in (yield from _deltas_of(run_id, "thread.run.step.delta"))]
    return calls_of_deltas([delta for delta in read if delta.id == step_id])


def is_log_over(run_id: str, after: int) -> Operation[bool]:
    """Say whether nothing can come after a number any more: the run was read to its end, or it or its log is gone."""
    run = yield Row("SELECT ended_at FROM runs WHERE id = $1", run_id)
    if run is not None and run[0] is None:
        return False
    rest = yield Row("SELECT 1 FROM run_events WHERE run_id = $1 AND last_sequence > $2 LIMIT 1", run_id, after)
    return rest is None


LogEnds = dict[str, int]
"""By run, the number of its last event."""


def list_log_ends(run_ids: list[str], most: int) -> Operation[LogEnds]:
    """Return where the logs of those runs that have not ended end now; `most` is how many are asked for at most.

    The statement has one of two lengths: databases keep what they know of a statement.
    """
    few = 8
    asked = run_ids + run_ids[-1:] * ((few if len(run_ids) <= few else most) - len(run_ids))
    places = ", ".join(f"${number}" for number in range(1, len(asked) + 1))
    rows = yield Rows(f"SELECT id, last_event FROM runs WHERE id IN ({places}) AND ended_at IS NULL", *asked)
    return {row[0]: row[1] for row in rows}


def is_any_left(run_id: str, thread_id: str, after: int) -> Operation[bool]:
    """Say whether a run has events after a number, or may still get some. Raises NotFound, also for a deleted log."""
    run = yield Row("SELECT ended_at, last_event FROM runs WHERE id = $1 AND thread_id = $2", run_id, thread_id)
    if run is None:
        raise no_run(run_id)
    if run[0] is None:
        return True
    if run[1] <= after:
        return False
    if (yield Row("SELECT 1 FROM run_events WHERE run_id = $1 AND last_sequence > $2 LIMIT 1", run_id, after)) is None:
        raise NotFound(
            f"The event log of run {run_id} is not kept any more: logs are deleted some time after the run's end (the "
            "server's setting PERDURE_EVENT_LOG_SECONDS). Its messages and steps are there."
        )
    return True


def no_run(run_id: str) -> ApiError:
    """Return the refusal."""
    return NotFound(f"No run found with id '{run_id}'.")


def list_old_logs(ended_before: int) -> Operation[list[str]]:
    """Return some of the runs that ended before that Unix time and still have a log, oldest first."""
    rows = yield Rows(
        "SELECT id FROM runs WHERE ended_at < $1 AND EXISTS (SELECT 1 FROM run_events WHERE run_id = runs.id) "
        f"ORDER BY ended_at LIMIT {CLEAN_RUNS}",
        ended_before,
    )
    return [row[0] for row in rows]


def delete_logs(run_ids: list[str]) -> Operation[None]:
    """Delete the logs of ended runs."""
    for run_id in run_ids:
        yield Do("DELETE FROM run_events WHERE run_id = $1", run_id)
