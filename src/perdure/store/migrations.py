"""Bringing a database up to this program's schema: numbered files in `store/schema/`, forward only.

A file may have a step that fills in what SQL alone can not. Rules: what was released is never edited; each file is
applied in a transaction of its own, and a database newer than the program is refused before anything is touched.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import NamedTuple

from perdure.errors import OperatorError
from perdure.store.db import Dialect, Do, Operation, Row
from perdure.store.schema.fill_0002 import fill_thread_metadata

STEPS: dict[int, Callable[[], Operation[None]]] = {2: fill_thread_metadata}
"""What is done after the statements of a file, by its number."""

_FILE_NAME = re.compile(r"(\d{4})_\w+\.sql")
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)
_STATEMENT_END = re.compile(r";\s*$", re.MULTILINE)
_CREATE_TABLE = re.compile(r"CREATE TABLE (\w+)")
_DROP_TABLE = re.compile(r"DROP TABLE (\w+)")
_RENAME_TABLE = re.compile(r"ALTER TABLE (\w+)\s+RENAME TO (\w+)")


class Migration(NamedTuple):
    """One file: its number and its text."""

    version: int
    text: str


@cache
def migrations() -> tuple[Migration, ...]:
    """Return all migrations of this program, oldest first."""
    files = resources.files("perdure.store.schema").iterdir()
    numbered = [(match, file) for file in files if (match := _FILE_NAME.fullmatch(file.name))]
    return tuple(sorted(Migration(int(match[1]), file.read_text(encoding="utf-8")) for match, file in numbered))


def split_statements(text: str, serial: str, binary: str) -> list[str]:
    """Cut a migration into statements and put the driver's own `serial` and `binary` column types in their places."""
    plain = _COMMENT.sub("", text).replace("{serial}", serial).replace("{bytes}", binary)
    return [part.strip() for part in _STATEMENT_END.split(plain) if part.strip()]


def tables_of(version: int) -> list[str]:
    """Return the tables of a schema version, but for `schema_version` itself."""
    tables: list[str] = []
    for migration in migrations():
        if migration.version > version:
            break
        for statement in split_statements(migration.text, "", ""):
            if made := _CREATE_TABLE.match(statement):
                tables.append(made[1])
            elif dropped := _DROP_TABLE.match(statement):
                tables.remove(dropped[1])
            elif renamed := _RENAME_TABLE.match(statement):
                tables[tables.index(renamed[1])] = renamed[2]
    return tables


def apply_next(dialect: Dialect, *, most: int | None = None) -> Operation[bool]:
    """Apply the oldest migration that is missing; return whether there was one. With `most`, none after that version.

    Raises OperatorError if the database is newer than the program.
    """
    if dialect.lock is not None:
        yield Row(dialect.lock)
    yield Do("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
    version = yield from read_version()
    newest = migrations()[-1].version
    if version > newest:
        raise OperatorError(
            f"the database has schema version {version}, this Perdure knows {newest}: "
            "start the Perdure that wrote it, or a newer one"
        )
    wanted = newest if most is None else most
    missing = [migration for migration in migrations() if version < migration.version <= wanted]
    if not missing:
        return False
    for statement in split_statements(missing[0].text, dialect.serial, dialect.binary):
        yield Do(statement)
    if missing[0].version in STEPS:
        yield from STEPS[missing[0].version]()
    yield Do("INSERT INTO schema_version (version) VALUES ($1)", missing[0].version)
    return True


def read_version() -> Operation[int]:
    """Return the schema version of the database."""
    (version,) = yield Row("SELECT coalesce(max(version), 0) FROM schema_version")
    return int(version)
