"""Assistants in the store."""

from __future__ import annotations

from perdure.domain.creation import changed_assistant
from perdure.errors import ApiError, NotFound
from perdure.store.attachments import PlannedStore, insert_planned
from perdure.store.bodies import encode, read_assistant, read_extra
from perdure.store.db import Do, Operation, Row
from perdure.store.files import forget_files, note_changed_files, note_files
from perdure.store.pages import insert_tombstone, list_page
from perdure.wire.assistants import Assistant, ModifyAssistant
from perdure.wire.page import Page, PageQuery
from perdure.wire.runs import Extra


def no_assistant(assistant_id: str) -> ApiError:
    """Return the refusal; its text is recorded."""
    return NotFound(f"No assistant found with id '{assistant_id}'.")


def insert_assistant(
    assistant: Assistant, extra: Extra, project_id: str, planned: PlannedStore | None = None, now: int = 0
) -> Operation[None]:
    """Store a new assistant, and the vector store that is made with it.

    The project's row is locked: list order is the order of creation. Raises NotFound.
    """
    if planned is not None:
        yield from insert_planned(planned, project_id, now)
    yield Row("SELECT id FROM projects WHERE id = $1", project_id, lock="wait")
    yield Do(
        "INSERT INTO assistants (id, project_id, created_at, extra, body) VALUES ($1, $2, $3, $4, $5)",
        assistant.id,
        project_id,
        assistant.created_at,
        encode(extra),
        encode(assistant),
    )
    yield from note_files(assistant.id, project_id, assistant.tool_resources)


def get_assistant_body(assistant_id: str, project_id: str) -> Operation[str]:
    """Return the stored JSON. Raises NotFound."""
    row = yield Row("SELECT body FROM assistants WHERE id = $1 AND project_id = $2", assistant_id, project_id)
    if row is None:
        raise no_assistant(assistant_id)
    return str(row[0])


def get_assistant(assistant_id: str, project_id: str, *, lock: bool = False) -> Operation[tuple[Assistant, Extra]]:
    """Return the assistant and its extra column. Raises NotFound."""
    row = yield Row(
        "SELECT body, extra FROM assistants WHERE id = $1 AND project_id = $2",
        assistant_id,
        project_id,
        lock="wait" if lock else None,
    )
    if row is None:
        raise no_assistant(assistant_id)
    return read_assistant(row[0]), read_extra(row[1])


def update_assistant(assistant_id: str, project_id: str, change: ModifyAssistant) -> Operation[Assistant]:
    """Change an assistant. Raises NotFound."""
    old, extra = yield from get_assistant(assistant_id, project_id, lock=True)
    assistant, extra = changed_assistant(old, extra, change)
    yield from note_changed_files(assistant_id, project_id, old.tool_resources, assistant.tool_resources)
    yield Do(
        "UPDATE assistants SET body = $2, extra = $3 WHERE id = $1", assistant_id, encode(assistant), encode(extra)
    )
    return assistant


def list_assistants(project_id: str, query: PageQuery) -> Operation[Page]:
    """Return a page of the project's assistants."""
    return (yield from list_page("assistants", ("project_id", project_id), query))


def delete_assistant(assistant_id: str, project_id: str, now: int) -> Operation[None]:
    """Delete an assistant; its runs keep their snapshot. Raises NotFound."""
    row = yield Row("DELETE FROM assistants WHERE id = $1 AND project_id = $2 RETURNING seq", assistant_id, project_id)
    if row is None:
        raise no_assistant(assistant_id)
    yield from forget_files(assistant_id)
    yield from insert_tombstone(assistant_id, row[0], project_id, now)
