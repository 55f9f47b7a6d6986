"""The step that goes with 0002_waiting.sql. Like the file it is never edited, and uses no code that may change."""

from __future__ import annotations

import json

from perdure.store.db import Do, Operation, Rows

CHUNK = 500


def fill_thread_metadata() -> Operation[None]:
    """Copy the metadata of all threads into the table that finds threads by it."""
    seq = 0
    while True:
        rows = yield Rows("SELECT seq, project_id, body FROM threads WHERE seq > $1 ORDER BY seq LIMIT $2", seq, CHUNK)
        if not rows:
            return
        for row in rows:
            seq = int(row[0])
            for key, value in json.loads(row[2])["metadata"].items():
                yield Do(
                    "INSERT INTO thread_metadata (thread_seq, project_id, key, value) VALUES ($1, $2, $3, $4)",
                    seq,
                    row[1],
                    key.replace("\0", "\N{REPLACEMENT CHARACTER}"),
                    value.replace("\0", "\N{REPLACEMENT CHARACTER}"),
                )
