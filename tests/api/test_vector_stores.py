"""Vector stores, their files and batches, as the official client sees them, with strict parsing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import VectorStore
from openai.types.vector_stores import VectorStoreFile

from tests.api.scenes import refused
from tests.api.test_keys import create_key
from tests.server import Client, running_server

TEXTS = {
    "refunds.txt": "Refunds are paid within fourteen days of the return.",
    "shipping.md": "# Shipping\n\nParcels to Korea take nine days. 환불은 열흘 안에 됩니다.",
    "prices.csv": "item,price\nlamp,30\ntable,120\n",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("stores") / "data", embedding_model="hashing") as base_url:
        yield base_url


def upload(client: Client, name: str, text: str | bytes = "some text") -> str:
    content = text.encode() if isinstance(text, str) else text
    return client.files.create(file=(name, content), purpose="assistants").id


def filled(client: Client, **options: Any) -> VectorStore:
    """A store with three documents, read."""
    store = client.vector_stores.create(name="Shop", **options)
    ids = [upload(client, name, text) for name, text in TEXTS.items()]
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=ids, poll_interval_ms=20)
    assert batch.file_counts.completed == 3
    return client.vector_stores.retrieve(store.id)


def test_a_new_store(client: Client) -> None:
    store = client.vector_stores.create()
    assert re.fullmatch("vs_[0-9a-f]{32}", store.id)
    shown = client.get(f"/vector_stores/{store.id}", cast_to=object)
    assert list(shown) == [  # type: ignore[call-overload]
        *("id", "object", "created_at", "name", "description", "usage_bytes", "file_counts", "status"),
        *("expires_after", "expires_at", "last_active_at", "metadata"),
    ]
    assert (store.name, store.status, store.usage_bytes, store.metadata) == ("", "completed", 0, {})
    assert store.file_counts.to_dict() == {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0}
    assert (store.expires_after, store.expires_at) == (None, None)


def test_expiry_moves_with_days(client: Client) -> None:
    store = client.vector_stores.create(
        name="S", expires_after={"anchor": "last_active_at", "days": 3}, metadata={"k": "v"}
    )
    assert store.expires_at == (store.last_active_at or 0) + 3 * 86400
    again = client.vector_stores.update(store.id, expires_after=None, name="T")
    assert (again.expires_at, again.expires_after, again.name, again.metadata) == (None, None, "T", {"k": "v"})
    again = client.vector_stores.update(store.id, name=None, metadata=None)
    assert (again.name, again.metadata) == ("", {})


def test_a_batch_from_upload_to_search(client: Client) -> None:
    store = filled(client)
    assert (store.status, store.file_counts.completed, store.file_counts.total) == ("completed", 3, 3)
    files = client.vector_stores.files.list(store.id, order="asc").data
    assert store.usage_bytes == sum(one.usage_bytes for one in files) > 100
    first = files[0].to_dict()
    assert first["chunking_strategy"] == {
        "type": "static",
        "static": {"max_chunk_size_tokens": 800, "chunk_overlap_tokens": 400},
    }
    found = client.vector_stores.search(store.id, query="When are refunds paid?")
    assert found.data[0].filename == "refunds.txt"
    assert found.data[0].content[0].text == TEXTS["refunds.txt"]
    assert 0 < found.data[0].score <= 1
    assert client.vector_stores.search(store.id, query="환불").data[0].filename == "shipping.md"


def test_the_batch_object(client: Client) -> None:
    store = client.vector_stores.create()
    ids = [upload(client, f"{number}.txt") for number in range(3)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids, attributes={"year": 2024})
    assert re.fullmatch("vsfb_[0-9a-f]{32}", batch.id)
    assert (batch.vector_store_id, batch.file_counts.total) == (store.id, 3)
    done = client.vector_stores.file_batches.poll(batch.id, vector_store_id=store.id)
    assert (done.status, done.file_counts.completed) == ("completed", 3)
    listed = list(
        client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, limit=1, order="asc")
    )
    assert [one.id for one in listed] == ids
    assert [one.attributes for one in listed] == [{"year": 2024}] * 3
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert cancelled.status == "completed"


def test_each_file_of_a_batch_with_its_own(client: Client) -> None:
    store = client.vector_stores.create()
    small: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 50}}
    files: Any = [
        {"file_id": upload(client, "a.txt"), "attributes": {"n": 1, "f": 0.5, "b": True, "s": "x"}},
        {"file_id": upload(client, "b.txt"), "chunking_strategy": small},
    ]
    client.vector_stores.file_batches.create(store.id, files=files)
    first, second = client.vector_stores.files.list(store.id, order="asc").data
    assert first.attributes == {"n": 1, "f": 0.5, "b": True, "s": "x"}
    assert second.chunking_strategy is not None
    assert second.chunking_strategy.to_dict() == small


def test_one_file(client: Client) -> None:
    store = client.vector_stores.create()
    one = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("a.txt", b"A few words."))
    assert (one.status, one.last_error) == ("completed", None)
    page = client.vector_stores.files.content(one.id, vector_store_id=store.id)
    assert [part.text for part in page.data] == ["A few words."]
    changed = client.vector_stores.files.update(one.id, vector_store_id=store.id, attributes={"k": "v"})
    assert changed.attributes == {"k": "v"}
    deleted = client.vector_stores.files.delete(one.id, vector_store_id=store.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (one.id, "vector_store.file.deleted", True)
    assert client.files.retrieve(one.id).id == one.id
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0


def test_content_is_given_without_the_overlaps(client: Client) -> None:
    store = client.vector_stores.create()
    text = " ".join(f"Sentence number {number} is here." for number in range(600))
    one = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("a.txt", text.encode()))
    page = client.vector_stores.files.content(one.id, vector_store_id=store.id)
    assert len(page.data) > 5
    assert "".join(part.text or "" for part in page.data) == text


def test_bad_files_fail_in_words_and_stop_nobody(client: Client) -> None:
    store = client.vector_stores.create()
    ids = [
        upload(client, "good.txt"),
        upload(client, "x.png", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        upload(client, "y.pdf"),
    ]
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=ids, poll_interval_ms=20)
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 2)
    failed = client.vector_stores.files.list(store.id, filter="failed", order="asc").data
    errors = [one.last_error for one in failed if one.last_error]
    assert [error.code for error in errors] == ["unsupported_file", "invalid_file"]
    assert all(error.message.endswith(".") for error in errors)
    assert client.vector_stores.retrieve(store.id).status == "completed"


def test_polls_are_told_to_be_quick(client: Client) -> None:
    store = client.vector_stores.create()
    one = client.vector_stores.files.create(store.id, file_id=upload(client, "a.txt"))
    raw = client.vector_stores.files.with_raw_response.retrieve(one.id, vector_store_id=store.id)
    assert raw.headers["openai-poll-after-ms"] == "100"


def test_search_options(client: Client) -> None:
    store = filled(client)
    search = client.vector_stores.search
    files = {one.id: client.files.retrieve(one.id).filename for one in client.vector_stores.files.list(store.id).data}
    for file_id, filename in files.items():
        client.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"kind": filename[-3:], "n": 1})
    only: Any = {"type": "and", "filters": [{"type": "eq", "key": "kind", "value": "csv"}]}
    found = search(store.id, query="How long does shipping take?", filters=only)
    assert [one.filename for one in found.data] == ["prices.csv"]
    assert found.data[0].attributes == {"kind": "csv", "n": 1}
    assert len(search(store.id, query=["refunds", "lamp"], max_num_results=2).data) == 2
    assert search(store.id, query="zebra", ranking_options={"score_threshold": 0.99}).data == []
    page = search(store.id, query="Hello, could you please tell me about refunds?", rewrite_query=True)
    assert page.data[0].filename == "refunds.txt"
    shown: Any = client.post(f"/vector_stores/{store.id}/search", body={"query": "lamp"}, cast_to=object)
    assert shown["object"] == "vector_store.search_results.page"
    assert (shown["search_query"], shown["has_more"], shown["next_page"]) == (["lamp"], False, None)


def test_a_store_can_be_made_with_files(client: Client) -> None:
    small: Any = {"type": "static", "static": {"max_chunk_size_tokens": 200, "chunk_overlap_tokens": 100}}
    store = client.vector_stores.create(
        file_ids=[upload(client, "a.txt"), upload(client, "b.txt")], chunking_strategy=small
    )
    assert (store.status, store.file_counts.in_progress, store.file_counts.total) == ("in_progress", 2, 2)
    (one, _) = client.vector_stores.files.list(store.id).data
    done: VectorStoreFile = client.vector_stores.files.poll(one.id, vector_store_id=store.id)
    assert done.chunking_strategy is not None
    assert done.chunking_strategy.to_dict() == small


def test_deleting_a_file_takes_it_out_of_all_stores(client: Client) -> None:
    store = filled(client)
    one = client.vector_stores.files.list(store.id).data[0]
    client.files.delete(one.id)
    again = client.vector_stores.retrieve(store.id)
    assert (again.file_counts.total, again.usage_bytes) == (2, store.usage_bytes - one.usage_bytes)
    assert refused(client.vector_stores.files.retrieve, one.id, vector_store_id=store.id).status == 404


def test_deleting_a_store(client: Client) -> None:
    store = filled(client)
    deleted = client.vector_stores.delete(store.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (store.id, "vector_store.deleted", True)
    gone = (404, f"Vector store with id [{store.id}] not found.", None, None)
    assert refused(client.vector_stores.retrieve, store.id) == gone
    assert refused(client.vector_stores.files.list, store.id) == gone
    assert refused(client.vector_stores.search, store.id, query="x") == gone


def test_lists_page_and_keep_their_places(client: Client) -> None:
    made = [client.vector_stores.create(name=f"page {number}").id for number in range(4)]
    page = client.vector_stores.list(limit=2)
    assert ([one.id for one in page.data], page.has_more) == ([made[3], made[2]], True)
    client.vector_stores.delete(made[2])
    assert client.vector_stores.list(limit=1, after=made[2]).data[0].id == made[1]
    assert client.vector_stores.list(limit=1, before=made[1], order="desc").data[0].id == made[3]
    store = client.vector_stores.create()
    ids = [upload(client, f"{number}.txt") for number in range(3)]
    for file_id in ids:
        client.vector_stores.files.create_and_poll(file_id, vector_store_id=store.id, poll_interval_ms=20)
    assert [one.id for one in client.vector_stores.files.list(store.id, limit=1)] == ids[::-1]
    client.vector_stores.files.delete(ids[1], vector_store_id=store.id)
    assert [one.id for one in client.vector_stores.files.list(store.id, after=ids[1], order="asc").data] == [ids[2]]
    assert [one.id for one in client.vector_stores.files.list(store.id, filter="completed").data] == [ids[2], ids[0]]
    assert client.vector_stores.files.list(store.id, filter="in_progress").data == []


def test_refusals(client: Client) -> None:
    store = client.vector_stores.create()
    files, batches = client.vector_stores.files, client.vector_stores.file_batches
    assert refused(files.create, store.id, file_id="file-none") == (404, "No such File object: file-none", "id", None)
    assert refused(batches.create, store.id, file_ids=["file-none"]).status == 404
    assert refused(client.vector_stores.create, file_ids=["file-none"]).status == 404
    assert refused(files.retrieve, "file-none", vector_store_id=store.id).status == 404
    assert refused(batches.retrieve, "vsfb_none", vector_store_id=store.id).status == 404
    assert refused(client.vector_stores.retrieve, "store") == (
        400,
        "Invalid 'vector_store_id': 'store'. Expected an ID that begins with 'vs'.",
        "vector_store_id",
        "invalid_value",
    )
    assert refused(client.vector_stores.create, file_ids=["file-1"] * 501).code == "array_above_max_length"
    assert refused(batches.create, store.id, file_ids=["file-1"] * 2001).code == "array_above_max_length"
    assert refused(client.post, f"/vector_stores/{store.id}/file_batches", body={}, cast_to=object).param == "file_ids"
    both = {"file_ids": ["file-1"], "files": [{"file_id": "file-1"}]}
    assert refused(client.post, f"/vector_stores/{store.id}/file_batches", body=both, cast_to=object).status == 400
    assert refused(files.list, store.id, filter="done").param == "filter"
    assert (
        refused(client.vector_stores.update, store.id, expires_after={"anchor": "last_active_at", "days": 366}).status
        == 400
    )
    wide: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51}}
    refusal = refused(files.create, store.id, file_id="file-1", chunking_strategy=wide)
    assert (refusal.status, refusal.param) == (400, "chunking_strategy.static.chunk_overlap_tokens")
    many = {f"k{number}": "v" for number in range(17)}
    assert refused(files.create, store.id, file_id="file-1", attributes=many).status == 400
    assert refused(files.create, store.id, file_id="file-1", attributes={"k": "v" * 513}).status == 400


def test_types_without_text_are_refused_at_once_where_the_hosted_server_did_so(client: Client) -> None:
    picture = upload(client, "picture.PNG", b"\x89PNG")
    text = (
        "Files with extensions [.png] are not supported for retrieval. See "
        "https://platform.openai.com/docs/assistants/tools/file-search/supported-files"
    )
    expected = (400, text, "file_ids", "unsupported_file")
    resources: Any = {"file_search": {"vector_stores": [{"file_ids": [picture]}]}}
    attached: Any = [{"file_id": picture, "tools": [{"type": "file_search"}]}]
    assert refused(client.vector_stores.create, file_ids=[picture]) == expected
    assert refused(client.beta.assistants.create, model="m", tool_resources=resources) == expected
    assert refused(client.beta.threads.create, tool_resources=resources) == expected
    thread = client.beta.threads.create()
    message: Any = {"role": "user", "content": "x", "attachments": attached}
    assert refused(client.beta.threads.messages.create, thread.id, **message) == expected
    assert refused(client.beta.threads.create, messages=[message]) == expected


def test_stores_of_other_projects_do_not_exist(tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = [create_key(data), create_key(data, "other")]
    with (
        running_server(data, embedding_model="hashing") as url,
        Client(url, keys[0]) as one,
        Client(url, keys[1]) as two,
    ):
        store = filled(one)
        assert refused(two.vector_stores.retrieve, store.id).status == 404
        assert refused(two.vector_stores.search, store.id, query="x").status == 404
        assert two.vector_stores.list().data == []
        foreign: Any = {"file_search": {"vector_store_ids": [store.id]}}
        assert refused(two.beta.assistants.create, model="m", tool_resources=foreign).status == 404
        mine = two.vector_stores.create()
        file_id = one.vector_stores.files.list(store.id).data[0].id
        assert refused(two.vector_stores.files.create, mine.id, file_id=file_id).status == 404


def test_a_rebuild_is_an_extension(client: Client) -> None:
    store = filled(client)
    again = client.post(f"/vector_stores/{store.id}/rebuild", cast_to=VectorStore)
    assert (again.status, again.file_counts.in_progress) == ("in_progress", 3)
    for one in client.vector_stores.files.list(store.id).data:
        assert client.vector_stores.files.poll(one.id, vector_store_id=store.id).status == "completed"
    assert client.vector_stores.retrieve(store.id).usage_bytes == store.usage_bytes
