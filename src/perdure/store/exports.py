"""All objects as lines of JSON, out of one snapshot, in an order in which they can be imported."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Protocol

from perdure.errors import OperatorError
from perdure.store.bodies import encode, read_extra, read_vector_store
from perdure.store.db import Operation, Row, Rows, Value
from perdure.store.vector_stores import shown
from perdure.wire.exports import BESIDE, Beside
from perdure.wire.runs import Extra

CHUNK = 100
_NAMED = re.compile(r'"(file-[A-Za-z0-9_-]+|vs_[A-Za-z0-9_-]+)"')
"""An id of a file or a vector store as a whole JSON string; where one stands within a text, its quotes are escaped."""


class Intake(Protocol):
    """Takes lines. What it raises breaks the export off."""

    def begin(self) -> None:
        """Begin an export. Called a second time if the database had to begin anew."""
        ...

    def take(self, kind: str, line: str) -> None:
        """Take one line, without its end; `kind` names the table."""
        ...

    def take_file(self, file_id: str, size_bytes: int, blob: str) -> None:
        """Hear where the bytes of a file are whose line was taken."""
        ...


def export_objects(project: str | None, threads: Sequence[str], intake: Intake, now: int) -> Operation[None]:
    """Hand all objects to `intake`; of one project and of some threads only, if they are named.

    With threads come the assistants that worked on them, and the files and vector stores that either name. Unlike
    other operations this one has an effect. Raises OperatorError for a project or thread that is not there.
    """
    projects = yield from _find_projects(project)
    chosen = yield from _find_threads(threads, projects, project)
    intake.begin()
    for project_id, name in projects.items():
        here = [row for row in chosen if row[1] == project_id]
        if threads and not here:
            continue
        named = (yield from _find_named([row[0] for row in here])) if threads else None
        yield from _export_files(project_id, Beside(project=name), named, intake, now)
        yield from _export_stores(project_id, Beside(project=name), named, intake, now)
        yield from _export_assistants(project_id, name, [row[0] for row in here], intake)
        if threads:
            for thread_id, _, body in here:
                yield from _export_thread(thread_id, body, Beside(project=name), intake)
        else:
            yield from _export_threads(project_id, Beside(project=name), intake)


def _find_projects(name: str | None) -> Operation[dict[str, str]]:
    rows = yield Rows("SELECT id, name FROM projects ORDER BY created_at, id")
    found = {row[0]: row[1] for row in rows if name in {None, row[1]}}
    if not found:
        raise OperatorError(f"there is no project '{name}': `perdure keys list` shows them")
    return found


def _find_threads(
    threads: Sequence[str], projects: dict[str, str], project: str | None
) -> Operation[list[tuple[str, str, str]]]:
    found: list[tuple[str, str, str]] = []
    for thread_id in dict.fromkeys(threads):
        row = yield Row("SELECT id, project_id, body FROM threads WHERE id = $1", thread_id)
        if row is None or row[1] not in projects:
            where = "" if project is None else f" in the project '{project}'"
            raise OperatorError(f"there is no thread '{thread_id}'{where}")
        found += [(row[0], row[1], row[2])]
    return found


def _find_named(threads: list[str]) -> Operation[set[str]]:
    """Return the ids of files and vector stores that threads name, with all that hangs on them, and their assistants.

    Also those of the files in the stores.
    """
    named: set[str] = set()
    for thread_id in threads:
        for table, condition in (
            ("threads", "id = $1"),
            ("messages", "thread_id = $1"),
            ("steps", "thread_id = $1"),
            ("assistants", "id IN (SELECT assistant_id FROM runs WHERE thread_id = $1)"),
        ):
            seq = 0
            while True:
                rows = yield Rows(
                    f"SELECT seq, body FROM {table} WHERE {condition} AND seq > $2 ORDER BY seq LIMIT $3",
                    thread_id,
                    seq,
                    CHUNK,
                )
                named.update(found for row in rows for found in _NAMED.findall(row[1]))
                if len(rows) < CHUNK:
                    break
                seq = rows[-1][0]
    for store_id in [one for one in named if one.startswith("vs_")]:
        rows = yield Rows("SELECT id FROM vector_store_files WHERE vector_store_id = $1", store_id)
        named.update(row[0] for row in rows)
    return named


def _export_files(
    project_id: str, beside: Beside, named: Collection[str] | None, intake: Intake, now: int
) -> Operation[None]:
    seq = 0
    while True:
        rows = yield Rows(
            "SELECT seq, id, body, sha256, bytes, blob FROM files WHERE project_id = $1 AND seq > $2 "
            "AND (expires_at IS NULL OR expires_at > $3) ORDER BY seq LIMIT $4",
            project_id,
            seq,
            now,
            CHUNK,
        )
        for _, file_id, body, sha256, size_bytes, blob in rows:
            if named is None or file_id in named:
                _take(intake, "files", body, Beside(project=beside.project, sha256=sha256))
                intake.take_file(file_id, size_bytes, blob)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_stores(
    project_id: str, beside: Beside, named: Collection[str] | None, intake: Intake, now: int
) -> Operation[None]:
    """Hand over vector stores as clients see them, each with its files."""
    seq = 0
    while True:
        rows = yield Rows(
            "SELECT seq, id, body FROM vector_stores WHERE project_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            project_id,
            seq,
            CHUNK,
        )
        for _, store_id, body in rows:
            if named is None or store_id in named:
                _take(intake, "vector_stores", encode(shown(read_vector_store(body), now)), beside)
                yield from _export_children("vector_store_files", "vector_store_id", store_id, beside, intake)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_assistants(project_id: str, name: str, threads: list[str], intake: Intake) -> Operation[None]:
    wanted, args = "", []
    if threads:
        numbers = ", ".join(f"${number}" for number in range(4, len(threads) + 4))
        wanted = f"AND id IN (SELECT assistant_id FROM runs WHERE thread_id IN ({numbers})) "
        args = threads
    seq = 0
    while True:
        rows = yield Rows(
            f"SELECT seq, body, extra FROM assistants WHERE project_id = $1 AND seq > $2 {wanted}ORDER BY seq LIMIT $3",
            project_id,
            seq,
            CHUNK,
            *args,
        )
        for _, body, extra in rows:
            _take(intake, "assistants", body, _beside(name, extra))
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_threads(project_id: str, beside: Beside, intake: Intake) -> Operation[None]:
    seq = 0
    while True:
        rows = yield Rows(
            "SELECT seq, id, body FROM threads WHERE project_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            project_id,
            seq,
            CHUNK,
        )
        for _, thread_id, body in rows:
            yield from _export_thread(thread_id, body, beside, intake)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_thread(thread_id: str, body: str, beside: Beside, intake: Intake) -> Operation[None]:
    """Hand over a thread, then its messages as they are listed, then its runs, each with its steps."""
    _take(intake, "threads", body, beside)
    last: list[Value] = [-1, 0]
    while True:
        rows = yield Rows(
            "SELECT waits, seq, body FROM messages WHERE thread_id = $1 AND (waits, seq) > ($2, $3) "
            "ORDER BY waits, seq LIMIT $4",
            thread_id,
            *last,
            CHUNK,
        )
        for _, _, message in rows:
            _take(intake, "messages", message, beside)
        if len(rows) < CHUNK:
            break
        last = [rows[-1][0], rows[-1][1]]
    seq = 0
    while True:
        rows = yield Rows(
            "SELECT seq, id, body, extra FROM runs WHERE thread_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            thread_id,
            seq,
            CHUNK,
        )
        for _, run_id, run, extra in rows:
            _take(intake, "runs", run, _beside(beside.project, extra))
            yield from _export_children("steps", "run_id", run_id, beside, intake)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_children(table: str, column: str, parent: str, beside: Beside, intake: Intake) -> Operation[None]:
    """Hand over all that a table has of one parent, in order."""
    seq = 0
    while True:
        rows = yield Rows(
            f"SELECT seq, body FROM {table} WHERE {column} = $1 AND seq > $2 ORDER BY seq LIMIT $3", parent, seq, CHUNK
        )
        for _, body in rows:
            _take(intake, table, body, beside)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _beside(project: str, extra: str) -> Beside:
    read = read_extra(extra)
    return Beside(project=project, extra=None if read == Extra() else read)


def _take(intake: Intake, kind: str, body: str, beside: Beside) -> None:
    """Write what stands beside an object into it, the body itself untouched."""
    intake.take(kind, f'{body[:-1]},"{BESIDE}":{encode(beside)}}}')
