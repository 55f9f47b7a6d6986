"""Messages: create, retrieve, modify, list, delete, and the order in which they stand."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.scenes import ask, asked, refused, settled, text_of
from tests.server import Client


def made(client: Client, number: int) -> tuple[str, list[str]]:
    thread = client.beta.threads.create()
    ids = [client.beta.threads.messages.create(thread.id, role="user", content=f"{i}").id for i in range(number)]
    return thread.id, ids


def test_defaults_are_filled_in_and_keys_stand_in_the_recorded_order(client: Client) -> None:
    thread = client.beta.threads.create()
    message = client.beta.threads.messages.create(thread.id, role="user", content="hello")
    assert re.fullmatch("msg_[A-Za-z0-9]{24}", message.id)
    expected = {
        "id": message.id,
        "object": "thread.message",
        "created_at": message.created_at,
        "assistant_id": None,
        "thread_id": thread.id,
        "run_id": None,
        "status": "completed",
        "incomplete_details": None,
        "incomplete_at": None,
        "completed_at": message.created_at,
        "role": "user",
        "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}],
        "attachments": [],
        "metadata": {},
    }
    raw = client.beta.threads.messages.with_raw_response.retrieve(message.id, thread_id=thread.id)
    assert raw.http_response.json() == expected
    assert list(raw.http_response.json()) == list(expected)


def test_content_parts_take_their_stored_form(client: Client) -> None:
    thread = client.beta.threads.create()
    content: Any = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ]
    message = client.beta.threads.messages.create(thread.id, role="user", content=content)
    assert [part.to_dict() for part in message.content] == [
        {"type": "text", "text": {"value": "look", "annotations": []}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "auto"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ]
    image: Any = [{"type": "image_file", "image_file": {"file_id": "file-1"}}]
    refusal = refused(client.beta.threads.messages.create, thread.id, role="user", content=image)
    assert refusal == (404, "No such File object: file-1", "id", None)


@pytest.mark.parametrize("text", ["한국어 ✓ 😀", "line\r\nline\t\x00\x7f", "\\\"'{}%s", " ", "x" * 256_000])
def test_text_comes_back_unchanged(client: Client, text: str) -> None:
    thread = client.beta.threads.create()
    client.beta.threads.messages.create(thread.id, role="user", content=text, metadata={"t": text[:512]})
    message = client.beta.threads.messages.list(thread.id).data[0]
    assert (text_of(message), message.metadata) == (text, {"t": text[:512]})


def test_refused_messages(client: Client) -> None:
    thread = client.beta.threads.create()
    create: Any = client.beta.threads.messages.create
    assert refused(create, thread.id, role="tool", content="x").message == (
        "Invalid value: 'tool'. Supported values are: 'assistant' and 'user'."
    )
    nothing: list[Any] = ["", []]
    for empty in nothing:
        assert refused(create, thread.id, role="user", content=empty)[:3:2] == (400, "content")
    long = refused(create, thread.id, role="user", content="x" * 256_001)
    assert long == (
        400,
        (
            "Invalid 'content': string too long. Expected a string with maximum length 256000, but got a string with "
            "length 256001 instead."
        ),
        "content",
        "string_above_max_length",
    )
    assert refused(create, thread.id, role="user", content=None).param == "content"
    assert refused(create, thread.id, role="user", content=[{"type": "audio"}]).param == "content[0].type"
    assert refused(create, thread.id, role="user", content=[{"type": "text", "text": 5}]).param == "content[0].text"
    assert refused(create, thread.id, role="user", content="x", extra_body={"file_ids": ["f"]}) == (
        400,
        "Unknown parameter: 'file_ids'.",
        "file_ids",
        "unknown_parameter",
    )
    assert client.beta.threads.messages.list(thread.id).data == []


def test_modify_replaces_metadata_and_null_clears_it(client: Client) -> None:
    thread_id, (message_id,) = made(client, 1)
    update, retrieve = client.beta.threads.messages.update, client.beta.threads.messages.retrieve
    before = retrieve(message_id, thread_id=thread_id)
    assert update(message_id, thread_id=thread_id) == before
    assert update(message_id, thread_id=thread_id, metadata={"a": "1"}).metadata == {"a": "1"}
    assert update(message_id, thread_id=thread_id, metadata={"b": "2"}).metadata == {"b": "2"}
    assert retrieve(message_id, thread_id=thread_id).metadata == {"b": "2"}
    assert update(message_id, thread_id=thread_id, metadata=None) == before
    modified: Any = {"modified": True}
    assert refused(update, message_id, thread_id=thread_id, metadata=modified) == (
        400,
        "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
        "metadata.modified",
        "invalid_type",
    )


def test_delete(client: Client) -> None:
    thread_id, ids = made(client, 3)
    gone = client.beta.threads.messages.delete(ids[1], thread_id=thread_id)
    assert gone.to_dict() == {"id": ids[1], "object": "thread.message.deleted", "deleted": True}
    messages = client.beta.threads.messages
    for call in (messages.retrieve, messages.update, messages.delete):
        assert refused(call, ids[1], thread_id=thread_id) == (
            404,
            f"No message found with id '{ids[1]}'.",
            None,
            None,
        )
    assert [one.id for one in client.beta.threads.messages.list(thread_id)] == [ids[2], ids[0]]


def test_a_message_of_another_thread_is_unknown(client: Client) -> None:
    _, (message_id,) = made(client, 1)
    other = client.beta.threads.create()
    messages = client.beta.threads.messages
    for call in (messages.retrieve, messages.update, messages.delete):
        refusal = refused(call, message_id, thread_id=other.id)
        assert refusal == (404, f"No message found with id '{message_id}'.", None, None)
    assert refused(messages.list, other.id, after=message_id).status == 400


def test_wrong_and_unknown_ids(client: Client) -> None:
    thread = client.beta.threads.create()
    messages = client.beta.threads.messages
    for call in (messages.retrieve, messages.update, messages.delete):
        assert refused(call, "1", thread_id=thread.id) == (
            400,
            "Invalid 'message_id': '1'. Expected an ID that begins with 'msg'.",
            "message_id",
            "invalid_value",
        )
        assert refused(call, "msg_none", thread_id="thread_none").message == "No thread found with id 'thread_none'."


def test_fifty_messages_of_one_moment_keep_their_order_on_every_page(client: Client) -> None:
    thread = client.beta.threads.create()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: client.beta.threads.messages.create(thread.id, role="user", content=str(i)), range(50)))
    whole = [one.id for one in client.beta.threads.messages.list(thread.id, order="asc", limit=100)]
    assert len(set(whole)) == 50
    for limit in (1, 7, 10, 50):
        assert [one.id for one in client.beta.threads.messages.list(thread.id, order="asc", limit=limit)] == whole
    assert [one.id for one in client.beta.threads.messages.list(thread.id, limit=13)] == whole[::-1]


def test_one_after_the_other_stand_one_after_the_other(client: Client) -> None:
    thread_id, ids = made(client, 25)
    assert [one.id for one in client.beta.threads.messages.list(thread_id, order="asc")] == ids
    newest = client.beta.threads.messages.list(thread_id, limit=1)
    assert ([one.id for one in newest.data], newest.has_more) == (ids[-1:], True)
    borders = {limit: client.beta.threads.messages.list(thread_id, limit=limit).has_more for limit in (24, 25, 26)}
    assert borders == {24: True, 25: False, 26: False}


def test_only_the_replies_are_fetched_after_a_message(client: Client) -> None:
    run = ask(client, "one")
    question = client.beta.threads.messages.list(run.thread_id, order="asc").data[0]
    settled(client, run)
    replies = client.beta.threads.messages.list(run.thread_id, order="asc", after=question.id).data
    assert [text_of(one) for one in replies] == ["You said: one"]


def test_deleting_while_paging_skips_nothing(client: Client) -> None:
    thread_id, ids = made(client, 10)
    seen = []
    for message in client.beta.threads.messages.list(thread_id, order="asc", limit=3):
        client.beta.threads.messages.delete(message.id, thread_id=thread_id)
        seen.append(message.id)
    assert seen == ids
    raw = client.beta.threads.messages.with_raw_response.list(thread_id).http_response.json()
    assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_the_messages_of_one_run(client: Client) -> None:
    first = asked(client, "one")
    client.beta.threads.messages.create(first.thread_id, role="user", content="two")
    second = settled(client, client.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id))
    lists = client.beta.threads.messages.list
    assert [text_of(one) for one in lists(first.thread_id, run_id=first.id)] == ["You said: one"]
    found = lists(first.thread_id, run_id=second.id).data
    assert [(one.role, one.run_id, one.assistant_id, text_of(one)) for one in found] == [
        ("assistant", second.id, second.assistant_id, "You said: two")
    ]
    assert lists(first.thread_id, run_id="run_none").data == []
    assert refused(lists, first.thread_id, run_id="x").param == "run_id"


def test_a_dumped_message_goes_back_in(client: Client) -> None:
    thread_id, (message_id,) = made(client, 1)
    dump = client.beta.threads.messages.retrieve(message_id, thread_id=thread_id).model_dump()
    again: Any = {name: dump[name] for name in ("role", "attachments", "metadata")}
    copy = client.beta.threads.messages.create(thread_id, content="0", **again)
    assert copy.content[0].to_dict() == dump["content"][0]
