"""Threads in the store. A thread's row is the lock of all that hangs on it: messages and runs take it first."""

from __future__ import annotations

from perdure.domain.creation import changed_thread
from perdure.errors import ApiError, InvalidRequest, NotFound
from perdure.ids import searchable
from perdure.store.bodies import encode, read_thread
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.files import forget_files, note_changed_files, note_files
from perdure.store.messages import get_message, insert_messages, list_all_messages
from perdure.store.pages import Filter, insert_tombstone, list_page
from perdure.wire.kinds import Metadata
from perdure.wire.messages import Message
from perdure.wire.page import Page, PageQuery
from perdure.wire.threads import ModifyThread, Thread, ThreadFilters

HAS_METADATA = "seq IN (SELECT thread_seq FROM thread_metadata WHERE project_id = ? AND key = ? AND value = ?)"


def no_thread(thread_id: str) -> ApiError:
    """Return the refusal; its text is recorded."""
    return NotFound(f"No thread found with id '{thread_id}'.")


def insert_thread(thread: Thread, messages: list[Message], project_id: str) -> Operation[None]:
    """Store a new thread with its first messages. The project's row is locked: list order is the order of creation."""
    yield Row("SELECT id FROM projects WHERE id = $1", project_id, lock="wait")
    row = yield Row(
        "INSERT INTO threads (id, project_id, created_at, body) VALUES ($1, $2, $3, $4) RETURNING seq",
        thread.id,
        project_id,
        thread.created_at,
        encode(thread),
    )
    yield from _insert_metadata(row[0], project_id, thread.metadata)
    yield from note_files(thread.id, project_id, thread.tool_resources)
    yield from insert_messages(messages)


def _insert_metadata(seq: int, project_id: str, metadata: Metadata) -> Operation[None]:
    """Let a thread be found by its metadata."""
    for key, value in metadata.items():
        yield Do(
            "INSERT INTO thread_metadata (thread_seq, project_id, key, value) VALUES ($1, $2, $3, $4)",
            seq,
            project_id,
            searchable(key),
            searchable(value),
        )


def list_threads(project_id: str, query: PageQuery, filters: ThreadFilters) -> Operation[Page]:
    """Return a page of the project's threads that have all of the metadata and were created within the times."""
    found: list[Filter] = [(f"created_at {comparison} ?", (second,)) for comparison, second in filters.created_at]
    found += [(HAS_METADATA, (project_id, searchable(key), searchable(value))) for key, value in filters.metadata]
    return (yield from list_page("threads", ("project_id", project_id), query, filters=found))


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


def read_fork(thread_id: str, project_id: str, message_id: str | None) -> Operation[tuple[Thread, list[Message]]]:
    """Return a thread and its finished messages, oldest first, up to and with one of them, all if none is named.

    Raises NotFound, and InvalidRequest for a message that is still being written or waits.
    """
    thread = read_thread((yield from get_thread_body(thread_id, project_id)))
    messages = yield from list_all_messages(thread_id)
    finished = [message for message in messages if message.status != "in_progress"]
    if message_id is None:
        return thread, finished
    for index, message in enumerate(finished, 1):
        if message.id == message_id:
            return thread, finished[:index]
    yield from get_message(message_id, thread_id)
    raise InvalidRequest(f"Can't fork at message {message_id}: it is not finished yet.", param="message_id")


def update_thread(thread_id: str, project_id: str, change: ModifyThread) -> Operation[Thread]:
    """Change a thread. Raises NotFound."""
    old = read_thread((yield from get_thread_body(thread_id, project_id, lock=True)))
    thread = changed_thread(old, change)
    yield from note_changed_files(thread_id, project_id, old.tool_resources, thread.tool_resources)
    row = yield Row("UPDATE threads SET body = $2 WHERE id = $1 RETURNING seq", thread_id, encode(thread))
    if thread.metadata != old.metadata:
        yield Do("DELETE FROM thread_metadata WHERE thread_seq = $1", row[0])
        yield from _insert_metadata(row[0], project_id, thread.metadata)
    return thread


def delete_thread(thread_id: str, project_id: str, now: int) -> Operation[list[str]]:
    """Delete a thread with all that hangs on it; return the ids of its active runs, whose work is pointless now.

    Raises NotFound. A worker that still holds one of the runs finds its fence gone and lets go.
    """
    yield from get_thread_body(thread_id, project_id, lock=True)
    active = yield from _lock_active_runs(thread_id)
    yield Do("DELETE FROM run_events WHERE run_id IN (SELECT id FROM runs WHERE thread_id = $1)", thread_id)
    for table in ("steps", "messages", "runs"):
        yield Do(f"DELETE FROM {table} WHERE thread_id = $1", thread_id)
    row = yield Row("DELETE FROM threads WHERE id = $1 RETURNING seq", thread_id)
    yield Do("DELETE FROM thread_metadata WHERE thread_seq = $1", row[0])
    yield from forget_files(thread_id)
    yield from insert_tombstone(thread_id, row[0], project_id, now)
    return active


def _lock_active_runs(thread_id: str) -> Operation[list[str]]:
    """Return the runs that are active or wait, locked: a worker ends what it is writing first, else that would stay.

    The active one comes first: whoever ends it takes the locks in this order too.
    """
    found: list[str] = []
    rows = yield Rows(
        "SELECT id FROM runs WHERE thread_id = $1 "
        "AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling') ORDER BY waits, seq",
        thread_id,
    )
    for row in rows:
        yield Row("SELECT id FROM runs WHERE id = $1", row[0], lock="wait")
        found.append(row[0])
    return found
