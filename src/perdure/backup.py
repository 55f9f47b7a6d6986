"""Backup and restore of all that a server keeps: the database, and the bytes of files, in a folder or a bucket.

Order of a backup: the database in one snapshot, then the blobs that its rows name. Those are never changed, so each is
still there unless its file was deleted meanwhile: then the file is deleted from what is restored, too. Order of a
restore: check all of the archive, build everything aside, then put it in place by renaming, or by the commit of a
transaction.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from perdure import __version__
from perdure.app import DATABASE_FILE, RESTORING_FILE, make_data_folder, own_data_folder, refuse_half_restored
from perdure.archive import (
    FORMAT,
    FORMAT_VERSION,
    PIECE_BYTES,
    TABLES,
    ArchiveReader,
    ArchiveWriter,
    Manifest,
    TableNote,
    blob_member,
    open_archive,
    whole_file,
)
from perdure.blobs import FOLDER, BlobGone, Blobs, LocalBlobs, open_blobs, sync_folder
from perdure.errors import OperatorError, Unavailable
from perdure.ids import SystemClock
from perdure.settings import Settings
from perdure.store import postgres, sqlite
from perdure.store.db import Database, Dialect, Operation
from perdure.store.dump import RowsOf, Table, dump_tables, load_tables
from perdure.store.files import find_orphans
from perdure.store.lost_files import delete_files_of_blobs
from perdure.store.migrations import migrations
from perdure.store.postgres import PostgresDatabase
from perdure.store.sqlite import SqliteDatabase

STAGING_FOLDER = "restore.tmp"
BLOB_COLUMN = "blob"
"""Columns of that name say where bytes are, in whichever table."""
BLOBS_AT_ONCE = 8
LOOKED_UP_AT_ONCE = 100
_encoder = msgspec.json.Encoder()
_read_row = msgspec.json.Decoder(list[Any]).decode


class Restored(NamedTuple):
    """What a restore did. `aside` says where that is kept which was there before.

    `unnamed` counts blobs that were in the bucket before and that no row names now.
    """

    manifest: Manifest
    aside: str | None
    unnamed: int


def make_backup(settings: Settings, path: Path, *, force: bool) -> Manifest:
    """Write all that the server of these settings keeps into one file; the server may run. Raises OperatorError."""
    refuse_half_restored(settings.data)
    if settings.database_url is None and not (settings.data / DATABASE_FILE).exists():
        raise OperatorError(f"there is nothing to back up: {settings.data / DATABASE_FILE} does not exist; set --data")
    with whole_file(path, force=force) as target, closing(ArchiveWriter(target)) as writer:
        intake = _ArchiveIntake(writer)
        try:
            gone, lost = asyncio.run(_save(settings, writer, intake))
        except Unavailable as error:
            raise OperatorError(error.message) from None
        manifest = Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            schema_version=intake.version,
            perdure_version=__version__,
            created_at=int(SystemClock().now()),
            tables=intake.tables,
            members=writer.members,
            gone=gone,
            lost=lost,
        )
        writer.add_manifest(manifest)
    return manifest


async def _save(settings: Settings, writer: ArchiveWriter, intake: _ArchiveIntake) -> tuple[list[str], list[str]]:
    """Write tables and blobs; return the blobs that are gone with their files, and those that are lost."""
    blobs = open_blobs(settings)
    database, dialect = await _open_as_it_is(settings, settings.data / DATABASE_FILE)
    try:
        try:
            await database.scan(dump_tables, dialect, intake)
        finally:
            intake.end_table()
        missing = await _save_blobs(writer, blobs, list(intake.blobs))
        gone: list[str] = []
        for begin in range(0, len(missing), LOOKED_UP_AT_ONCE):
            gone += await database.read(find_orphans, missing[begin : begin + LOOKED_UP_AT_ONCE])
        return gone, sorted(set(missing) - set(gone))
    finally:
        await database.close()
        await blobs.close()


async def _save_blobs(writer: ArchiveWriter, blobs: Blobs, names: list[str]) -> list[str]:
    """Write blobs into the archive; return those that are not there.

    The first pieces of some are fetched together: most files are small, and a bucket takes its time to begin.
    """
    missing: list[str] = []
    for begin in range(0, len(names), BLOBS_AT_ONCE):
        some = names[begin : begin + BLOBS_AT_ONCE]
        for name, opened in zip(some, await asyncio.gather(*(_begun(blobs, name) for name in some)), strict=True):
            if opened is None:
                missing.append(name)
                continue
            first, rest = opened
            with writer.member(blob_member(name)) as target:
                target.write(first)
                async for piece in rest:
                    target.write(piece)
    return missing


async def _begun(blobs: Blobs, name: str) -> tuple[bytes, AsyncGenerator[bytes]] | None:
    """Begin to read a blob; None if there is none."""
    pieces = blobs.read(name)
    try:
        return await anext(pieces, b""), pieces
    except BlobGone:
        return None


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
        self._blob_place: int | None = None
        self.version = 0
        self.tables: dict[str, TableNote] = {}
        self.blobs: dict[str, None] = {}
        """The blobs that rows name, each once."""

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
        self._blob_place = table.columns.index(BLOB_COLUMN) if BLOB_COLUMN in table.columns else None
        self._target = self._open.enter_context(self._writer.member(f"{TABLES}{table.name}.jsonl"))

    def end_table(self) -> None:
        """End the member that is open, if any."""
        self._open.close()

    def take(self, rows: Sequence[Sequence[Any]]) -> int:
        """Write rows."""
        piece = b"".join(_encoder.encode(list(row)) + b"\n" for row in rows)
        self._target.write(piece)
        if self._blob_place is not None:
            self.blobs |= dict.fromkeys(str(row[self._blob_place]) for row in rows)
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
            except Unavailable as error:
                raise OperatorError(error.message) from None
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
    names = [FOLDER] if settings.blobs_url is None else []
    if settings.database_url is None:
        names += [DATABASE_FILE, f"{DATABASE_FILE}-wal", f"{DATABASE_FILE}-shm"]
    return [settings.data / name for name in names if (settings.data / name).exists()]


def _restore(settings: Settings, archive: ArchiveReader, *, force: bool) -> Restored:
    old = _old_parts(settings)
    if old and not force:
        raise OperatorError(
            f"{settings.data} is not empty (it has {old[0].name}): restore into another folder, "
            "or let --force move what is there out of the way"
        )
    name = _free_name(settings.data)
    staging = settings.data / STAGING_FOLDER
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    unnamed = asyncio.run(_restore_blobs(settings, archive, staging, force=force))
    # A load into Postgres is final when it is committed; what is built aside is not there before it is renamed.
    commits = settings.database_url is not None
    with ExitStack() as marks:
        if commits and settings.blobs_url is None:
            marks.enter_context(_marked(settings.data))
        schema = asyncio.run(_load(settings, archive, name.replace("-", "_") if force else None))
        sync_folder(staging)
        if not commits:
            marks.enter_context(_marked(settings.data))
        _put_in_place(settings.data, staging, old, settings.data / name)
    aside = [str(settings.data / name)] if old else []
    kept = " and ".join(aside + ([f"the schema {schema}"] if schema else []))
    return Restored(archive.manifest, kept or None, unnamed)


def _free_name(data: Path) -> str:
    """Return a name for what is set aside."""
    name = plain = time.strftime("before-restore-%Y%m%d-%H%M%S")
    for number in itertools.count(2):
        if not (data / name).exists():
            break
        name = f"{plain}-{number}"
    return name


async def _restore_blobs(settings: Settings, archive: ArchiveReader, staging: Path, *, force: bool) -> int:
    """Write all blobs, aside or into the bucket; return how many others the bucket has. Raises OperatorError.

    Those that are in the bucket are not written again: a blob is there whole, and never changes.
    """
    left = archive.blobs
    blobs: Blobs = LocalBlobs(staging / FOLDER) if settings.blobs_url is None else open_blobs(settings)
    try:
        others = 0
        async for found in blobs.list_all():
            others += sum(left.pop(one.name, None) is None for one in found)
        if others and not force:
            raise OperatorError(
                f"{settings.blobs_url} is not empty: it has {others} blobs that are not in the backup. Name another "
                "bucket or prefix, or let --force restore beside them"
            )
        waiting = iter(left.items())
        await asyncio.gather(*(_write_blobs(archive, blobs, waiting) for _ in range(BLOBS_AT_ONCE)))
        return others
    finally:
        await blobs.close()


async def _write_blobs(archive: ArchiveReader, blobs: Blobs, waiting: Iterator[tuple[str, str]]) -> None:
    """Write what waits, side by side with others that do."""
    for name, member in waiting:
        with archive.open(member) as source:
            await blobs.write(name, _pieces(source))


async def _pieces(source: IO[bytes]) -> AsyncGenerator[bytes]:
    while piece := source.read(PIECE_BYTES):
        yield piece


async def _load(settings: Settings, archive: ArchiveReader, aside: str | None) -> str | None:
    database, dialect = await _open_as_it_is(settings, settings.data / STAGING_FOLDER / DATABASE_FILE)

    def rows_of(table: str) -> tuple[Sequence[str], Iterator[list[Any]]]:
        note = archive.manifest.tables.get(table)
        if note is None:
            raise OperatorError(f"the backup lacks the table {table}: it is damaged")
        return note.columns, _rows(archive.open(f"{TABLES}{table}.jsonl"))

    try:
        return await database.run(_load_all, dialect, archive.manifest, rows_of, aside)
    finally:
        await database.close()


def _load_all(dialect: Dialect, manifest: Manifest, rows_of: RowsOf, aside: str | None) -> Operation[str | None]:
    used = yield from load_tables(dialect, manifest.schema_version, rows_of, aside)
    yield from delete_files_of_blobs(manifest.gone, manifest.created_at)
    return used


def _rows(source: AbstractContextManager[Any]) -> Iterator[list[Any]]:
    with source as lines:
        for line in lines:
            yield _read_row(line)


@contextmanager
def _marked(data: Path) -> Iterator[None]:
    """Leave a marker in the folder while it is changed: after a break, whoever opens the folder next refuses.

    An OperatorError is raised before anything is changed.
    """
    marker = data / RESTORING_FILE
    before = marker.exists()
    marker.touch(mode=0o600)
    sync_folder(data)
    try:
        yield
    except OperatorError:
        if not before:
            marker.unlink()
        raise
    marker.unlink()
    sync_folder(data)


def _put_in_place(data: Path, staging: Path, old: list[Path], aside: Path) -> None:
    """Exchange what was there for what was built."""
    if old:
        aside.mkdir(mode=0o700)
    for path in old:
        path.rename(aside / path.name)
    for path in staging.iterdir():
        path.rename(data / path.name)
    sync_folder(data)
