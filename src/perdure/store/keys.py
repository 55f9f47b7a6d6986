"""Keys and projects. A key is kept as its SHA-256 only: 32 random letters need no slow hash."""

from __future__ import annotations

import hashlib

import msgspec

from perdure.store.db import Do, Operation, Row, Rows

DEFAULT_PROJECT = "proj_default"


class KeyRow(msgspec.Struct, frozen=True):
    """What may be shown of a key."""

    id: str
    project: str
    name: str
    redacted: str
    created_at: int
    revoked_at: int | None


def hash_key(key: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class Door(msgspec.Struct, frozen=True):
    """What a key opens (None: nothing), and whether there are keys at all."""

    project_id: str | None
    any_key_made: bool


def find_door(key_hash: str) -> Operation[Door]:
    """Look a key up; one statement, as every request asks it."""
    row = yield Row(
        "SELECT (SELECT project_id FROM api_keys WHERE key_hash = $1 AND revoked_at IS NULL), "
        "(SELECT count(*) FROM (SELECT 1 FROM api_keys LIMIT 1) AS made)",
        key_hash,
    )
    return Door(row[0], bool(row[1]))


def any_key_made() -> Operation[bool]:
    """Say whether a key was ever made, revoked ones included: who made one wants the door shut."""
    row = yield Row("SELECT 1 FROM api_keys LIMIT 1")
    return row is not None


def insert_key(key: KeyRow, key_hash: str, project_id: str) -> Operation[None]:
    """Store a key and, if it is new, its project (by name)."""
    row = yield Row("SELECT id FROM projects WHERE name = $1", key.project)
    if row is None:
        yield Do(
            "INSERT INTO projects (id, name, created_at) VALUES ($1, $2, $3)", project_id, key.project, key.created_at
        )
    yield Do(
        "INSERT INTO api_keys (id, project_id, name, key_hash, redacted, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        key.id,
        row[0] if row else project_id,
        key.name,
        key_hash,
        key.redacted,
        key.created_at,
    )


def list_keys() -> Operation[list[KeyRow]]:
    """Return all keys, oldest first."""
    rows = yield Rows(
        "SELECT k.id, p.name, k.name, k.redacted, k.created_at, k.revoked_at FROM api_keys k "
        "JOIN projects p ON p.id = k.project_id ORDER BY k.created_at, k.id"
    )
    return [KeyRow(*row) for row in rows]


def revoke_key(key_id: str, now: int) -> Operation[bool]:
    """Revoke a key; False if there is no such key in force."""
    written = yield Do("UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL", key_id, now)
    return bool(written)
