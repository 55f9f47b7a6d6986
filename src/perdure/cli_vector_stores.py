"""`perdure vector-stores`: fill a vector store of a running server from a folder, look into it, rebuild it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from perdure.errors import OperatorError

if TYPE_CHECKING:
    from perdure.folder import Plan, Sent
    from perdure.remote import Json, Server

POLL_SECONDS = 0.3
DEFAULT_URL = "http://127.0.0.1:8000/v1"

vector_stores_app = typer.Typer(
    help="Fill, search and rebuild vector stores of a running server.", no_args_is_help=True
)
out = Console(soft_wrap=True, highlight=False)
Url = Annotated[str, typer.Option("--url", envvar="OPENAI_BASE_URL", help="The server's base URL, ending in /v1.")]
Key = Annotated[str, typer.Option("--key", envvar="OPENAI_API_KEY", help="A key of the server.")]
Name = Annotated[str, typer.Argument(help="The name of the vector store.")]


@contextmanager
def _server(url: str, key: str) -> Iterator[Server]:
    from perdure.remote import Server

    with Server(url, key) as server:
        yield server


def _get_store(server: Server, name: str) -> Json:
    from perdure.folder import find_store

    store = find_store(server, name)
    if store is None:
        raise OperatorError(f"there is no vector store '{name}': `perdure vector-stores list` shows them")
    return store


@vector_stores_app.command("add")
def add(
    name: Name,
    folder: Annotated[Path, typer.Argument(help="The folder; its files and those of folders in it are added.")],
    url: Url = DEFAULT_URL,
    key: Key = "perdure",
) -> None:
    """Add a folder to a vector store, made if there is none of that name. Do it again to go on, or after changes."""
    from perdure.folder import documents_in, failures_of, find_store, make_plan

    with _server(url, key) as server:
        documents = list(documents_in(folder))
        store = find_store(server, name) or server.post("/vector_stores", {"name": name})
        plan = make_plan(server, store["id"], documents)
        _fill(server, store["id"], plan)
        failures = list(failures_of(server, store["id"]))
    for path, reason in failures:
        out.print(f"failed  {path}: {reason}", markup=False)
    added = len(plan.upload) + len(plan.again)
    out.print(f"{name}: {added} files read, {plan.there} were there already, {len(failures)} failed ({store['id']})")
    if failures:
        raise typer.Exit(1)


def _fill(server: Server, store_id: str, plan: Plan) -> None:
    """Upload and wait until all is read, both with a bar."""
    from perdure.folder import counts_of, send

    sent: list[Sent] = []
    files, size = len(plan.upload) + len(plan.again), sum(one.bytes for one in plan.upload)
    with _progress() as progress:
        uploading = progress.add_task("upload", total=size, visible=bool(size), unit="bytes")
        reading = progress.add_task("read", total=files, visible=bool(files))

        def look() -> int:
            counts = counts_of(server, store_id, sent)
            left = counts.get("in_progress", 0)
            progress.update(reading, completed=counts.get("total", 0) - left)
            return left

        for one in send(server, store_id, plan, lambda document: progress.advance(uploading, document.bytes)):
            sent.append(one)
            look()
        while sent and look():
            time.sleep(POLL_SECONDS)


def _progress() -> Progress:
    """Return the bars, which go to stderr so that stdout is left to the result."""
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        _Amount(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Amount(MofNCompleteColumn):
    """Megabytes for the upload, numbers of files else."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = DownloadColumn()

    def render(self, task):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  # rich's own
        """Return what one bar shows."""
        return self._bytes.render(task) if task.fields.get("unit") == "bytes" else super().render(task)


@vector_stores_app.command("list")
def list_all(url: Url = DEFAULT_URL, key: Key = "perdure") -> None:
    """List all vector stores."""
    with _server(url, key) as server:
        stores = list(server.list_all("/vector_stores"))
    rows = [("id", "name", "status", "files", "failed", "MB", "expires"), *map(_row, stores)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        out.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), markup=False)


def _row(store: Json) -> tuple[str, ...]:
    counts, expires = store["file_counts"], store["expires_at"]
    return (
        store["id"],
        store["name"] or "-",
        store["status"],
        str(counts["total"]),
        str(counts["failed"]),
        f"{store['usage_bytes'] / 1e6:.1f}",
        datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%d %H:%M") if expires else "never",
    )


@vector_stores_app.command("search")
def search(
    name: Name,
    question: Annotated[str, typer.Argument(help="What to look for, in words.")],
    results: Annotated[int, typer.Option("--results", min=1, max=50, help="How many passages at most.")] = 5,
    url: Url = DEFAULT_URL,
    key: Key = "perdure",
) -> None:
    """Search a vector store and print what was found, best first."""
    with _server(url, key) as server:
        store = _get_store(server, name)
        body = {"query": question, "max_num_results": results}
        found = server.post(f"/vector_stores/{store['id']}/search", body)["data"]
    for one in found:
        text = "\n".join(part["text"] for part in one["content"])
        out.print(f"{one['score']:.3f}  {one['attributes'].get('path', one['filename'])}", markup=False)
        out.print(f"{_indented(text)}\n", markup=False)
    if not found:
        out.print("nothing was found")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines())


@vector_stores_app.command("rebuild")
def rebuild(name: Name, url: Url = DEFAULT_URL, key: Key = "perdure") -> None:
    """Read all files of a vector store again, for the embedding model that the server uses now."""
    with _server(url, key) as server:
        store = server.post(f"/vector_stores/{_get_store(server, name)['id']}/rebuild", {})
        with _progress() as progress:
            reading = progress.add_task("read", total=store["file_counts"]["in_progress"])
            while left := store["file_counts"]["in_progress"]:
                progress.update(reading, completed=max(0, progress.tasks[0].total - left))
                time.sleep(POLL_SECONDS)
                store = server.get(f"/vector_stores/{store['id']}")
            progress.update(reading, completed=progress.tasks[0].total)
    out.print(f"{name}: {store['file_counts']['completed']} files, {store['file_counts']['failed']} failed")
