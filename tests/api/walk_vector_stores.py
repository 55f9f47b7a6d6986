"""The part of the walk over all operations that concerns vector stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
from openai.types import VectorStore

from tests.server import Client

SMALL: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}
ATTRIBUTES: dict[str, Any] = {"text": "x", "number": 1.5, "whole": 2, "truth": True}
FILTER: Any = {
    "type": "and",
    "filters": [
        {"type": "eq", "key": "truth", "value": True},
        {"type": "or", "filters": [{"type": "gte", "key": "number", "value": 1}]},
    ],
}


def new_file(client: Client, name: str = "a.txt") -> str:
    return client.files.create(file=(name, b"Some words to be found."), purpose="assistants").id


def new_store(client: Client) -> str:
    return client.vector_stores.create(name="Walk", metadata={"k": "v"}).id


def filled(client: Client) -> tuple[str, str]:
    """Make a store with one file that is read; return both ids."""
    store = new_store(client)
    file = client.vector_stores.files.create(store, file_id=new_file(client), attributes=ATTRIBUTES)
    assert client.vector_stores.files.poll(file.id, vector_store_id=store, poll_interval_ms=20).status == "completed"
    return store, file.id


def create_stores(client: Client) -> None:
    client.vector_stores.create()
    client.vector_stores.create(
        name="Full",
        description="All of it.",
        file_ids=[new_file(client)],
        chunking_strategy=SMALL,
        expires_after={"anchor": "last_active_at", "days": 1},
        metadata={"k": "v"},
    )


def modify_store(client: Client) -> None:
    store = new_store(client)
    client.vector_stores.update(store, name="Other", expires_after={"anchor": "last_active_at", "days": 365})
    client.vector_stores.update(store, name=None, expires_after=None, metadata=None)


def list_stores(client: Client) -> None:
    new_store(client)
    client.vector_stores.list()
    client.vector_stores.list(limit=1, order="asc")


def search_store(client: Client) -> None:
    store, _ = filled(client)
    search = client.vector_stores.search
    assert search(store, query="words").data
    assert search(
        store,
        query=["words", "other"],
        filters=FILTER,
        max_num_results=1,
        rewrite_query=True,
        ranking_options={"ranker": "auto", "score_threshold": 0.0},
    ).data
    assert search(new_store(client), query="words", ranking_options={"ranker": "none"}).data == []


def create_files(client: Client) -> None:
    store = new_store(client)
    client.vector_stores.files.create(store, file_id=new_file(client))
    client.vector_stores.files.create(
        store, file_id=new_file(client), attributes=ATTRIBUTES, chunking_strategy={"type": "auto"}
    )


def list_files(client: Client) -> None:
    store, _ = filled(client)
    bad = client.files.create(file=("a.pdf", b"no pdf"), purpose="assistants").id
    client.vector_stores.files.create_and_poll(bad, vector_store_id=store, poll_interval_ms=20)
    assert len(list(client.vector_stores.files.list(store, limit=1))) == 2
    assert client.vector_stores.files.list(store, filter="failed").data[0].last_error is not None


def get_file(client: Client) -> None:
    store, file = filled(client)
    client.vector_stores.files.retrieve(file, vector_store_id=store)


def update_file(client: Client) -> None:
    store, file = filled(client)
    client.vector_stores.files.update(file, vector_store_id=store, attributes={"other": "y"})
    client.vector_stores.files.update(file, vector_store_id=store, attributes=None)


def delete_file(client: Client) -> None:
    store, file = filled(client)
    client.vector_stores.files.delete(file, vector_store_id=store)


def read_content(client: Client) -> None:
    store, file = filled(client)
    assert client.vector_stores.files.content(file, vector_store_id=store).data


def create_batches(client: Client) -> None:
    store = new_store(client)
    batches = client.vector_stores.file_batches
    ids = [new_file(client, f"{number}.txt") for number in range(3)]
    batches.create_and_poll(store, file_ids=ids, poll_interval_ms=20)
    batches.create(store, file_ids=ids, attributes=ATTRIBUTES, chunking_strategy=SMALL)
    files: Any = [{"file_id": ids[0], "attributes": ATTRIBUTES}, {"file_id": ids[1], "chunking_strategy": SMALL}]
    client.post(f"/vector_stores/{store}/file_batches", body={"files": files}, cast_to=httpx2.Response)


def new_batch(client: Client) -> tuple[str, str]:
    store = new_store(client)
    return store, client.vector_stores.file_batches.create(store, file_ids=[new_file(client)]).id


def get_batch(client: Client) -> None:
    store, batch = new_batch(client)
    client.vector_stores.file_batches.poll(batch, vector_store_id=store, poll_interval_ms=20)


def cancel_batch(client: Client) -> None:
    store, batch = new_batch(client)
    client.vector_stores.file_batches.cancel(batch, vector_store_id=store)


def list_batch_files(client: Client) -> None:
    store, batch = new_batch(client)
    client.vector_stores.file_batches.list_files(batch, vector_store_id=store)
    client.vector_stores.file_batches.list_files(batch, vector_store_id=store, limit=1, order="asc", filter="completed")


STORE_WALK: dict[str, Callable[[Client], object]] = {
    "createVectorStore": create_stores,
    "listVectorStores": list_stores,
    "getVectorStore": lambda client: client.vector_stores.retrieve(new_store(client)),
    "modifyVectorStore": modify_store,
    "deleteVectorStore": lambda client: client.vector_stores.delete(filled(client)[0]),
    "searchVectorStore": search_store,
    "createVectorStoreFile": create_files,
    "listVectorStoreFiles": list_files,
    "getVectorStoreFile": get_file,
    "updateVectorStoreFileAttributes": update_file,
    "deleteVectorStoreFile": delete_file,
    "retrieveVectorStoreFileContent": read_content,
    "createVectorStoreFileBatch": create_batches,
    "getVectorStoreFileBatch": get_batch,
    "cancelVectorStoreFileBatch": cancel_batch,
    "listFilesInVectorStoreBatch": list_batch_files,
    "rebuildVectorStore": lambda client: client.post(
        f"/vector_stores/{filled(client)[0]}/rebuild", cast_to=VectorStore
    ),
}
