"""Messages in the store."""

from __future__ import annotations

from perdure.domain.creation import changed_message
from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode, read_message
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.pages import insert_tombstone, list_page
from perdure.wire.messages import Message, ModifyMessage
from perdure.wire.page import Page, PageQuery


def no_message(message_id: str) -> ApiError:
    """Return the refusal."""
    return NotFound(f"No message found with id '{message_id}'.")


def insert_messages(messages: list[Message], waits: int = 0) -> Operation[None]:
    """Store messages in order. The caller holds the thread's lock, or the run that locks it, or has just made it.

    With `waits` they stand in the thread's line at that number: shown last, and not seen by runs before them.
    """
    for message in messages:
        yield Do(
            "INSERT INTO messages (id, thread_id, run_id, role, status, created_at, body, waits) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            message.id,
            message.thread_id,
            message.run_id,
            message.role,
            message.status,
            message.created_at,
            encode(message),
            waits,
        )


def let_in_messages(thread_id: str, before: int) -> Operation[None]:
    """Take the messages that wait with a number below `before` out of the line and put them at the thread's end.

    They are stored anew: that gives them their place in the order. They are read as they are deleted: a client may be
    changing or deleting one at this moment.
    """
    rows = yield Rows(
        "DELETE FROM messages WHERE thread_id = $1 AND waits > 0 AND waits < $2 RETURNING waits, seq, body",
        thread_id,
        before,
    )
    rows = sorted(rows, key=lambda row: (row[0], row[1]))
    yield from insert_messages([read_message(row[2]) for row in rows])


def insert_message_if_free(message: Message) -> Operation[bool]:
    """Store a message unless a run locks its thread; the caller holds the thread's lock. Return whether it was stored.

    One statement instead of a look and an insert: adding a message is what programs do most.
    """
    written = yield Do(
        "INSERT INTO messages (id, thread_id, run_id, role, status, created_at, body) "
        "SELECT $1, $2, NULL, $3, $4, CAST($5 AS BIGINT), $6 WHERE NOT EXISTS (SELECT 1 FROM runs WHERE thread_id = $2 "
        "AND waits = 0 AND status IN ('queued', 'in_progress', 'requires_action', 'cancelling'))",
        message.id,
        message.thread_id,
        message.role,
        message.status,
        message.created_at,
        encode(message),
    )
    return bool(written)


def write_message(message: Message) -> Operation[None]:
    """Write a message over its old self; if it was deleted meanwhile it stays deleted."""
    yield Do("UPDATE messages SET status = $2, body = $3 WHERE id = $1", message.id, message.status, encode(message))


def take_metadata(message: Message) -> Operation[None]:
    """Give a message that a run has written the metadata that clients gave it meanwhile: those are theirs.

    The row is locked until the message is written.
    """
    row = yield Row("SELECT body FROM messages WHERE id = $1", message.id, lock="wait")
    if row is not None:
        message.metadata = read_message(row[0]).metadata


def get_message(message_id: str, thread_id: str) -> Operation[str]:
    """Return the stored JSON; the caller has seen that the thread is the project's. Raises NotFound."""
    row = yield Row("SELECT body FROM messages WHERE id = $1 AND thread_id = $2", message_id, thread_id)
    if row is None:
        raise no_message(message_id)
    return str(row[0])


def lock_message(message_id: str, thread_id: str) -> Operation[str]:
    """Return the stored JSON of a message, locked. Raises NotFound."""
    while True:
        row = yield Row(
            "SELECT body FROM messages WHERE id = $1 AND thread_id = $2", message_id, thread_id, lock="wait"
        )
        if row is not None:
            return str(row[0])
        # On Postgres, whoever held the row may have let the message in from the line, which stores it anew.
        yield from get_message(message_id, thread_id)


def find_open_message(run_id: str) -> Operation[Message | None]:
    """Return the message that the run is writing, locked: clients may change its metadata."""
    row = yield Row("SELECT body FROM messages WHERE run_id = $1 AND status = 'in_progress'", run_id, lock="wait")
    return read_message(row[0]) if row else None


def update_message(message_id: str, thread_id: str, change: ModifyMessage) -> Operation[Message]:
    """Change a message; the caller has seen that its content may be. Raises NotFound and InvalidRequest."""
    body = yield from lock_message(message_id, thread_id)
    message = changed_message(read_message(body), change)
    yield from write_message(message)
    return message


def list_messages(thread_id: str, query: PageQuery, run_id: str | None) -> Operation[Page]:
    """Return a page of the thread's messages, of one run only if asked for."""
    filters = [] if run_id is None else [("run_id = ?", [run_id])]
    return (yield from list_page("messages", ("thread_id", thread_id), query, filters=filters, keys=("waits", "seq")))


def list_all_messages(thread_id: str, newest: int | None = None) -> Operation[list[Message]]:
    """Return the thread's messages, oldest first, without those that wait; with `newest`, that many of the newest."""
    if newest is None:
        rows = yield Rows("SELECT body FROM messages WHERE thread_id = $1 AND waits = 0 ORDER BY seq", thread_id)
        return [read_message(row[0]) for row in rows]
    rows = yield Rows(
        "SELECT body FROM messages WHERE thread_id = $1 AND waits = 0 ORDER BY seq DESC LIMIT $2", thread_id, newest
    )
    return [read_message(row[0]) for row in reversed(rows)]


def find_last_user_message(thread_id: str) -> Operation[Message | None]:
    """Return the newest message of a user that does not wait."""
    row = yield Row(
        "SELECT body FROM messages WHERE thread_id = $1 AND waits = 0 AND role = 'user' ORDER BY seq DESC LIMIT 1",
        thread_id,
    )
    return read_message(row[0]) if row else None


def has_user_message(thread_id: str) -> Operation[bool]:
    """Say whether somebody has asked something, be it in the line."""
    row = yield Row("SELECT 1 FROM messages WHERE thread_id = $1 AND role = 'user' LIMIT 1", thread_id)
    return row is not None


def is_waiting(message_id: str, thread_id: str) -> Operation[bool]:
    """Say whether a message stands in the thread's line."""
    row = yield Row("SELECT 1 FROM messages WHERE id = $1 AND thread_id = $2 AND waits > 0", message_id, thread_id)
    return row is not None


def delete_message(message_id: str, thread_id: str, now: int) -> Operation[None]:
    """Delete a message; the caller has seen that no run is at work on it. Raises NotFound."""
    row = yield Row("DELETE FROM messages WHERE id = $1 AND thread_id = $2 RETURNING seq", message_id, thread_id)
    if row is None:
        raise no_message(message_id)
    yield from insert_tombstone(message_id, row[0], thread_id, now)
