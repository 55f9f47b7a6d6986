"""`perdure keys`: make, list and revoke keys.

A key is printed once, when it is made; only its hash is kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.console import Console

from perdure.errors import OperatorError
from perdure.ids import RandomIds, SystemClock
from perdure.settings import Settings, read_settings
from perdure.store.db import Operation
from perdure.store.key_stamp import KeyStamp
from perdure.store.keys import KeyRow, hash_key, insert_key, list_keys, revoke_key

T = TypeVar("T")
P = ParamSpec("P")

keys_app = typer.Typer(help="Make, list and revoke keys.", no_args_is_help=True)
out = Console(soft_wrap=True, highlight=False)
Data = Annotated[Path | None, typer.Option("--data", help="The data folder.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="Postgres, if the server uses it.")]


def _run(settings: Settings, operation: Callable[P, Operation[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    from perdure.app import open_database

    async def main() -> T:
        database = await open_database(settings)
        try:
            return await database.run(operation, *args, **kwargs)
        finally:
            await database.close()
            if settings.database_url is None:  # a running server looks keys up anew
                stamp = KeyStamp.open(settings.data)
                stamp.change()
                stamp.close()

    return asyncio.run(main())


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    project: Annotated[str, typer.Option(help="The project that it opens; a new name makes a new one.")] = "default",
    data: Data = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a key and print it; it is not shown again. Objects of other projects are invisible to it."""
    ids, key = RandomIds(), f"sk-perdure-{secrets.token_urlsafe(32)}"
    row = KeyRow(
        id=ids.new("key"),
        project=project,
        name=name,
        redacted=f"{key[:14]}...{key[-4:]}",
        created_at=int(SystemClock().now()),
        revoked_at=None,
    )
    _run(read_settings(data=data, database_url=database_url), insert_key, row, hash_key(key), ids.new("proj"))
    print(key)  # noqa: T201  # alone on its line, so that a script can take it


@keys_app.command("list")
def list_all(data: Data = None, database_url: DatabaseUrl = None) -> None:
    """List all keys, without their secrets."""
    keys = _run(read_settings(data=data, database_url=database_url), list_keys)
    rows = [
        ("id", "project", "name", "key", "made", "revoked"),
        *((key.id, key.project, key.name, key.redacted, _day(key.created_at), _day(key.revoked_at)) for key in keys),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:  # plain lines, whole ids: they are copied into `perdure keys revoke`
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False)


@keys_app.command("revoke")
def revoke(key_id: str, data: Data = None, database_url: DatabaseUrl = None) -> None:
    """Revoke a key by its id (`perdure keys list`); running servers refuse it from now on."""
    now = int(SystemClock().now())
    if not _run(read_settings(data=data, database_url=database_url), revoke_key, key_id, now):
        raise OperatorError(f"no key in force has the id '{key_id}': `perdure keys list` shows them")
    out.print(f"revoked {key_id}")


def _day(seconds: int | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
