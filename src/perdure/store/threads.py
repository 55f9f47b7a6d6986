"""Threads in the store. A thread's row is the lock of all that hangs on it: messages and runs take it first."""

from __future__ import annotations

from perdure.domain.creation import changed_thread
from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode, read_thread
from perdure.store.db import Do, Operation, Row
from perdure.store.messages import insert_messages
from perdure.store.pages import insert_tombstone
from perdure.wire.messages import Message
from perdure.wire.threads import ModifyThread, Thread


def no_thread(thread_id: str) -> ApiError:
    """Return the refusal; its text is recorded."""
    return NotFound(f"No thread found with id '{thread_id}'.")


def insert_thread(thread: Thread, messages: list[Message], project_id: str) -> Operation[None]:
    """Store a new thread with its first messages."""
    yield Do(
        "INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, $2, $3, $4)",
        thread.id,
        project_id,
        thread.created_at,
        encode(thread),
    )
    yield from insert_messages(messages)


def get_thread_body(thread_id: str, project_id: str, *, lock: bool = False) -> Operation[str]:
    """Return the stored JSON, the row locked if asked for. Raises NotFound."""
    row = yield Row(
        "SELECT body FROM threads WHERE id = $1 AND project_id = $2",
        thread_id,
        project_id,
        lock="wait" if lock else None,
    )
    if row is None:
        raise no_thread(thread_id)
    return str(row[0])


def update_thread(thread_id: str, project_id: str, change: ModifyThread) -> Operation[Thread]:
    """Change a thread. Raises NotFound."""
    body = yield from get_thread_body(thread_id, project_id, lock=True)
    thread = changed_thread(read_thread(body), change)
    yield Do("UPDATE threads SET body = $2 WHERE id = $1", thread_id, encode(thread))
    return thread


def delete_thread(thread_id: str, project_id: str, now: int) -> Operation[list[str]]:
    """Delete a thread with all that hangs on it; return the ids of its active runs, whose work is pointless now.

    Raises NotFound. A worker that still holds one of the runs finds its fence gone and lets go.
    """
    yield from get_thread_body(thread_id, project_id, lock=True)
    active = yield Row(
        "SELECT id FROM runs WHERE thread_id = $1 "
        "AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling')",
        thread_id,
        lock="wait",  # its worker ends what it is writing first, else that would stay behind
    )
    yield Do("DELETE FROM run_events WHERE run_id IN (SELECT id FROM runs WHERE thread_id = $1)", thread_id)
    for table in ("steps", "messages", "runs"):
        yield Do(f"DELETE FROM {table} WHERE thread_id = $1", thread_id)
    row = yield Row("DELETE FROM threads WHERE id = $1 RETURNING seq", thread_id)
    yield from insert_tombstone(thread_id, row[0], project_id, now)
    return [active[0]] if active else []
