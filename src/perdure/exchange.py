"""Export to and import from JSON Lines. An import may be repeated: what is there already is passed over.

The bytes of files lie beside the lines in a folder, each named by its file's id.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from perdure import __version__
from perdure.app import DATABASE_FILE, open_database, refuse_half_restored
from perdure.blobs import PIECE_BYTES, BlobGone, Blobs, drop, new_blob_name, open_blobs
from perdure.domain.imported import BadLine, Item, Unknown, in_order, read_line
from perdure.errors import OperatorError, Unavailable
from perdure.ids import Ids, RandomIds, SystemClock
from perdure.models.embedders import EmbedderRegistry
from perdure.settings import Settings
from perdure.store.db import Database
from perdure.store.exports import export_objects
from perdure.store.imports import Bytes, Means, find_unknown_files, import_items
from perdure.wire.exports import VERSION, ExportEnd, ExportHead
from perdure.wire.files import File

BATCH_ITEMS = 500  # in one transaction: a server that runs meanwhile waits for it
BATCH_BYTES = 4_000_000
DEFAULT_PROJECT_NAME = "default"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Exported(NamedTuple):
    """How many objects of each table an export has; `missing` are ids of files without bytes, just deleted, say."""

    counts: Counter[str]
    missing: list[str]


def export_lines(
    settings: Settings, target: IO[bytes], project: str | None, threads: Sequence[str], folder: Path | None = None
) -> Exported:
    """Write an export, with a `folder` also the files' bytes there. The server may run. Raises OperatorError."""
    refuse_half_restored(settings.data)
    if settings.database_url is None and not (settings.data / DATABASE_FILE).exists():
        raise OperatorError(f"there is nothing to export: {settings.data / DATABASE_FILE} does not exist; set --data")
    if folder is not None:
        _make_folder(folder)
    intake = _LineIntake(target)

    async def main() -> list[str]:
        database = await open_database(settings)
        try:
            await database.scan(export_objects, project, threads, intake, int(SystemClock().now()))
        finally:
            await database.close()
        intake.end()
        return [] if folder is None else await _export_bytes(settings, folder, intake.files)

    try:
        return Exported(intake.counts, asyncio.run(main()))
    except Unavailable as error:
        raise OperatorError(error.message) from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{folder} can not be made: {error.strerror or error}") from None


async def _export_bytes(settings: Settings, folder: Path, files: Iterable[tuple[str, int, str]]) -> list[str]:
    """Write the bytes of files into a folder; return the ids of those that are missing. What is there is kept."""
    blobs = open_blobs(settings)
    missing: list[str] = []
    try:
        for file_id, size_bytes, blob in files:
            path = folder / file_id
            if path.exists() and path.stat().st_size == size_bytes:
                continue  # files never change
            try:
                await _export_blob(blobs, blob, path)
            except BlobGone:
                missing.append(file_id)
    except OSError as error:
        raise OperatorError(f"{folder} can not be written: {error.strerror or error}") from None
    finally:
        await blobs.close()
    return missing


async def _export_blob(blobs: Blobs, blob: str, path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as target:
            async for piece in blobs.read(blob):
                target.write(piece)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _LineIntake:
    """Writes lines to a stream."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._begun = False
        self.counts: Counter[str] = Counter()
        self.files: list[tuple[str, int, str]] = []

    def begin(self) -> None:
        """Write the head. Raises OperatorError the second time: a stream can not go back."""
        if self._begun:
            raise OperatorError("the connection to the database was lost during the export: export again")
        self._begun = True
        now = int(SystemClock().now())
        self._write(msgspec.json.encode(ExportHead(version=VERSION, perdure_version=__version__, created_at=now)))

    def take(self, kind: str, line: str) -> None:
        """Write an object."""
        self._write(line.encode())
        self.counts[kind] += 1

    def take_file(self, file_id: str, size_bytes: int, blob: str) -> None:
        """Remember where bytes are."""
        self.files.append((file_id, size_bytes, blob))

    def end(self) -> None:
        """Write the last line."""
        self._write(msgspec.json.encode(ExportEnd(objects=self.counts.total())))
        self._target.flush()

    def _write(self, line: bytes) -> None:
        self._target.write(line + b"\n")


class Report:
    """What an import did."""

    def __init__(self) -> None:
        self.imported: Counter[str] = Counter()
        self.same = 0
        self.refused: set[str] = set()
        self.unknown: Counter[str] = Counter()
        self.cut_off = False

    @property
    def whole(self) -> bool:
        """Whether all that the file holds is in the store now."""
        return not (self.refused or self.unknown or self.cut_off)


def import_lines(
    settings: Settings,
    source: Iterable[bytes],
    project: str | None,
    say: Callable[[str], None],
    folder: Path | None = None,
) -> Report:
    """Store the objects of an export, or of any file with one of the API's objects on each line; the server may run.

    With `project`, all go into the project of that name, else into their own one, or the default. The bytes of files
    are taken from `folder`. `say` is told of each object that was refused. Raises OperatorError at a line that can not
    be read.
    """
    report = Report()

    async def main() -> None:
        embedder = EmbedderRegistry(settings, SystemClock()).default_name
        blobs = open_blobs(settings)
        database = await open_database(settings)
        taker = _Import(database, blobs, RandomIds(), folder, embedder)
        try:
            for read in _batches(_oldest_first(_items(source, report))):
                batch = [item._replace(project=project or item.project or DEFAULT_PROJECT_NAME) for item in read]
                await taker.take(batch, report, say)
        finally:
            await database.close()
            await blobs.close()

    try:
        asyncio.run(main())
    except Unavailable as error:
        raise OperatorError(f"{error.message} Import again: what is there by then is passed over") from None
    return report


class _Import:
    """Takes batches of objects into the store."""

    def __init__(self, database: Database, blobs: Blobs, ids: Ids, folder: Path | None, embedder: str) -> None:
        self._database = database
        self._blobs = blobs
        self._ids = ids
        self._folder = folder
        self._embedder = embedder

    async def take(self, batch: list[Item], report: Report, say: Callable[[str], None]) -> None:
        """Store a batch, the bytes of its files first."""
        found = await self._take_bytes(batch)
        projects = {str(item.project): self._ids.new("proj") for item in batch}
        means = Means(projects, found, self._embedder, int(SystemClock().now()))
        unused = {one.blob for one in found.values() if isinstance(one, Bytes)}
        for item, done, why in await self._database.run(import_items, batch, means, frozenset(report.refused)):
            if done == "imported":
                report.imported[item.thing.object] += 1
                unused -= {one.blob for one in [found.get(item.thing.id)] if isinstance(one, Bytes)}
            elif done == "same":
                report.same += 1
            else:
                report.refused.add(item.key)
                say(f"line {item.number}: {why}")
        await drop(self._blobs, sorted(unused))

    async def _take_bytes(self, batch: list[Item]) -> dict[str, Bytes | str]:
        """Store the bytes of those files that are not there yet."""
        given = {item.thing.id: item for item in batch if isinstance(item.thing, File)}
        unknown = await self._database.read(find_unknown_files, list(given)) if given else []
        return {file_id: await self._take_file(given[file_id]) for file_id in unknown}

    async def _take_file(self, item: Item) -> Bytes | str:
        """Return where the bytes of a file are now, or why they can not be had."""
        file = item.thing
        assert isinstance(file, File)  # noqa: S101  # for the type checker
        if self._folder is None:
            return f"the bytes of {file.id} are not in the export: name the folder that has them with --files"
        path = self._folder / file.id
        if not path.is_file():
            return f"the bytes of {file.id} are missing: there is no {path}"
        size = path.stat().st_size
        if size != file.bytes:
            return f"{path} has {size} bytes, but {file.id} has {file.bytes}"
        written = await self._blobs.write(new_blob_name(self._ids), _pieces(path))
        if written.bytes != size or item.sha256 not in {None, written.sha256}:
            await drop(self._blobs, [written.name])
            return f"{path} does not have the SHA-256 that the line has of {file.id}"
        return Bytes(written.name, written.sha256)


async def _pieces(path: Path) -> AsyncGenerator[bytes]:
    with path.open("rb") as source:
        while piece := source.read(PIECE_BYTES):
            yield piece


def _items(source: Iterable[bytes], report: Report) -> Iterator[Item]:
    """Read the lines; note in `report` what else was seen. Raises OperatorError."""
    open_exports = 0
    for number, raw in enumerate(source, 1):
        text = raw.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else raw.strip()
        if not text:
            continue
        try:
            found = read_line(number, text)
        except BadLine as error:
            raise OperatorError(
                f"line {number}: {error}. Mend it and import again: what is there by then is passed over"
            ) from None
        if isinstance(found, Item):
            yield found
        elif isinstance(found, Unknown):
            report.unknown[found.kind] += 1
        else:
            open_exports += 1 if isinstance(found, ExportHead) else -1
    report.cut_off = open_exports > 0


def _oldest_first(items: Iterable[Item]) -> Iterator[Item]:
    """Turn around what a program wrote down newest first, as the API lists it; an export keeps its order."""
    for (_, _, plain), together in groupby(items, lambda one: (type(one.thing), one.parent, one.project is None)):
        if plain:
            yield from in_order([*together])
        else:
            yield from together


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += item.weight + (item.thing.bytes if isinstance(item.thing, File) else 0)
        if len(batch) == BATCH_ITEMS or weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
