"""Looking many files up at once, for whoever names them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from perdure.errors import ApiError, NotFound
from perdure.store.bodies import read_file
from perdure.store.db import Operation, Rows

T = TypeVar("T")

AT_ONCE = 200
"""Rows that one statement asks for or writes."""


def no_file(file_id: str) -> ApiError:
    """Return the refusal of an unknown file; the text is recorded."""
    return NotFound(f"No such File object: {file_id}", param="id")


def pieces(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a long list into what one statement takes."""
    for first in range(0, len(values), AT_ONCE):
        yield values[first : first + AT_ONCE]


def placeholders(first: int, count: int) -> str:
    """Return `$2, $3, $4` for first=2 and count=3."""
    return ", ".join(f"${number}" for number in range(first, first + count))


def list_file_names(file_ids: Sequence[str], project_id: str, now: int) -> Operation[list[str]]:
    """Return the names of files of the project, in order. Raises NotFound for the first that is not there."""
    names: dict[str, str] = {}
    for piece in pieces(file_ids):
        rows = yield Rows(
            "SELECT id, body FROM files WHERE project_id = $1 AND (expires_at IS NULL OR expires_at > $2) "
            f"AND id IN ({placeholders(3, len(piece))})",
            project_id,
            now,
            *piece,
        )
        names |= {row[0]: read_file(row[1]).filename for row in rows}
    for file_id in file_ids:
        if file_id not in names:
            raise no_file(file_id)
    return [names[file_id] for file_id in file_ids]
