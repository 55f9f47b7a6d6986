"""A folder of documents on its way into a vector store of a running server.

Rules. What a store holds already is known by two attributes of its files, `path` and `sha256`: whatever breaks off is
taken up again by doing the same once more. A file that changed takes the place of its old self once it is in the store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from perdure.errors import OperatorError
from perdure.remote import Json, Server

UPLOADS_AT_ONCE = 4
GROUP = 16
"""Files that become one batch: what an interruption loses is at most so many uploads."""
MOST_PATH = 512
"""Characters of an attribute."""
PIECE_BYTES = 1 << 20


class Document(NamedTuple):
    """A file of the folder. `path` names it in the store: the folder's name and the way from there."""

    source: Path
    path: str
    sha256: str
    bytes: int


class Plan(NamedTuple):
    """What is to be done, and how much of the folder is in the store already."""

    upload: list[Document]
    again: list[Json]
    """Files of the store, unchanged, that failed or were cancelled: they are read again without an upload."""
    replaced: dict[str, str]
    """The id of the file of the store that a changed document takes the place of, by its path."""
    there: int


class Sent(NamedTuple):
    """A batch on its way."""

    batch_id: str
    files: int


def find_store(server: Server, name: str) -> Json | None:
    """Return the newest vector store of that name that has not expired."""
    found = [one for one in server.list_all("/vector_stores") if one["name"] == name and one["status"] != "expired"]
    return found[-1] if found else None


def documents_in(folder: Path) -> Iterator[Document]:
    """Give the files of a folder in order, hidden and empty ones left out. Raises OperatorError."""
    if not folder.is_dir():
        raise OperatorError(f"there is no folder {folder}")
    top = folder.resolve()
    for parent, folders, names in os.walk(top):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in sorted(names):
            source = Path(parent) / name
            if not name.startswith(".") and source.is_file() and source.stat().st_size:
                path = f"{top.name}/{source.relative_to(top).as_posix()}"
                yield Document(source, path[-MOST_PATH:], _sha256(source), source.stat().st_size)


def _sha256(source: Path) -> str:
    digest = hashlib.sha256()
    try:
        with source.open("rb") as content:
            while piece := content.read(PIECE_BYTES):
                digest.update(piece)
    except OSError as error:
        raise OperatorError(f"{source} can not be read: {error.strerror}") from None
    return digest.hexdigest()


def make_plan(server: Server, store_id: str, documents: Sequence[Document]) -> Plan:
    """Compare a folder with what is in the store. Raises OperatorError."""
    stored = {one["attributes"].get("path"): one for one in server.list_all(f"/vector_stores/{store_id}/files")}
    plan = Plan([], [], {}, 0)
    there = 0
    for document in documents:
        old = stored.get(document.path)
        if old is None or old["attributes"].get("sha256") != document.sha256:
            plan.upload.append(document)
            if old is not None:
                plan.replaced[document.path] = old["id"]
        elif old["status"] in {"failed", "cancelled"}:
            plan.again.append(old)
        else:
            there += 1
    return plan._replace(there=there)


def send(server: Server, store_id: str, plan: Plan, uploaded: Callable[[Document], None]) -> Iterator[Sent]:
    """Upload the documents and put them into the store, a batch at a time; `uploaded` hears of each upload.

    A batch that was begun when this is interrupted is still put in. Raises OperatorError.
    """
    if plan.again:
        yield _put_in(server, store_id, [{"file_id": one["id"], "attributes": one["attributes"]} for one in plan.again])
    with ThreadPoolExecutor(UPLOADS_AT_ONCE, thread_name_prefix="upload") as threads:
        for first in range(0, len(plan.upload), GROUP):
            group = plan.upload[first : first + GROUP]
            sending = [(document, threads.submit(server.upload, document.source)) for document in group]
            files: list[Json] = []
            try:
                for document, one in sending:
                    file_id = one.result()
                    files.append({"file_id": file_id, "attributes": _attributes(document)})
                    uploaded(document)
            finally:
                sent = _put_in(server, store_id, files) if files else None
            if sent is not None:
                yield sent
            for document in group:
                if document.path in plan.replaced:
                    _forget(server, store_id, plan.replaced[document.path])


def _attributes(document: Document) -> Json:
    return {"path": document.path, "sha256": document.sha256}


def _put_in(server: Server, store_id: str, files: list[Json]) -> Sent:
    batch = server.post(f"/vector_stores/{store_id}/file_batches", {"files": files})
    return Sent(batch["id"], len(files))


def _forget(server: Server, store_id: str, file_id: str) -> None:
    """Take an old file out of the store, and delete it: it was uploaded for nothing else."""
    server.delete(f"/vector_stores/{store_id}/files/{file_id}")
    server.delete(f"/files/{file_id}")


def counts_of(server: Server, store_id: str, sent: Sequence[Sent]) -> dict[str, int]:
    """Return how many files of some batches have which status."""
    total: dict[str, int] = {}
    for one in sent:
        batch = server.get(f"/vector_stores/{store_id}/file_batches/{one.batch_id}")
        for status, count in batch["file_counts"].items():
            total[status] = total.get(status, 0) + count
    return total


def failures_of(server: Server, store_id: str) -> Iterator[tuple[str, str]]:
    """Give the path and the reason of each file of the store that failed."""
    for one in server.list_all(f"/vector_stores/{store_id}/files", filter="failed"):
        yield str(one["attributes"].get("path", one["id"])), str(one["last_error"]["message"])
