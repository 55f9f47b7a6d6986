"""A busy thread: messages and runs that wait behind the active run, or have it cancelled, where a client wants that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest

from tests.api.scenes import (
    asked,
    hanging,
    outputs_for,
    reached,
    refused,
    settled,
    text_of,
    write_script,
)
from tests.server import Client, running_server, server_process

QUEUE: Any = {"x_when_busy": "queue"}
INTERRUPT: Any = {"x_when_busy": "interrupt"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("busy")
    with running_server(folder / "data", script=write_script(folder), shutdown_grace_seconds=0) as base_url:
        yield base_url


def say(client: Client, thread_id: str, text: str, how: Any = None) -> Any:
    return client.beta.threads.messages.create(thread_id, role="user", content=text, extra_body=how)


def texts(client: Client, thread_id: str, order: Literal["asc", "desc"] = "asc") -> list[str]:
    return [text_of(one) if one.content else "" for one in client.beta.threads.messages.list(thread_id, order=order)]


def test_by_default_a_busy_thread_refuses_in_the_recorded_words(client: Client) -> None:
    run = hanging(client)
    for how in (None, {"x_when_busy": "reject"}, {"x_when_busy": None}):
        assert refused(say, client, run.thread_id, "hello", how).message == (
            f"Can't add messages to {run.thread_id} while a run {run.id} is active."
        )
        runs = client.beta.threads.runs
        options: Any = {"thread_id": run.thread_id, "assistant_id": run.assistant_id, "extra_body": how}
        assert refused(runs.create, **options).message == (
            f"Thread {run.thread_id} already has an active run {run.id}."
        )
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)


def test_what_is_queued_comes_in_order_after_the_active_run(client: Client) -> None:
    first = asked(client, "weather")
    thread_id, runs = first.thread_id, client.beta.threads.runs
    client.beta.threads.messages.with_raw_response.create(thread_id, role="user", content="hello", extra_body=QUEUE)
    second = runs.create(thread_id, assistant_id=first.assistant_id, extra_body=QUEUE)
    say(client, thread_id, "goodbye", QUEUE)
    third = runs.create(
        thread_id,
        assistant_id=first.assistant_id,
        additional_messages=[{"role": "user", "content": "really"}],
        extra_body=QUEUE,
    )
    assert (second.status, third.status) == ("queued", "queued")
    assert texts(client, thread_id) == ["weather", "hello", "goodbye", "really"]
    runs.submit_tool_outputs(first.id, thread_id=thread_id, tool_outputs=outputs_for(first, "warm"))
    assert settled(client, third).status == "completed"
    assert texts(client, thread_id) == [
        *("weather", "It is warm."),
        *("hello", "You said: hello"),
        *("goodbye", "really", "You said: really"),
    ]
    assert texts(client, thread_id, "desc") == texts(client, thread_id)[::-1]
    assert [one.id for one in runs.list(thread_id, order="asc")] == [first.id, second.id, third.id]
    assert say(client, thread_id, "free again").thread_id == thread_id


def test_the_answer_names_the_run_that_is_waited_for(client: Client) -> None:
    run = hanging(client)
    messages, runs = client.beta.threads.messages.with_raw_response, client.beta.threads.runs.with_raw_response
    said = messages.create(run.thread_id, role="user", content="hello", extra_body=QUEUE)
    waits = runs.create(run.thread_id, assistant_id=run.assistant_id, extra_body=QUEUE)
    assert (said.headers["x-perdure-behind"], waits.headers["x-perdure-behind"]) == (run.id, run.id)
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    settled(client, waits.parse())
    free = messages.create(run.thread_id, role="user", content="hello", extra_body=QUEUE)
    assert "x-perdure-behind" not in free.headers


@pytest.mark.parametrize("active", ["writes", "waits for outputs"])
def test_an_interrupt_cancels_the_active_run_first(client: Client, active: str) -> None:
    first = hanging(client) if active == "writes" else asked(client, "weather")
    thread_id, runs = first.thread_id, client.beta.threads.runs
    queued = runs.create(
        thread_id,
        assistant_id=first.assistant_id,
        additional_messages=[{"role": "user", "content": "later"}],
        extra_body=QUEUE,
    )
    stop: Any = [{"role": "user", "content": "stop"}]
    urgent = runs.create(thread_id, assistant_id=first.assistant_id, additional_messages=stop, extra_body=INTERRUPT)
    assert [settled(client, run).status for run in (urgent, queued)] == ["completed", "completed"]
    assert runs.retrieve(first.id, thread_id=thread_id).status == "cancelled"
    assert texts(client, thread_id)[-4:] == ["stop", "You said: stop", "later", "You said: later"]


def test_a_message_interrupts_and_the_run_for_it_follows(client: Client) -> None:
    for first in (hanging(client), asked(client, "weather")):
        said = say(client, first.thread_id, "stop", INTERRUPT)
        options: Any = {"assistant_id": first.assistant_id, "extra_body": INTERRUPT}
        run = client.beta.threads.runs.create(first.thread_id, **options)
        assert settled(client, run).status == "completed"
        assert texts(client, first.thread_id)[-2:] == ["stop", "You said: stop"]
        assert client.beta.threads.messages.retrieve(said.id, thread_id=first.thread_id) == said
        assert client.beta.threads.runs.retrieve(first.id, thread_id=first.thread_id).status == "cancelled"


def test_a_header_does_the_same_for_clients_that_can_not_set_the_body(url: str) -> None:
    with Client(url, default_headers={"X-Perdure-When-Busy": "queue"}) as client:
        run = hanging(client)
        say(client, run.thread_id, "hello")
        behind = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
        assert behind.status == "queued"
        rejected = refused(say, client, run.thread_id, "hello", {"x_when_busy": "reject"})  # the body comes first
        assert "while a run" in rejected.message
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        assert settled(client, behind).status == "completed"


def test_an_unknown_way_is_refused(url: str) -> None:
    with Client(url) as client:
        run = asked(client, "hello")
        assert refused(say, client, run.thread_id, "x", {"x_when_busy": "wait"}).param == "x_when_busy"
        header: Any = {"X-Perdure-When-Busy": "wait"}
        runs = client.beta.threads.runs
        shown = refused(runs.create, thread_id=run.thread_id, assistant_id=run.assistant_id, extra_headers=header)
        assert (shown.status, shown.param) == (400, "X-Perdure-When-Busy")


def test_a_waiting_run_can_be_streamed_and_cancelled(client: Client) -> None:
    first = asked(client, "weather")
    thread_id, runs = first.thread_id, client.beta.threads.runs
    gone = runs.create(thread_id, assistant_id=first.assistant_id, extra_body=QUEUE)
    say(client, thread_id, "hello", QUEUE)
    with runs.create(thread_id, assistant_id=first.assistant_id, stream=True, extra_body=QUEUE) as stream:
        runs.cancel(gone.id, thread_id=thread_id)
        reached(client, gone, "cancelled")
        assert runs.retrieve(first.id, thread_id=thread_id).status == "requires_action"
        runs.submit_tool_outputs(first.id, thread_id=thread_id, tool_outputs=outputs_for(first, "warm"))
        names = [event.event for event in stream]
    assert (names[0], names[-1]) == ("thread.run.created", "thread.run.completed")
    assert texts(client, thread_id)[-2:] == ["hello", "You said: hello"]


def test_a_message_that_waits_is_an_object_like_others(client: Client) -> None:
    run = hanging(client)
    thread_id, messages = run.thread_id, client.beta.threads.messages
    kept, gone = say(client, thread_id, "kept", QUEUE), say(client, thread_id, "gone", QUEUE)
    assert messages.retrieve(kept.id, thread_id=thread_id) == kept
    assert messages.update(kept.id, thread_id=thread_id, metadata={"k": "v"}).metadata == {"k": "v"}
    assert messages.delete(gone.id, thread_id=thread_id).deleted
    half = next(iter(messages.list(thread_id, run_id=run.id)))
    page = messages.list(thread_id, after=half.id, order="asc")
    assert [one.id for one in page] == [kept.id]
    assert next(iter(messages.list(thread_id, limit=1))).id == kept.id
    client.beta.threads.runs.cancel(run.id, thread_id=thread_id)
    reached(client, run, "cancelled")
    assert [one.id for one in messages.list(thread_id, after=half.id, order="asc")] == [kept.id]
    assert messages.retrieve(kept.id, thread_id=thread_id).metadata == {"k": "v"}


def test_a_line_has_an_end(client: Client) -> None:
    run = asked(client, "weather")
    many: Any = [{"role": "user", "content": "x"}] * 256
    client.beta.threads.runs.create(
        run.thread_id, assistant_id=run.assistant_id, additional_messages=many, extra_body=QUEUE
    )
    full = refused(say, client, run.thread_id, "one too many", QUEUE)
    assert full.message == f"Thread {run.thread_id} has 257 messages and runs waiting for run {run.id}."
    assert client.beta.threads.delete(run.thread_id).deleted


def test_a_line_survives_a_crash(tmp_path: Path) -> None:
    script = write_script(tmp_path)
    with server_process(tmp_path / "data", script=script) as server, Client(server.url) as client:
        run = hanging(client)
        thread_id = run.thread_id
        say(client, thread_id, "hello", QUEUE)
        behind = client.beta.threads.runs.create(thread_id, assistant_id=run.assistant_id, extra_body=QUEUE)
        server.kill()
    with server_process(tmp_path / "data", script=script) as server, Client(server.url) as client:
        assert client.beta.threads.runs.retrieve(behind.id, thread_id=thread_id).status == "queued"
        reached(client, run, "in_progress")
        client.beta.threads.runs.cancel(run.id, thread_id=thread_id)
        assert settled(client, behind).status == "completed"
        assert texts(client, thread_id)[-2:] == ["hello", "You said: hello"]


def test_a_waiting_run_has_its_whole_time_when_it_is_let_in(tmp_path: Path) -> None:
    with (
        running_server(
            tmp_path / "data", script=write_script(tmp_path), run_expiry_seconds=3, shutdown_grace_seconds=0
        ) as base_url,
        Client(base_url) as client,
    ):
        first = asked(client, "weather")
        behind = client.beta.threads.runs.create(first.thread_id, assistant_id=first.assistant_id, extra_body=QUEUE)
        assert reached(client, first, "expired").status == "expired"
        assert settled(client, behind).status == "requires_action"


def test_a_new_thread_is_never_busy(url: str) -> None:
    with httpx2.Client(headers={"authorization": "Bearer k", "x-perdure-when-busy": "queue"}) as plain:
        assistant = plain.post(f"{url}/assistants", json={"model": "gpt-4o"}).json()
        made = plain.post(
            f"{url}/threads/runs",
            json={"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "hello"}]}},
        )
    assert (made.status_code, made.json()["status"]) == (200, "queued")
    assert "x-perdure-behind" not in made.headers
