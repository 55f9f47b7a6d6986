"""Objects into the store, ids kept. Rule: what is there is never overwritten; if it is equal it is passed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from perdure.domain.imported import Item
from perdure.store.assistants import insert_assistant
from perdure.store.bodies import encode
from perdure.store.db import Do, Operation, Row
from perdure.store.messages import insert_messages
from perdure.store.runs import find_active_run
from perdure.store.steps import insert_step
from perdure.store.threads import insert_thread
from perdure.wire.assistants import Assistant
from perdure.wire.exports import Exported
from perdure.wire.messages import Message
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import RunStep
from perdure.wire.threads import Thread

_TABLES: dict[type[Exported], tuple[str, str]] = {
    Assistant: ("assistants", "project_id"),
    Thread: ("threads", "project_id"),
    Message: ("messages", "thread_id"),
    Run: ("runs", "thread_id"),
    RunStep: ("steps", "run_id"),
}
"""Where each kind lies, and the column that says whose it is."""


class Outcome(NamedTuple):
    """What became of an object."""

    item: Item
    done: Literal["imported", "same", "refused"]
    why: str = ""


class Refused(Exception):
    """The object is not imported; the text says why."""


def import_items(
    items: Sequence[Item], projects: dict[str, str], now: int, refused: frozenset[str]
) -> Operation[list[Outcome]]:
    """Store objects in order; return what became of each.

    `projects` has a fresh id for the name of each item's project, used if that project does not exist yet. `refused`
    are ids of objects that were refused before: what hangs on them is refused too.
    """
    found: dict[str | None, str] = {}
    for name, fresh_id in projects.items():
        found[name] = yield from _project_id(name, fresh_id, now)
    outcomes: list[Outcome] = []
    out = set(refused)
    for item in items:
        try:
            new = yield from _import_one(item, found[item.project], out)
            outcomes.append(Outcome(item, "imported" if new else "same"))
        except Refused as refusal:
            out.add(item.thing.id)
            outcomes.append(Outcome(item, "refused", str(refusal)))
    return outcomes


def _project_id(name: str, fresh_id: str, now: int) -> Operation[str]:
    row = yield Row("SELECT id FROM projects WHERE name = $1", name)
    if row is None:
        insert = "INSERT INTO projects (id, name, created_at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        yield Do(insert, fresh_id, name, now)
        row = yield Row("SELECT id FROM projects WHERE name = $1", name)
    return str(row[0])


def _import_one(item: Item, project_id: str, out: set[str]) -> Operation[bool]:
    """Store one object; False if it is there already. Raises Refused, also for what hangs on something in `out`."""
    thing = item.thing
    if item.parent in out:
        raise Refused(f"{item.parent}, which it belongs to, was refused")
    yield from _hold_parent(thing, project_id)
    table, column = _TABLES[type(thing)]
    row = yield Row(f"SELECT body, {column} FROM {table} WHERE id = $1", thing.id)
    if row is not None:
        if (row[0], row[1]) != (encode(thing), item.parent or project_id):
            raise Refused(f"{thing.id} exists already and is not the same; it stays as it is")
        return False
    if isinstance(thing, Message | Run) and (active := (yield from find_active_run(thing.thread_id))) is not None:
        raise Refused(f"its thread {thing.thread_id} has an active run {active}: import again when that has ended")
    yield Do("DELETE FROM tombstones WHERE id = $1", thing.id)  # it may have been deleted here
    yield from _insert(thing, item.extra, project_id)
    return True


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


def _insert(thing: Exported, extra: Extra, project_id: str) -> Operation[None]:
    if isinstance(thing, Assistant):
        yield from insert_assistant(thing, extra, project_id)
    elif isinstance(thing, Thread):
        yield from insert_thread(thing, [], project_id)
    elif isinstance(thing, Message):
        yield from insert_messages([thing])
    elif isinstance(thing, Run):
        yield from _insert_ended_run(thing, extra, project_id)
    else:
        yield from insert_step(thing)


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
