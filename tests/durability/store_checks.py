"""What must be true of the rows when the server has stopped."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

Query = Callable[[str], list[Any]]

NOTHING = {
    "a run that has not ended": "SELECT id FROM runs WHERE ended_at IS NULL OR status IN "
    "('queued', 'in_progress', 'requires_action', 'cancelling')",
    "a run that somebody holds": "SELECT id FROM runs WHERE worker_id IS NOT NULL OR lease_until IS NOT NULL",
    "a run in a line": "SELECT id FROM runs WHERE waits <> 0",
    "a message in a line": "SELECT id FROM messages WHERE waits <> 0",
    "a message that is being written": "SELECT id FROM messages WHERE status = 'in_progress'",
    "a step that is open": "SELECT id FROM steps WHERE status = 'in_progress'",
    "a run without its thread": "SELECT id FROM runs WHERE thread_id NOT IN (SELECT id FROM threads)",
    "a message without its thread": "SELECT id FROM messages WHERE thread_id NOT IN (SELECT id FROM threads)",
    "a message without its run": "SELECT id FROM messages WHERE run_id NOT IN (SELECT id FROM runs)",
    "a step without its run": "SELECT id FROM steps WHERE run_id NOT IN (SELECT id FROM runs)",
    "a step on another thread than its run": "SELECT steps.id FROM steps JOIN runs ON runs.id = run_id "
    "WHERE steps.thread_id <> runs.thread_id",
    "events without their run": "SELECT run_id FROM run_events WHERE run_id NOT IN (SELECT id FROM runs)",
    "events behind the last one": "SELECT id FROM runs WHERE last_event <> "
    "(SELECT max(last_sequence) FROM run_events WHERE run_id = runs.id)",
    "metadata without its thread": "SELECT key FROM thread_metadata WHERE thread_seq NOT IN (SELECT seq FROM threads)",
    "a deleted object that is there": "SELECT id FROM tombstones WHERE id IN (SELECT id FROM threads UNION ALL "
    "SELECT id FROM messages UNION ALL SELECT id FROM assistants)",
}


def check_rows(query: Query, listed: dict[str, list[str]]) -> Counter[str]:
    """Check all tables; `listed` are the messages of each thread as the API has listed them. Return their sizes."""
    for what, sql in NOTHING.items():
        assert query(sql) == [], what
    stored: defaultdict[str, list[str]] = defaultdict(list)
    for thread_id, message_id in query("SELECT thread_id, id FROM messages ORDER BY waits, seq"):
        stored[thread_id].append(message_id)
    assert stored == {thread_id: found for thread_id, found in listed.items() if found}
    assert [row[0] for row in query("SELECT id FROM threads ORDER BY seq")] == list(listed)
    check_bodies(query)
    check_metadata(query)
    tables = ("assistants", "threads", "messages", "runs", "steps", "run_events", "tombstones")
    return Counter({table: query(f"SELECT count(*) FROM {table}")[0][0] for table in tables})


def check_bodies(query: Query) -> None:
    """The columns beside a body say the same as it."""
    for table in ("runs", "messages", "steps"):
        for row_id, thread_id, status, created_at, body in query(
            f"SELECT id, thread_id, status, created_at, body FROM {table}"
        ):
            said = json.loads(body)
            assert (said["id"], said["thread_id"], said["status"], said["created_at"]) == (
                row_id,
                thread_id,
                status,
                created_at,
            )


def check_metadata(query: Query) -> None:
    """Threads are found by just the metadata that they have."""
    found: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for seq, key, value in query("SELECT thread_seq, key, value FROM thread_metadata"):
        found[seq][key] = value
    for seq, body in query("SELECT seq, body FROM threads"):
        assert json.loads(body)["metadata"] == found[seq]


def check_file(path: Path, listed: dict[str, list[str]]) -> Counter[str]:
    """Check a database of SQLite that nobody has open."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return check_rows(lambda sql: connection.execute(sql).fetchall(), listed)
    finally:
        connection.close()
