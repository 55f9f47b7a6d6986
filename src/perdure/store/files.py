"""Files in the store: what is known of them. Their bytes are blobs; a row is made after its blob, and goes before it.

A file past its `expires_at` does not exist for anybody, whether it was deleted already or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.ids import searchable
from perdure.store.bodies import encode, read_assistant, read_thread
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.found_files import list_file_names, no_file
from perdure.store.pages import Filter, insert_tombstone, list_page
from perdure.store.vector_store_files import remove_from_stores
from perdure.wire.files import File, StoredFile
from perdure.wire.page import Page, PageQuery
from perdure.wire.tools import CodeInterpreterResources, ToolResources

MOST_AT_ONCE = 100

_read_file = msgspec.json.Decoder(File).decode


def insert_file(stored: StoredFile) -> Operation[None]:
    """Store a new file, whose blob is written. The project's row is locked: list order is the order of creation."""
    file = stored.file
    yield Row("SELECT id FROM projects WHERE id = $1", stored.project_id, lock="wait")
    yield Do(
        "INSERT INTO files (id, project_id, purpose, created_at, expires_at, bytes, sha256, blob, body) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        file.id,
        stored.project_id,
        file.purpose,
        file.created_at,
        file.expires_at,
        file.bytes,
        stored.sha256,
        stored.blob,
        encode(file),
    )


def get_file_body(file_id: str, project_id: str, now: int) -> Operation[str]:
    """Return the stored JSON. Raises NotFound."""
    row = yield Row(
        "SELECT body FROM files WHERE id = $1 AND project_id = $2 AND (expires_at IS NULL OR expires_at > $3)",
        file_id,
        project_id,
        now,
    )
    if row is None:
        raise no_file(file_id)
    return str(row[0])


def get_file(file_id: str, project_id: str, now: int) -> Operation[StoredFile]:
    """Return a file with where its bytes are. Raises NotFound."""
    row = yield Row(
        "SELECT body, blob, sha256 FROM files "
        "WHERE id = $1 AND project_id = $2 AND (expires_at IS NULL OR expires_at > $3)",
        file_id,
        project_id,
        now,
    )
    if row is None:
        raise no_file(file_id)
    return StoredFile(_read_file(row[0]), project_id, row[1], row[2])


def check_files(file_ids: Sequence[str], project_id: str, now: int) -> Operation[None]:
    """Raise NotFound for the first of the files that is not there."""
    yield from list_file_names([searchable(file_id) for file_id in dict.fromkeys(file_ids)], project_id, now)


def list_files(project_id: str, query: PageQuery, purpose: str | None, now: int) -> Operation[Page]:
    """Return a page of the project's files, of one purpose only if it is given."""
    filters: list[Filter] = [("(expires_at IS NULL OR expires_at > ?)", (now,))]
    if purpose is not None:
        filters.append(("purpose = ?", (purpose,)))
    return (yield from list_page("files", ("project_id", project_id), query, filters=filters))


def delete_file(file_id: str, project_id: str, now: int) -> Operation[str]:
    """Delete a file and take it out of all that names it; return its blob, to be deleted next. Raises NotFound."""
    yield from get_file_body(file_id, project_id, now)
    blob = yield from _remove(file_id, project_id, now)
    if blob is None:
        raise no_file(file_id)
    return blob


def delete_expired_files(now: int) -> Operation[list[str]]:
    """Delete some files that have expired; return their blobs, to be deleted next."""
    rows = yield Rows(
        "SELECT id, project_id FROM files WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2", now, MOST_AT_ONCE
    )
    blobs = []
    for row in rows:
        blob = yield from _remove(row[0], row[1], now)
        if blob is not None:
            blobs.append(blob)
    return blobs


def _remove(file_id: str, project_id: str, now: int) -> Operation[str | None]:
    yield Row("SELECT id FROM files WHERE id = $1", file_id, lock="wait")
    yield from detach_file(file_id, project_id)
    yield from remove_from_stores(file_id, project_id, now)
    row = yield Row("DELETE FROM files WHERE id = $1 RETURNING seq, blob", file_id)
    if row is None:  # somebody else was faster
        return None
    yield from insert_tombstone(file_id, row[0], project_id, now)
    return str(row[1])


def detach_file(file_id: str, project_id: str) -> Operation[None]:
    """Take a file out of everything of the project that names it: tool_resources of assistants and of threads."""
    rows = yield Rows("SELECT owner FROM file_uses WHERE file_id = $1 ORDER BY owner", file_id)
    for row in rows:
        yield from _take_out(file_id, row[0], project_id)
    yield Do("DELETE FROM file_uses WHERE file_id = $1", file_id)


def _take_out(file_id: str, owner: str, project_id: str) -> Operation[None]:
    table = "assistants" if owner.startswith("asst") else "threads"
    row = yield Row(f"SELECT body FROM {table} WHERE id = $1 AND project_id = $2", owner, project_id, lock="wait")
    if row is None:
        return
    named = read_assistant(row[0]) if table == "assistants" else read_thread(row[0])
    kept = [one for one in files_named(named.tool_resources) if one != file_id]
    resources = msgspec.structs.replace(named.tool_resources, code_interpreter=CodeInterpreterResources(file_ids=kept))
    body = encode(msgspec.structs.replace(named, tool_resources=resources))
    yield Do(f"UPDATE {table} SET body = $2 WHERE id = $1", owner, body)


def files_named(resources: ToolResources) -> list[str]:
    """Return the files that the code interpreter is given."""
    code = resources.code_interpreter
    return [] if code is None else code.file_ids or []


def note_files(owner: str, project_id: str, resources: ToolResources) -> Operation[None]:
    """Remember which files a new assistant or thread names. Raises NotFound for one that was deleted just now."""
    for file_id in dict.fromkeys(files_named(resources)):
        found = yield Row(
            "SELECT id FROM files WHERE id = $1 AND project_id = $2", searchable(file_id), project_id, lock="wait"
        )
        if found is None:
            raise no_file(file_id)
        yield Do("INSERT INTO file_uses (file_id, owner) VALUES ($1, $2)", file_id, owner)


def note_changed_files(owner: str, project_id: str, old: ToolResources, new: ToolResources) -> Operation[None]:
    """Remember which files a changed assistant or thread names. Raises NotFound."""
    if files_named(old) != files_named(new):
        yield from forget_files(owner)
        yield from note_files(owner, project_id, new)


def forget_files(owner: str) -> Operation[None]:
    """Forget what an assistant or thread named that is deleted."""
    yield Do("DELETE FROM file_uses WHERE owner = $1", owner)


def find_orphans(blobs: Sequence[str]) -> Operation[list[str]]:
    """Return those of the blobs that belong to no file and to no part of an upload."""
    if not blobs:
        return []
    numbers = ", ".join(f"${number}" for number in range(1, len(blobs) + 1))
    rows = yield Rows(
        f"SELECT blob FROM files WHERE blob IN ({numbers}) "
        f"UNION ALL SELECT blob FROM upload_parts WHERE blob IN ({numbers})",
        *blobs,
    )
    owned = {row[0] for row in rows}
    return [blob for blob in blobs if blob not in owned]
