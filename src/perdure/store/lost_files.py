"""Files whose bytes a backup lacks, because they were deleted while it ran: they are deleted where it is restored."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from perdure.errors import NotFound
from perdure.store.db import Do, Operation, Row
from perdure.store.files import delete_file


def delete_files_of_blobs(blobs: Sequence[str], now: int) -> Operation[None]:
    """Delete the files and the parts of uploads whose bytes these are, as a client would have."""
    for blob in blobs:
        row = yield Row("SELECT id, project_id FROM files WHERE blob = $1", blob)
        if row is not None:
            with suppress(NotFound):  # it has expired, and the next server deletes it
                yield from delete_file(row[0], row[1], now)
        yield Do("DELETE FROM upload_parts WHERE blob = $1", blob)
