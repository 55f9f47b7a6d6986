"""Threads: create, retrieve, modify, delete."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest

from tests.api.scenes import asked, refused, text_of
from tests.server import Client


def test_an_empty_thread(client: Client) -> None:
    thread = client.beta.threads.create()
    assert re.fullmatch("thread_[A-Za-z0-9]{24}", thread.id)
    expected = {
        "id": thread.id,
        "object": "thread",
        "created_at": thread.created_at,
        "metadata": {},
        "tool_resources": {},
    }
    assert thread.to_dict() == expected
    raw = client.beta.threads.with_raw_response.retrieve(thread.id).http_response.json()
    assert list(raw) == list(expected)
    assert client.beta.threads.messages.list(thread.id).data == []


@pytest.mark.parametrize("content", [None, b"", b"{}", b' {"messages": [], "metadata": null, "tool_resources": null} '])
def test_a_body_may_be_missing_or_empty(url: str, content: bytes | None) -> None:
    with httpx2.Client(headers={"authorization": "Bearer k"}) as plain:
        answer = plain.post(f"{url}/threads", content=content)
    assert (answer.status_code, answer.json()["metadata"]) == (200, {})


def test_a_thread_with_messages_keeps_their_order(client: Client) -> None:
    given: Any = [
        {"role": "user", "content": "eins"},
        {"role": "assistant", "content": [{"type": "text", "text": "둘"}], "attachments": None, "metadata": None},
        {"role": "user", "content": "三", "attachments": [], "metadata": {"n": "3"}},
    ]
    thread = client.beta.threads.create(messages=given, metadata={"a": "b"})
    messages = client.beta.threads.messages.list(thread.id, order="asc").data
    assert [(one.role, text_of(one)) for one in messages] == [("user", "eins"), ("assistant", "둘"), ("user", "三")]
    assert [one.metadata for one in messages] == [{}, {}, {"n": "3"}]
    assert thread.metadata == {"a": "b"}


def test_nothing_is_stored_of_a_thread_with_a_bad_message(client: Client) -> None:
    good: Any = {"role": "user", "content": "x"}
    bad: Any = {"role": "system", "content": "x"}
    refusal = refused(client.beta.threads.create, messages=[good, bad])
    assert refusal == (
        400,
        "Invalid value: 'system'. Supported values are: 'assistant' and 'user'.",
        "messages[1].role",
        "invalid_value",
    )
    empty: Any = {"role": "user", "content": ""}
    assert refused(client.beta.threads.create, messages=[good, empty]).param == "messages[1].content"


def test_modify_replaces_metadata_and_null_clears_it(client: Client) -> None:
    thread = client.beta.threads.create(metadata={"a": "1", "b": "2"})
    assert client.beta.threads.update(thread.id) == thread
    assert client.beta.threads.update(thread.id, metadata={"c": "3"}).metadata == {"c": "3"}
    assert client.beta.threads.retrieve(thread.id).metadata == {"c": "3"}
    cleared = client.beta.threads.update(thread.id, metadata=None, tool_resources=None)
    assert cleared.to_dict() == {**thread.to_dict(), "metadata": {}}
    resources: Any = {"code_interpreter": {"file_ids": []}}
    assert client.beta.threads.update(thread.id, tool_resources=resources).to_dict()["tool_resources"] == resources


def test_a_dumped_thread_goes_back_in(client: Client) -> None:
    dump = client.beta.threads.create(metadata={"a": "1"}).model_dump(exclude={"id", "object", "created_at"})
    again = client.beta.threads.create(**dump)
    assert again.metadata == {"a": "1"}
    assert client.beta.threads.update(again.id, **dump) == again


def test_delete_takes_all_that_hangs_on_the_thread(client: Client) -> None:
    run = asked(client, "hello")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    gone = client.beta.threads.delete(run.thread_id)
    assert gone.to_dict() == {"id": run.thread_id, "object": "thread.deleted", "deleted": True}
    missing = (404, f"No thread found with id '{run.thread_id}'.", None, None)
    threads: Any = client.beta.threads
    for call, args in (
        (threads.retrieve, ()),
        (threads.update, ()),
        (threads.delete, ()),
        (threads.messages.list, ()),
        (threads.runs.list, ()),
    ):
        assert refused(call, run.thread_id, *args) == missing
    assert refused(threads.messages.retrieve, message.id, thread_id=run.thread_id) == missing
    assert refused(threads.runs.retrieve, run.id, thread_id=run.thread_id) == missing
    assert refused(threads.runs.steps.list, run.id, thread_id=run.thread_id) == missing
    assert refused(threads.messages.create, run.thread_id, role="user", content="x") == missing
    assert refused(threads.runs.create, run.thread_id, assistant_id=run.assistant_id) == missing


def test_wrong_and_unknown_ids(client: Client) -> None:
    wrong = "Invalid 'thread_id': 'new'. Expected an ID that begins with 'thread'."
    for call in (client.beta.threads.retrieve, client.beta.threads.update, client.beta.threads.delete):
        assert refused(call, "new") == (400, wrong, "thread_id", "invalid_value")
        assert refused(call, "thread_none") == (404, "No thread found with id 'thread_none'.", None, None)


def test_files_that_are_not_there_are_refused(client: Client) -> None:
    resources: Any = {"code_interpreter": {"file_ids": ["file-9"]}}
    assert refused(client.beta.threads.create, tool_resources=resources).message == "No such File object: file-9"
    attached: Any = {"role": "user", "content": "x", "attachments": [{"file_id": "file-9", "tools": []}]}
    assert refused(client.beta.threads.create, messages=[attached]).message == "No such File object: file-9"
