"""Export to and import from JSON Lines. An import may be repeated: what is there already is passed over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import IO

import msgspec

from perdure import __version__
from perdure.app import DATABASE_FILE, open_database, refuse_half_restored
from perdure.domain.imported import BadLine, Item, Unknown, in_order, read_line
from perdure.errors import OperatorError
from perdure.ids import RandomIds, SystemClock
from perdure.settings import Settings
from perdure.store.exports import export_objects
from perdure.store.imports import import_items
from perdure.wire.exports import VERSION, ExportEnd, ExportHead

BATCH_ITEMS = 500  # in one transaction: a server that runs meanwhile waits for it
BATCH_BYTES = 4_000_000
DEFAULT_PROJECT_NAME = "default"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def export_lines(settings: Settings, target: IO[bytes], project: str | None, threads: Sequence[str]) -> Counter[str]:
    """Write an export; return how many objects of each table it has. The server may run. Raises OperatorError."""
    refuse_half_restored(settings.data)
    if settings.database_url is None and not (settings.data / DATABASE_FILE).exists():
        raise OperatorError(f"there is nothing to export: {settings.data / DATABASE_FILE} does not exist; set --data")
    intake = _LineIntake(target)

    async def main() -> None:
        database = await open_database(settings)
        try:
            await database.scan(export_objects, project, threads, intake)
        finally:
            await database.close()

    asyncio.run(main())
    intake.end()
    return intake.counts


class _LineIntake:
    """Writes lines to a stream."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._begun = False
        self.counts: Counter[str] = Counter()

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
    settings: Settings, source: Iterable[bytes], project: str | None, say: Callable[[str], None]
) -> Report:
    """Store the objects of an export, or of any file with one of the API's objects on each line; the server may run.

    With `project`, all go into the project of that name, else into their own one, or the default. `say` is told of each
    object that was refused. Raises OperatorError at a line that can not be read.
    """
    report = Report()

    async def main() -> None:
        database = await open_database(settings)
        ids, clock = RandomIds(), SystemClock()
        try:
            for read in _batches(_oldest_first(_items(source, report))):
                batch = [item._replace(project=project or item.project or DEFAULT_PROJECT_NAME) for item in read]
                names = {str(item.project): ids.new("proj") for item in batch}
                refused = frozenset(report.refused)
                for item, done, why in await database.run(import_items, batch, names, int(clock.now()), refused):
                    if done == "imported":
                        report.imported[item.thing.object] += 1
                    elif done == "same":
                        report.same += 1
                    else:
                        report.refused.add(item.thing.id)
                        say(f"line {item.number}: {why}")
        finally:
            await database.close()

    asyncio.run(main())
    return report


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
        weight += item.weight
        if len(batch) == BATCH_ITEMS or weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
