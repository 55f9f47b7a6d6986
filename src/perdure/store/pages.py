"""List pages out of any table that has `seq`, `id` and `body`.

Order is by `seq`, which the parent's lock hands out, so that objects of one second keep their order and nobody steps
over one; messages that wait in a line come last (`keys`). A cursor whose object was deleted keeps its place by its
tombstone: programs delete while they page.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.errors import InvalidRequest
from perdure.store.db import Do, Operation, Row, Rows, Value
from perdure.wire.page import Page, PageQuery

Filter = tuple[str, Sequence[Value]]
"""A condition, and the values of the `?` in it."""


def list_page(
    table: str,
    parent: tuple[str, str],
    query: PageQuery,
    *,
    filters: Sequence[Filter] = (),
    keys: tuple[str, ...] = ("seq",),
) -> Operation[Page]:
    """Return a page of the rows of `table` whose column `parent[0]` is `parent[1]`. Raises InvalidRequest."""
    column, owner = parent
    args: list[Value] = [owner]
    where = [f"{column} = $1"]
    for condition, values in filters:
        for value in values:
            args.append(value)
            condition = condition.replace("?", f"${len(args)}", 1)  # noqa: PLW2901  # one after the other
        where.append(condition)
    # With `before` alone the page that ends at the cursor is wanted: walk backwards from it.
    backwards = query.before is not None and query.after is None
    ascending = (query.order == "asc") != backwards
    begins: list[list[str]] = [[]]
    for name, cursor, comparison in (("after", query.after, ">"), ("before", query.before, "<")):
        if cursor is not None:
            args += yield from _place(table, parent, keys, cursor, name)
            forward = (comparison == ">") == (query.order == "asc")
            numbers = [f"${number}" for number in range(len(args) - len(keys) + 1, len(args) + 1)]
            if name == "after" or backwards:
                begins = _beyond(keys, numbers, ">" if forward else "<")
            else:
                where.append(f"({', '.join(keys)}) {'>' if forward else '<'} ({', '.join(numbers)})")
    args.append(query.limit + 1)
    order = f"ORDER BY {', '.join(key + (' ASC' if ascending else ' DESC') for key in keys)} LIMIT ${len(args)}"
    select = f"SELECT id, body, {', '.join(keys)} FROM {table} WHERE "
    rows = yield Rows(_joined([f"{select}{' AND '.join([*where, *begin])} {order}" for begin in begins], order), *args)
    return _page([(row[0], row[1]) for row in rows], query.limit, backwards=backwards)


def _beyond(keys: tuple[str, ...], numbers: list[str], sign: str) -> list[list[str]]:
    """Return what stands beyond a place as lists of conditions that have no row in common, nearest first.

    One comparison of rows would say the same, but of `(waits, seq) > (0, 9)` SQLite takes only `waits >= 0` to the
    index: each page would read the whole thread.
    """
    return [
        [*(f"{keys[same]} = {numbers[same]}" for same in range(last)), f"{keys[last]} {sign} {numbers[last]}"]
        for last in reversed(range(len(keys)))
    ]


def _joined(parts: list[str], order: str) -> str:
    if len(parts) == 1:
        return parts[0]
    joined = " UNION ALL ".join(f"SELECT * FROM ({part}) AS part{number}" for number, part in enumerate(parts))
    return f"SELECT * FROM ({joined}) AS parts {order}"


def _page(rows: list[tuple[str, str]], limit: int, *, backwards: bool) -> Page:
    shown = rows[:limit]
    if backwards:
        shown.reverse()
    return Page(
        data=[msgspec.Raw(body.encode()) for _, body in shown],
        first_id=shown[0][0] if shown else None,
        last_id=shown[-1][0] if shown else None,
        has_more=len(rows) > limit,
    )


def _place(
    table: str, parent: tuple[str, str], keys: tuple[str, ...], cursor: str, param: str
) -> Operation[list[Value]]:
    column, owner = parent
    row = yield Row(f"SELECT {', '.join(keys)} FROM {table} WHERE id = $1 AND {column} = $2", cursor, owner)
    if row is not None:
        return list(row)
    row = yield Row(
        "SELECT seq FROM tombstones WHERE id IN ($1, $2) AND parent = $3", cursor, within(owner, cursor), owner
    )
    if row is None:
        raise InvalidRequest(f"No object found with id '{cursor}' to page from.", param=param, code="invalid_value")
    return [*(0 for _ in keys[1:]), int(row[0])]  # what is deleted does not wait


def within(parent: str, object_id: str) -> str:
    """Return the id of a tombstone in one of several lists that the object stands in."""
    return f"{parent}/{object_id}"


def insert_tombstone(object_id: str, seq: int, parent: str, now: int) -> Operation[None]:
    """Remember where a deleted object stood in its list; if it comes back and is deleted again, where it stood last."""
    yield Do(
        "INSERT INTO tombstones (id, seq, parent, deleted_at) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, deleted_at = excluded.deleted_at",
        object_id,
        seq,
        parent,
        now,
    )
