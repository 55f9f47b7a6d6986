"""Backup and restore of all that a server keeps: the database, and the folder with the files' bytes.

Order of a backup: files, then the database in one snapshot, then the files that came meanwhile. A file's bytes are
written before its row and never changed, so whatever the snapshot names is in the archive, unless it was deleted while
the backup ran. Order of a restore: check all of the archive, build everything aside, then put it in place by renaming.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from perdure import __version__
from perdure.app import DATABASE_FILE, RESTORING_FILE, make_data_folder, own_data_folder, refuse_half_restored
from perdure.archive import (
    FORMAT,
    FORMAT_VERSION,
    TABLES,
    ArchiveReader,
    ArchiveWriter,
    Manifest,
    TableNote,
    open_archive,
    sync_folder,
    whole_file,
)
from perdure.errors import OperatorError
from perdure.ids import SystemClock
from perdure.settings import Settings
from perdure.store import postgres, sqlite
from perdure.store.db import Database, Dialect
from perdure.store.dump import Table, dump_tables, load_tables
from perdure.store.migrations import migrations
from perdure.store.postgres import PostgresDatabase
from perdure.store.sqlite import SqliteDatabase

FILES_FOLDER = "files"
STAGING_FOLDER = "restore.tmp"
_encoder = msgspec.json.Encoder()
_read_row = msgspec.json.Decoder(list[Any]).decode


class Restored(NamedTuple):
    """What a restore did. `aside` says where that is kept which was there before."""

    manifest: Manifest
    aside: str | None


def make_backup(settings: Settings, path: Path, *, force: bool) -> Manifest:
    """Write all that the server of these settings keeps into one file; the server may run. Raises OperatorError."""
    refuse_half_restored(settings.data)
    if settings.database_url is None and not (settings.data / DATABASE_FILE).exists():
        raise OperatorError(f"there is nothing to back up: {settings.data / DATABASE_FILE} does not exist; set --data")
    with whole_file(path, force=force) as target, closing(ArchiveWriter(target)) as writer:
        files = settings.data / FILES_FOLDER
        writer.add_folder(files)
        intake = _ArchiveIntake(writer)
        asyncio.run(_dump(settings, intake))
        writer.add_folder(files)
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            schema_version=intake.version,
            perdure_version=__version__,
            created_at=int(SystemClock().now()),
            tables=intake.tables,
            members=writer.members,
        )
        writer.add_manifest(manifest)
    return manifest


async def _dump(settings: Settings, intake: _ArchiveIntake) -> None:
    database, dialect = await _open_as_it_is(settings, settings.data / DATABASE_FILE)
    try:
        await database.scan(dump_tables, dialect, intake)
    finally:
        intake.end_table()
        await database.close()


async def _open_as_it_is(settings: Settings, file: Path) -> tuple[Database, Dialect]:
    """Open without migrating: an older server may be at work on it."""
    if settings.database_url is not None:
        return await PostgresDatabase.open(settings.database_url, newest=0), postgres.DIALECT
    return await SqliteDatabase.open(file, newest=0), sqlite.DIALECT


class _ArchiveIntake:
    """Takes the tables of a dump into an archive."""

    def __init__(self, writer: ArchiveWriter) -> None:
        self._writer = writer
        self._open: ExitStack = ExitStack()
        self._name = ""
        self._target: Any = None
        self.version = 0
        self.tables: dict[str, TableNote] = {}

    def begin(self, version: int) -> None:
        """Take the version. Raises OperatorError where there is nothing, or a second time: a zip can not go back."""
        if self.version:
            raise OperatorError("the connection to the database was lost during the backup: back up again")
        if not version:
            raise OperatorError("there is nothing to back up: the database has no tables of Perdure")
        self.version = version

    def begin_table(self, table: Table) -> None:
        """Begin a member."""
        self.end_table()
        self._name = table.name
        self.tables[table.name] = TableNote(list(table.columns), 0)
        self._target = self._open.enter_context(self._writer.member(f"{TABLES}{table.name}.jsonl"))

    def end_table(self) -> None:
        """End the member that is open, if any."""
        self._open.close()

    def take(self, rows: Sequence[Sequence[Any]]) -> int:
        """Write rows."""
        piece = b"".join(_encoder.encode(list(row)) + b"\n" for row in rows)
        self._target.write(piece)
        note = self.tables[self._name]
        self.tables[self._name] = TableNote(note.columns, note.rows + len(rows))
        return len(piece)


def restore_backup(settings: Settings, path: Path, *, force: bool) -> Restored:
    """Put a backup where the settings say, migrated to this program's schema. Raises OperatorError.

    What is there already is refused; with `force` it is kept under another name.
    """
    with open_archive(path) as archive:
        newest = migrations()[-1].version
        if not 0 < archive.manifest.schema_version <= newest:
            raise OperatorError(
                f"{path} has schema version {archive.manifest.schema_version}, this Perdure knows {newest}: restore it "
                f"with the Perdure that wrote it ({archive.manifest.perdure_version}), or a newer one"
            )
        with _folder_of(settings):
            try:
                return _restore(settings, archive, force=force)
            except OSError as error:
                raise OperatorError(f"{settings.data} can not be written: {error.strerror or error}") from None
            finally:
                shutil.rmtree(settings.data / STAGING_FOLDER, ignore_errors=True)


@contextmanager
def _folder_of(settings: Settings) -> Iterator[None]:
    """Hold the data folder, so that no server starts on it; on Postgres the database itself is asked."""
    if settings.database_url is not None:
        make_data_folder(settings.data)
        yield
        return
    lock = own_data_folder(settings.data)
    try:
        yield
    finally:
        lock.release()


def _old_parts(settings: Settings) -> list[Path]:
    """Return what lies where the backup's parts belong."""
    names = [FILES_FOLDER]
    if settings.database_url is None:
        names = [DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm", FILES_FOLDER]
    return [settings.data / name for name in names if (settings.data / name).exists()]


def _restore(settings: Settings, archive: ArchiveReader, *, force: bool) -> Restored:
    old = _old_parts(settings)
    if old and not force:
        raise OperatorError(
            f"{settings.data} is not empty (it has {old[0].name}): restore into another folder, "
            "or let --force move what is there out of the way"
        )
    name = time.strftime("before-restore-%Y%m%d-%H%M%S")
    staging = settings.data / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    if archive.files:
        archive.extract_files(staging / FILES_FOLDER)
    schema = asyncio.run(_load(settings, archive, name.replace("-", "_") if force else None))
    sync_folder(staging)
    _put_in_place(settings.data, staging, old, settings.data / name)
    aside = [str(settings.data / name)] if old else []
    return Restored(archive.manifest, " and ".join(aside + ([f"the schema {schema}"] if schema else [])) or None)


async def _load(settings: Settings, archive: ArchiveReader, aside: str | None) -> str | None:
    database, dialect = await _open_as_it_is(settings, settings.data / STAGING_FOLDER / DATABASE_FILE)

    def rows_of(table: str) -> tuple[Sequence[str], Iterator[list[Any]]]:
        note = archive.manifest.tables.get(table)
        if note is None:
            raise OperatorError(f"the backup lacks the table {table}: it is damaged")
        return note.columns, _rows(archive.open(f"{TABLES}{table}.jsonl"))

    try:
        return await database.run(load_tables, dialect, archive.manifest.schema_version, rows_of, aside)
    finally:
        await database.close()


def _rows(source: AbstractContextManager[Any]) -> Iterator[list[Any]]:
    with source as lines:
        for line in lines:
            yield _read_row(line)


def _put_in_place(data: Path, staging: Path, old: list[Path], aside: Path) -> None:
    """Exchange what was there for what was built. A break in between is seen by whoever opens the folder next."""
    marker = data / RESTORING_FILE
    marker.touch(mode=0o600)
    sync_folder(data)
    if old:
        aside.mkdir(mode=0o700)
    for path in old:
        path.rename(aside / path.name)
    for path in staging.iterdir():
        path.rename(data / path.name)
    sync_folder(data)
    marker.unlink()
    sync_folder(data)
