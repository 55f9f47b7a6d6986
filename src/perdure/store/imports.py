"""Objects into the store, ids kept. Rule: what is there is never overwritten; if it is equal it is passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from perdure.domain.imported import Item
from perdure.ids import searchable
from perdure.store.assistants import insert_assistant
from perdure.store.bodies import encode, read_vector_store, read_vector_store_file
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.files import files_named, insert_file
from perdure.store.found_files import pieces, placeholders
from perdure.store.messages import insert_messages
from perdure.store.pages import within
from perdure.store.runs import find_active_run
from perdure.store.steps import insert_step
from perdure.store.threads import insert_thread
from perdure.store.vector_stores import Tally, get_store_row, has_expired, insert_vector_store, settle
from perdure.wire.assistants import Assistant
from perdure.wire.exports import Exported
from perdure.wire.files import File, StoredFile
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread
from perdure.wire.tools import CodeInterpreterResources
from perdure.wire.vector_stores import FileCounts, FileStatus, VectorStore, VectorStoreFile

_TABLES: dict[type[Exported], tuple[str, str]] = {
    Assistant: ("assistants", "project_id"),
    Thread: ("threads", "project_id"),
    Message: ("messages", "thread_id"),
    Run: ("runs", "thread_id"),
    RunStep: ("steps", "run_id"),
    File: ("files", "project_id"),
    VectorStore: ("vector_stores", "project_id"),
    VectorStoreFile: ("vector_store_files", "vector_store_id"),
}
"""Where each kind lies, and the column that says whose it is."""


class Bytes(NamedTuple):
    """Where the bytes of a file are that is to be imported, and their SHA-256."""

    blob: str
    sha256: str


class Means(NamedTuple):
    """What an import may not make up itself."""

    projects: dict[str, str]
    """A fresh id for the name of each item's project, used if that project does not exist yet."""
    bytes: Mapping[str, Bytes | str]
    """For files that are not there yet by their id: where their bytes are, or why they can not be had."""
    embedder: str
    """The one that new vector stores get; their files are read again."""
    now: int


class Outcome(NamedTuple):
    """What became of an object."""

    item: Item
    done: Literal["imported", "same", "refused"]
    why: str = ""


class Refused(Exception):
    """The object is not imported; the text says why."""


def import_items(items: Sequence[Item], means: Means, refused: frozenset[str]) -> Operation[list[Outcome]]:
    """Store objects in order; return what became of each.

    `refused` are keys of objects that were refused before: what hangs on them is refused too.
    """
    found: dict[str | None, str] = {}
    for name, fresh_id in means.projects.items():
        found[name] = yield from _project_id(name, fresh_id, means.now)
    outcomes: list[Outcome] = []
    out = set(refused)
    for item in items:
        try:
            new = yield from _import_one(item, found[item.project], means, out)
            outcomes.append(Outcome(item, "imported" if new else "same"))
        except Refused as refusal:
            out.add(item.key)
            outcomes.append(Outcome(item, "refused", str(refusal)))
    return outcomes


def find_unknown_files(file_ids: Sequence[str]) -> Operation[list[str]]:
    """Return those of the files that are in no project."""
    known: set[str] = set()
    for piece in pieces(file_ids):
        rows = yield Rows(f"SELECT id FROM files WHERE id IN ({placeholders(1, len(piece))})", *piece)
        known.update(row[0] for row in rows)
    return [file_id for file_id in file_ids if file_id not in known]


def _project_id(name: str, fresh_id: str, now: int) -> Operation[str]:
    row = yield Row("SELECT id FROM projects WHERE name = $1", name)
    if row is None:
        insert = "INSERT INTO projects (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        yield Do(insert, fresh_id, name, now)
        row = yield Row("SELECT id FROM projects WHERE name = $1", name)
    return str(row[0])


def _import_one(item: Item, project_id: str, means: Means, out: set[str]) -> Operation[bool]:
    """Store one object; False if it is there already. Raises Refused, also for what hangs on something in `out`."""
    thing = item.thing
    if item.parent in out:
        raise Refused(f"{item.parent}, which it belongs to, was refused")
    yield from _hold_parent(thing, project_id)
    table, column = _TABLES[type(thing)]
    where, args = "id = $1", [thing.id]
    if isinstance(thing, VectorStoreFile):
        where, args = "id = $1 AND vector_store_id = $2", [thing.id, thing.vector_store_id]
    row = yield Row(f"SELECT body, {column} FROM {table} WHERE {where}", *args)
    if row is not None:
        if not _is_same(thing, row[0]) or row[1] != (item.parent or project_id):
            raise Refused(f"{item.key} exists already and is not the same; it stays as it is")
        return False
    if isinstance(thing, Message | Run) and (active := (yield from find_active_run(thing.thread_id))) is not None:
        raise Refused(f"its thread {thing.thread_id} has an active run {active}: import again when that has ended")
    dead = within(thing.vector_store_id, thing.id) if isinstance(thing, VectorStoreFile) else thing.id
    yield Do("DELETE FROM tombstones WHERE id = $1", dead)  # it may have been deleted here
    yield from _insert(item, project_id, means)
    return True


def _is_same(thing: Exported, body: str) -> bool:
    """Say whether what is stored is what a line says; what a server changes by itself does not count."""
    if isinstance(thing, VectorStore):
        return _as_made(thing) == _as_made(read_vector_store(body))
    if isinstance(thing, VectorStoreFile):
        return _as_made(thing) == _as_made(read_vector_store_file(body))
    return body == encode(thing)


def _as_made(thing: VectorStore | VectorStoreFile) -> VectorStore | VectorStoreFile:
    """Return it as it was before anything was read."""
    if isinstance(thing, VectorStoreFile):
        return msgspec.structs.replace(thing, status="in_progress", last_error=None, usage_bytes=0)
    return msgspec.structs.replace(
        thing, status="completed", usage_bytes=0, file_counts=FileCounts(), last_active_at=0, expires_at=None
    )


def _hold_parent(thing: Exported, project_id: str) -> Operation[None]:
    """Lock what the object hangs on: that hands out the places in lists. Raises Refused."""
    if isinstance(thing, Message | Run):
        row = yield Row("SELECT project_id FROM threads WHERE id = $1", thing.thread_id, lock="wait")
        if row is None or row[0] != project_id:
            raise Refused(f"its thread {thing.thread_id} is not in the project: its line must stand above")
    if isinstance(thing, RunStep):
        row = yield Row("SELECT project_id, thread_id FROM runs WHERE id = $1", thing.run_id, lock="wait")
        if row is None or tuple(row) != (project_id, thing.thread_id):
            raise Refused(f"its run {thing.run_id} is not in the project and thread: its line must stand above")
    if isinstance(thing, VectorStoreFile):
        for table, parent in (("vector_stores", thing.vector_store_id), ("files", thing.id)):
            row = yield Row(f"SELECT project_id FROM {table} WHERE id = $1", parent, lock="wait")
            if row is None or row[0] != project_id:
                raise Refused(f"{parent} is not in the project: its line must stand above")


def _insert(item: Item, project_id: str, means: Means) -> Operation[None]:
    thing = item.thing
    if isinstance(thing, Assistant | Thread):
        yield from _insert_naming(thing, item.extra, project_id)
    elif isinstance(thing, Message):
        yield from insert_messages([thing])
    elif isinstance(thing, Run):
        yield from _insert_ended_run(thing, item.extra, project_id)
    elif isinstance(thing, RunStep):
        yield from insert_step(thing)
    elif isinstance(thing, File):
        yield from _insert_file(thing, project_id, means)
    elif isinstance(thing, VectorStore):
        yield from _insert_store(thing, project_id, means)
    else:
        yield from _insert_store_file(thing, project_id)


def _insert_naming(thing: Assistant | Thread, extra: Extra, project_id: str) -> Operation[None]:
    """Store an assistant or a thread, and note the files that it names.

    Unlike when one is made, they need not be there: the hosted API did not give out all bytes, and they may come later.
    """
    named = files_named(thing.tool_resources)
    bare: Any = thing
    if named:
        resources = msgspec.structs.replace(thing.tool_resources, code_interpreter=CodeInterpreterResources())
        bare = msgspec.structs.replace(thing, tool_resources=resources)
    if isinstance(thing, Assistant):
        yield from insert_assistant(bare, extra, project_id)
    else:
        yield from insert_thread(bare, [], project_id)
    if named:
        yield Do(f"UPDATE {_TABLES[type(thing)][0]} SET body = $2 WHERE id = $1", thing.id, encode(thing))
    for file_id in dict.fromkeys(map(searchable, named)):
        yield Row("SELECT id FROM files WHERE id = $1", file_id, lock="wait")
        yield Do("INSERT INTO file_uses (file_id, owner) VALUES ($1, $2)", file_id, thing.id)


def _insert_file(file: File, project_id: str, means: Means) -> Operation[None]:
    """Store a file whose blob is written. Raises Refused."""
    found = means.bytes.get(file.id, "it was deleted just now: import again")
    if isinstance(found, str):
        raise Refused(found)
    if file.expires_at is not None and file.expires_at <= means.now:
        raise Refused(f"{file.id} has expired")
    yield from insert_file(StoredFile(file, project_id, found.blob, found.sha256))


def _insert_store(store: VectorStore, project_id: str, means: Means) -> Operation[None]:
    """Store a vector store, empty: its files follow. One whose time is over is there, but for nothing."""
    empty = msgspec.structs.replace(store, status="completed", usage_bytes=0, file_counts=FileCounts())
    row = yield from insert_vector_store(empty, means.embedder, project_id)
    if has_expired(store, means.now):
        row.store.status = "expired"
        yield from settle(Tally(row))


def _insert_store_file(file: VectorStoreFile, project_id: str) -> Operation[None]:
    """Put a file into its store. What was completed is read again, what failed or was cancelled is not."""
    row = yield from get_store_row(file.vector_store_id, project_id, lock=True)
    status: FileStatus = file.status
    if row.store.status == "expired":
        status = "cancelled" if status == "in_progress" else status
    elif status == "completed":
        status = "in_progress"
    made = msgspec.structs.replace(file, status=status, usage_bytes=0 if status != "completed" else file.usage_bytes)
    tally = Tally(row)
    tally.move(None, None, status)
    yield Do(
        "INSERT INTO vector_store_files (vector_store_id, id, bulk, status, created_at, body) "
        "VALUES ($1, $2, $3, $4, $5, $6)",
        file.vector_store_id,
        file.id,
        1,
        status,
        file.created_at,
        encode(made),
    )
    yield from settle(tally)


def _insert_ended_run(run: Run, extra: Extra, project_id: str) -> Operation[None]:
    """Store a run that has ended. It has no event log, and so nothing that would have to be cleaned up in time."""
    yield Do(
        "INSERT INTO runs (id, thread_id, project_id, assistant_id, status, expires_at, ended_at, created_at, extra, "
        "body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        run.id,
        run.thread_id,
        project_id,
        run.assistant_id,
        run.status,
        run.created_at,
        run.created_at,
        run.created_at,
        encode(extra),
        encode(run),
    )
