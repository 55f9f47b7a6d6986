"""Housekeeping: what time itself makes superfluous. Expired files and uploads go, and bytes that nothing names.

Rules. A blob is swept only when it is older than any write could still take to make its row. Several servers may do
this at once: whoever comes second finds nothing.
"""

from __future__ import annotations

import logging

from perdure.blobs import Blobs, FoundBlob, drop
from perdure.engine.rounds import Rounds
from perdure.ids import Clock
from perdure.store.db import Database
from perdure.store.files import delete_expired_files, find_orphans
from perdure.store.uploads import delete_ended_uploads, expire_uploads

log = logging.getLogger("perdure.engine")

EXPIRE_SECONDS = 60.0
SWEEP_SECONDS = 600.0
COMPLETION_SECONDS = 3600
"""How long after its time an upload keeps its parts: completing it may be under way."""
REMEMBERED_SECONDS = 7 * 86400
"""How long the row of an upload that ended is kept, to say so to whoever completes it again."""
LOOKED_UP_AT_ONCE = 100


class Housekeeping:
    """Rounds over files and uploads. `orphan_seconds` is the age at which orphans are swept; 0 sweeps none."""

    def __init__(self, database: Database, blobs: Blobs, clock: Clock, *, orphan_seconds: int) -> None:
        self._database = database
        self._blobs = blobs
        self._clock = clock
        self._orphan_seconds = orphan_seconds
        self._rounds = Rounds(clock, log, "housekeeping")

    def start(self) -> None:
        """Make rounds until `stop`."""
        self._rounds.begin((self.expire, EXPIRE_SECONDS))
        if self._orphan_seconds:
            self._rounds.begin((self.sweep, SWEEP_SECONDS))

    async def stop(self) -> None:
        """Make no more rounds."""
        await self._rounds.end()

    async def expire(self) -> None:
        """Delete files whose time is over, and end such uploads."""
        now = int(self._clock.now())
        while blobs := await self._database.run(delete_expired_files, now):
            await drop(self._blobs, blobs)
        ended = 1
        while ended:
            ended, blobs = await self._database.run(expire_uploads, now - COMPLETION_SECONDS)
            await drop(self._blobs, blobs)
        await self._database.run(delete_ended_uploads, now - REMEMBERED_SECONDS)

    async def sweep(self) -> int:
        """Delete old blobs that nothing names, and halves of blobs; return how many there were."""
        before = self._clock.now() - self._orphan_seconds
        swept = await self._blobs.sweep_halves(before)
        async for found in self._blobs.list_all():
            swept += await self._sweep_some(found, before)
        if swept:
            log.info("%d blobs belonged to no file and were deleted", swept)
        return swept

    async def _sweep_some(self, found: list[FoundBlob], before: float) -> int:
        old = [blob.name for blob in found if blob.written_at < before]
        swept = 0
        for begin in range(0, len(old), LOOKED_UP_AT_ONCE):
            orphans = await self._database.read(find_orphans, old[begin : begin + LOOKED_UP_AT_ONCE])
            await drop(self._blobs, orphans)
            swept += len(orphans)
        return swept
