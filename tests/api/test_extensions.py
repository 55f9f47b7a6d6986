"""What the hosted API lacked: a list of threads, forks, edited messages, a run tried again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.beta import Thread
from openai.types.beta.threads import Message, Run

from tests.api.scenes import WEATHER, asked, hanging, outputs_for, refused, settled, text_of, write_script
from tests.server import Client, running_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("extensions")
    with running_server(folder / "data", script=write_script(folder), shutdown_grace_seconds=0) as base_url:
        yield base_url


def listed(client: Client, query: str = "") -> Any:
    return client.get(f"/threads{query}", cast_to=httpx2.Response).json()


def ids(page: Any) -> list[str]:
    return [one["id"] for one in page["data"]]


def fork(client: Client, thread_id: str, **body: Any) -> Thread:
    return client.post(f"/threads/{thread_id}/fork", body=body, cast_to=Thread)


def retry(client: Client, run: Run, **body: Any) -> Run:
    return client.post(f"/threads/{run.thread_id}/runs/{run.id}/retry", body=body or None, cast_to=Run)


def messages_of(client: Client, thread_id: str) -> list[Message]:
    return list(client.beta.threads.messages.list(thread_id, order="asc"))


# -- the list of threads


def test_threads_are_listed_newest_first_page_by_page(client: Client) -> None:
    made = [client.beta.threads.create(metadata={"n": str(number)}) for number in range(5)]
    page = listed(client, "?limit=2")
    assert ids(page) == [made[4].id, made[3].id]
    assert page["data"][0] == made[4].to_dict()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        made[4].id,
        made[3].id,
        True,
    )
    client.beta.threads.delete(made[3].id)  # a cursor outlives its thread
    assert ids(listed(client, f"?limit=2&after={made[3].id}")) == [made[2].id, made[1].id]
    assert ids(listed(client, f"?limit=2&before={made[1].id}")) == [made[4].id, made[2].id]
    assert ids(listed(client, f"?order=asc&after={made[1].id}")) == [made[2].id, made[4].id]


def test_threads_are_found_by_all_of_the_metadata(client: Client) -> None:
    both = client.beta.threads.create(metadata={"user": "김", "color": "red & blue"})
    one = client.beta.threads.create(metadata={"user": "김"})
    run = client.beta.threads.create_and_run(
        assistant_id=client.beta.assistants.create(model="gpt-4o").id,
        thread={"messages": [{"role": "user", "content": "hello"}], "metadata": {"user": "김", "from": "run"}},
    )
    assert ids(listed(client, "?metadata[user]=김")) == [run.thread_id, one.id, both.id]
    assert ids(listed(client, "?metadata[user]=김&metadata[color]=red%20%26%20blue")) == [both.id]
    assert ids(listed(client, "?metadata[user]=김&limit=1&order=asc")) == [both.id]
    assert ids(listed(client, f"?metadata[user]=김&after={one.id}")) == [both.id]
    client.beta.threads.update(both.id, metadata={"user": "이"})
    assert ids(listed(client, "?metadata[color]=red%20%26%20blue")) == []
    assert ids(listed(client, "?metadata[user]=이")) == [both.id]
    client.beta.threads.delete(both.id)
    assert ids(listed(client, "?metadata[user]=이")) == []


def test_a_nul_in_metadata_is_kept_and_found(client: Client) -> None:
    thread = client.beta.threads.create(metadata={"a\0b": "c\0d"})
    assert client.beta.threads.retrieve(thread.id).metadata == {"a\0b": "c\0d"}
    assert ids(listed(client, "?metadata[a%00b]=c%00d")) == [thread.id]


def test_threads_are_found_by_time(client: Client) -> None:
    first = client.beta.threads.create(metadata={"t": "1"})
    while int(time.time()) <= first.created_at:
        time.sleep(0.05)
    second = client.beta.threads.create(metadata={"t": "1"})
    at = second.created_at
    for query, expected in {
        f"created_at[gte]={at}": [second.id],
        f"created_at[gt]={at}": [],
        f"created_at[lt]={at}": [first.id],
        f"created_at[lte]={at}": [second.id, first.id],
        f"created_at[gte]={first.created_at}&created_at[lt]={at}": [first.id],
    }.items():
        assert ids(listed(client, f"?metadata[t]=1&{query}")) == expected, query


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("created_at[gte]=today", "created_at[gte]"),
        ("created_at[from]=1", "created_at[from]"),
        ("created_at[gte]=", "created_at[gte]"),
        ("limit=0", "limit"),
        ("after=thread_none", "after"),
    ],
)
def test_a_wrong_filter_is_refused(client: Client, query: str, param: str) -> None:
    shown = refused(client.get, f"/threads?{query}", cast_to=httpx2.Response)
    assert (shown.status, shown.param) == (400, param)


# -- forks


def test_a_fork_has_the_messages_up_to_one_of_them(client: Client) -> None:
    run = asked(client, "hello")
    thread_id = run.thread_id
    client.beta.threads.messages.create(thread_id, role="user", content="more", metadata={"k": "v"})
    client.beta.threads.update(thread_id, metadata={"of": "old"})
    old = messages_of(client, thread_id)
    whole, part = fork(client, thread_id), fork(client, thread_id, message_id=old[1].id, metadata={"of": "new"})
    assert (whole.metadata, part.metadata) == ({"of": "old"}, {"of": "new"})
    copies = messages_of(client, whole.id)
    assert [text_of(one) for one in copies] == ["hello", "You said: hello", "more"]
    assert [text_of(one) for one in messages_of(client, part.id)] == ["hello", "You said: hello"]
    for copy, one in zip(copies, old, strict=True):
        changed = {"id": copy.id, "thread_id": whole.id, "run_id": None}
        assert copy.to_dict() == {**one.to_dict(), **changed}
    assert messages_of(client, thread_id) == old
    again = client.beta.threads.runs.create(part.id, assistant_id=run.assistant_id)
    assert settled(client, again).status == "completed"
    assert len(messages_of(client, thread_id)) == 3


def test_a_fork_of_a_busy_thread_has_what_is_finished(client: Client) -> None:
    run = hanging(client)
    half = messages_of(client, run.thread_id)[1]
    assert [text_of(one) for one in messages_of(client, fork(client, run.thread_id).id)] == ["hang"]
    shown = refused(fork, client, run.thread_id, message_id=half.id)
    assert shown.message == f"Can't fork at message {half.id}: it is not finished yet."
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)


def test_a_fork_at_what_is_not_there_is_refused(client: Client) -> None:
    thread, other = client.beta.threads.create(), asked(client, "hello")
    message = messages_of(client, other.thread_id)[0]
    assert refused(fork, client, thread.id, message_id=message.id).message == (
        f"No message found with id '{message.id}'."
    )
    assert refused(fork, client, "thread_none").status == 404
    assert refused(fork, client, thread.id, message_id="run_1").param == "message_id"
    assert messages_of(client, fork(client, thread.id).id) == []


# -- edited messages


def test_a_message_is_edited(client: Client) -> None:
    run = asked(client, "helo")
    question, answer = messages_of(client, run.thread_id)
    messages: Any = client.beta.threads.messages
    named = {"thread_id": run.thread_id}
    edited = messages.update(question.id, **named, metadata={"k": "v"}, extra_body={"x_content": "hello"})
    assert edited.to_dict() == {
        **question.to_dict(),
        "content": [{"type": "text", "text": {"value": "hello", "annotations": []}}],
        "metadata": {"k": "v"},
    }
    assert messages.retrieve(question.id, **named) == edited
    parts = [{"type": "text", "text": "You said: hello"}]
    messages.update(answer.id, **named, extra_body={"x_content": parts})
    assert [text_of(one) for one in messages_of(client, run.thread_id)] == ["hello", "You said: hello"]
    again = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
    settled(client, again)
    assert text_of(messages_of(client, run.thread_id)[-1]) == "You said: hello"
    assert refused(messages.update, question.id, **named, extra_body={"x_content": ""}).param == "x_content"


def test_messages_stand_still_while_a_run_is_active(client: Client) -> None:
    run = asked(client, "weather")
    question = messages_of(client, run.thread_id)[0]
    messages: Any = client.beta.threads.messages
    named = {"thread_id": run.thread_id}
    shown = refused(messages.update, question.id, **named, extra_body={"x_content": "x"})
    assert shown.message == f"Can't change message {question.id} while a run {run.id} is active."
    assert refused(messages.delete, question.id, **named).message == (
        f"Can't delete message {question.id} while a run {run.id} is active."
    )
    assert messages.update(question.id, **named, metadata={"k": "v"}).metadata == {"k": "v"}
    outputs = outputs_for(run, "warm")
    client.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs)
    settled(client, run)
    assert messages.delete(question.id, **named).deleted


# -- another try


def test_a_failed_run_is_tried_again_with_all_that_it_was_made_with(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", name="gone")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "break"}])
    failed = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id,
        assistant_id=assistant.id,
        instructions="Be kind.",
        temperature=0.5,
        metadata={"k": "v"},
        poll_interval_ms=20,
    )
    assert failed.status == "failed"
    client.beta.assistants.delete(assistant.id)
    client.beta.threads.messages.update(
        messages_of(client, thread.id)[0].id, thread_id=thread.id, extra_body={"x_content": "hello"}
    )
    again = retry(client, failed)
    assert again.id != failed.id
    same = ("assistant_id", "model", "instructions", "temperature", "metadata", "tools", "truncation_strategy")
    assert {name: getattr(again, name) for name in same} == {name: getattr(failed, name) for name in same}
    assert (again.status, again.last_error, again.failed_at, again.usage) == ("queued", None, None, None)
    assert settled(client, again).status == "completed"
    assert client.beta.threads.runs.retrieve(failed.id, thread_id=thread.id) == failed
    assert [text_of(one) for one in messages_of(client, thread.id)] == ["hello", "one two", "You said: hello"]


def test_incomplete_and_expired_runs_are_tried_again(client: Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    short = asked(client, "hello", max_completion_tokens=1)
    assert short.status == "incomplete"
    assert settled(client, retry(client, short)).status == "incomplete"  # the same cap
    folder = tmp_path_factory.mktemp("expiry")
    with (
        running_server(
            folder / "data", script=write_script(folder), run_expiry_seconds=1, shutdown_grace_seconds=0
        ) as url,
        Client(url) as other,
    ):
        expired = settled(other, hanging(other))
        assert expired.status == "expired"
        assert retry(other, expired).status == "queued"


def test_another_try_streams_and_can_wait(client: Client) -> None:
    failed = asked(client, "break")
    stream = client.post(
        f"/threads/{failed.thread_id}/runs/{failed.id}/retry", body={"stream": True}, cast_to=httpx2.Response
    )
    assert stream.text.rstrip().endswith("data: [DONE]")
    assert "event: thread.run.failed" in stream.text
    client.beta.threads.messages.create(failed.thread_id, role="user", content="weather")
    busy = settled(
        client, client.beta.threads.runs.create(failed.thread_id, assistant_id=failed.assistant_id, tools=[WEATHER])
    )
    assert busy.status == "requires_action"
    assert refused(retry, client, failed).message == f"Thread {busy.thread_id} already has an active run {busy.id}."
    behind = retry(client, failed, x_when_busy="interrupt")
    assert settled(client, behind).status == "requires_action"  # it answers the newest question
    assert client.beta.threads.runs.retrieve(busy.id, thread_id=busy.thread_id).status == "cancelled"


def test_only_what_went_wrong_is_tried_again(client: Client) -> None:
    done = asked(client, "hello")
    assert refused(retry, client, done).message == "Cannot retry run with status 'completed'."
    with pytest.raises(openai.NotFoundError):
        client.post(f"/threads/{done.thread_id}/runs/run_none/retry", cast_to=Run)
