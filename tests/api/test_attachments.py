"""What messages bring along, and vector stores that are made with an assistant or a thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import VectorStore

from tests.api.scenes import refused
from tests.api.test_vector_stores import upload
from tests.server import Client, running_server

WEEK = 7 * 86400
FOR_SEARCH: list[Any] = [{"type": "file_search"}]
FOR_CODE: list[Any] = [{"type": "code_interpreter"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("attachments") / "data", embedding_model="hashing") as base_url:
        yield base_url


def message(*attachments: tuple[str, list[Any]], content: str = "x") -> Any:
    attached = [{"file_id": file_id, "tools": tools} for file_id, tools in attachments]
    return {"role": "user", "content": content, "attachments": attached}


def stores_of(thing: Any) -> list[str]:
    resources = thing.to_dict()["tool_resources"]
    ids: list[str] = resources.get("file_search", {}).get("vector_store_ids", [])
    return ids


def code_files_of(thing: Any) -> list[str]:
    ids: list[str] = thing.to_dict()["tool_resources"].get("code_interpreter", {}).get("file_ids", [])
    return ids


def read(client: Client, store_id: str) -> VectorStore:
    """Wait until all files of a store are read."""
    for one in client.vector_stores.files.list(store_id):
        client.vector_stores.files.poll(one.id, vector_store_id=store_id, poll_interval_ms=20)
    return client.vector_stores.retrieve(store_id)


def test_the_first_attachment_makes_the_threads_store_and_later_ones_extend_it(client: Client) -> None:
    thread = client.beta.threads.create()
    first, second = upload(client, "a.txt"), upload(client, "b.txt")
    made = client.beta.threads.messages.create(thread.id, **message((first, FOR_SEARCH)))
    assert [one.file_id for one in made.attachments or []] == [first]
    (store_id,) = stores_of(client.beta.threads.retrieve(thread.id))
    store = read(client, store_id)
    assert store.expires_at == (store.last_active_at or 0) + WEEK
    assert store.file_counts.completed == 1
    client.beta.threads.messages.create(thread.id, **message((second, FOR_SEARCH), (first, FOR_SEARCH)))
    assert stores_of(client.beta.threads.retrieve(thread.id)) == [store_id]
    assert read(client, store_id).file_counts.completed == 2


def test_attachments_for_code_are_files_of_the_thread(client: Client) -> None:
    thread = client.beta.threads.create()
    first, second = upload(client, "a.csv"), upload(client, "b.csv")
    client.beta.threads.messages.create(thread.id, **message((first, FOR_CODE), (second, FOR_CODE + FOR_SEARCH)))
    again = client.beta.threads.retrieve(thread.id)
    assert code_files_of(again) == [first, second]
    assert read(client, stores_of(again)[0]).file_counts.total == 1
    client.files.delete(first)
    assert code_files_of(client.beta.threads.retrieve(thread.id)) == [second]
    for number in range(19):
        client.beta.threads.messages.create(thread.id, **message((upload(client, f"{number}.csv"), FOR_CODE)))
    refusal = refused(
        client.beta.threads.messages.create, thread.id, **message((first := upload(client, "x.csv"), FOR_CODE))
    )
    assert (refusal.status, refusal.param, refusal.code) == (400, "attachments", "array_above_max_length")
    assert len(client.beta.threads.messages.list(thread.id, limit=100).data) == 20
    assert first


def test_messages_of_new_threads_and_runs_bring_theirs(client: Client) -> None:
    assistant = client.beta.assistants.create(model="scripted", tools=FOR_SEARCH)
    first, second, third = (upload(client, f"{number}.txt") for number in range(3))
    thread = client.beta.threads.create(messages=[message((first, FOR_SEARCH)), message((second, FOR_SEARCH))])
    (store_id,) = stores_of(thread)
    assert thread == client.beta.threads.retrieve(thread.id)
    assert read(client, store_id).file_counts.completed == 2
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id,
        assistant_id=assistant.id,
        additional_messages=[message((third, FOR_SEARCH))],
        poll_interval_ms=20,
    )
    assert run.status == "completed"
    assert read(client, store_id).file_counts.completed == 3
    both = client.beta.threads.create_and_run_poll(
        assistant_id=assistant.id, thread={"messages": [message((first, FOR_SEARCH))]}, poll_interval_ms=20
    )
    (other,) = stores_of(client.beta.threads.retrieve(both.thread_id))
    assert other != store_id
    assert read(client, other).file_counts.completed == 1


def test_a_store_that_is_made_with_an_assistant(client: Client) -> None:
    resources: Any = {
        "file_search": {"vector_stores": [{"file_ids": [upload(client, "a.txt")], "metadata": {"k": "v"}}]}
    }
    assistant = client.beta.assistants.create(model="m", tools=FOR_SEARCH, tool_resources=resources)
    (store_id,) = stores_of(assistant)
    assert assistant.to_dict()["tool_resources"] == {"file_search": {"vector_store_ids": [store_id]}}
    store = read(client, store_id)
    assert (store.expires_at, store.metadata, store.file_counts.completed) == (None, {"k": "v"}, 1)
    refusal = refused(client.beta.assistants.update, assistant.id, tool_resources=resources)
    assert (refusal.status, refusal.code) == (400, "unknown_parameter")
    other = client.vector_stores.create()
    both: Any = {"file_search": {"vector_store_ids": [store_id, other.id]}}
    assert stores_of(client.beta.assistants.update(assistant.id, tool_resources=both)) == [store_id, other.id]


def test_a_store_that_is_made_with_a_thread_expires(client: Client) -> None:
    resources: Any = {"file_search": {"vector_stores": [{"file_ids": [upload(client, "a.txt")]}]}}
    thread = client.beta.threads.create(tool_resources=resources)
    store = client.vector_stores.retrieve(stores_of(thread)[0])
    assert store.expires_at == (store.last_active_at or 0) + WEEK
    assistant = client.beta.assistants.create(model="scripted")
    run = client.beta.threads.create_and_run(
        assistant_id=assistant.id,
        thread={"messages": [message(content="hello")], "tool_resources": resources},
    )
    made = client.vector_stores.retrieve(stores_of(client.beta.threads.retrieve(run.thread_id))[0])
    assert read(client, made.id).file_counts.completed == 1


def test_a_deleted_store_is_replaced_by_the_next_attachment(client: Client) -> None:
    thread = client.beta.threads.create(messages=[message((upload(client, "a.txt"), FOR_SEARCH))])
    (gone,) = stores_of(thread)
    client.vector_stores.delete(gone)
    client.beta.threads.messages.create(thread.id, **message((upload(client, "b.txt"), FOR_SEARCH)))
    assert stores_of(client.beta.threads.retrieve(thread.id))[-1] != gone


def test_unknown_stores_and_files_are_refused(client: Client) -> None:
    unknown: Any = {"file_search": {"vector_store_ids": ["vs_none"]}}
    thread = client.beta.threads.create()
    for call, arguments in (
        (client.beta.assistants.create, {"model": "m"}),
        (client.beta.threads.create, {}),
        (client.beta.threads.update, {"thread_id": thread.id}),
    ):
        assert refused(call, **arguments, tool_resources=unknown) == (
            404,
            "Vector store with id [vs_none] not found.",
            None,
            None,
        )
    refusal = refused(client.beta.threads.messages.create, thread.id, **message(("file-none", FOR_SEARCH)))
    assert (refusal.status, refusal.message) == (404, "No such File object: file-none")
    assert client.beta.threads.messages.list(thread.id).data == []


def test_the_hosted_limit_can_be_set(tmp_path: Path) -> None:
    with (
        running_server(tmp_path / "data", embedding_model="hashing", vector_stores_per_assistant=1) as url,
        Client(url) as client,
    ):
        ids = [client.vector_stores.create().id for _ in range(2)]
        two: Any = {"file_search": {"vector_store_ids": ids}}
        refusal = refused(client.beta.assistants.create, model="m", tool_resources=two)
        assert (refusal.status, refusal.code) == (400, "array_above_max_length")
        one_and_new: Any = {"file_search": {"vector_store_ids": ids[:1], "vector_stores": [{}]}}
        assert refused(client.beta.threads.create, tool_resources=one_and_new).status == 400
        client.beta.assistants.create(model="m", tool_resources={"file_search": {"vector_store_ids": ids[:1]}})
