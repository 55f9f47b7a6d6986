"""All objects as lines of JSON, out of one snapshot, in an order in which they can be imported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from perdure.errors import OperatorError
from perdure.store.bodies import encode, read_extra
from perdure.store.db import Operation, Row, Rows, Value
from perdure.wire.exports import BESIDE, Beside
from perdure.wire.runs import Extra

CHUNK = 100


class Intake(Protocol):
    """Takes lines. What it raises breaks the export off."""

    def begin(self) -> None:
        """Begin an export. Called a second time if the database had to begin anew."""
        ...

    def take(self, kind: str, line: str) -> None:
        """Take one line, without its end; `kind` names the table."""
        ...


def export_objects(project: str | None, threads: Sequence[str], intake: Intake) -> Operation[None]:
    """Hand all objects to `intake`; of one project and of some threads only, if they are named.

    With threads come the assistants that worked on them. Unlike other operations this one has an effect.
    Raises OperatorError for a project or thread that is not there.
    """
    projects = yield from _find_projects(project)
    chosen = yield from _find_threads(threads, projects, project)
    intake.begin()
    for project_id, name in projects.items():
        here = [row for row in chosen if row[1] == project_id]
        if threads and not here:
            continue
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
            yield from _export_steps(run_id, beside, intake)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _export_steps(run_id: str, beside: Beside, intake: Intake) -> Operation[None]:
    seq = 0
    while True:
        rows = yield Rows(
            "SELECT seq, body FROM steps WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3", run_id, seq, CHUNK
        )
        for _, body in rows:
            _take(intake, "steps", body, beside)
        if len(rows) < CHUNK:
            return
        seq = rows[-1][0]


def _beside(project: str, extra: str) -> Beside:
    read = read_extra(extra)
    return Beside(project=project, extra=None if read == Extra() else read)


def _take(intake: Intake, kind: str, body: str, beside: Beside) -> None:
    """Write what stands beside an object into it, the body itself untouched."""
    intake.take(kind, f'{body[:-1]},"{BESIDE}":{encode(beside)}}}')
