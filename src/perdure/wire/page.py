"""List pages: the query that asks for one and the envelope that it comes in."""

from __future__ import annotations

from typing import Literal

import msgspec


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which page. Cursors are ids of objects; `order` is by creation, newest first unless said otherwise."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of stored objects, their JSON untouched."""

    object: Literal["list"] = "list"
    data: list[msgspec.Raw]
    first_id: str | None
    last_id: str | None
    has_more: bool
