"""The event log of a run as a stream of its own: from the start or from where a reader left off, to the run's end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.described import events_of
from tests.api.scenes import ask, asked, hanging, outputs_for, reached, refused, settled, text_of, write_script
from tests.server import Client, running_server, server_process


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("events")
    with running_server(folder / "data", script=write_script(folder), shutdown_grace_seconds=0) as base_url:
        yield base_url


def followed(client: Client, run: Any, last: int | str = "") -> str:
    """Read the stream to its end."""
    headers = {"Last-Event-ID": str(last)} if last != "" else {}
    path = f"/threads/{run.thread_id}/runs/{run.id}/events"
    answer = client.get(path, cast_to=httpx2.Response, options={"headers": headers})
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


def test_a_run_is_followed_afterwards_just_as_it_was_streamed(client: Client) -> None:
    stream: Any = ask(client, "hello", stream=True)
    seen = [(event.event, event.data.to_dict()) for event in stream]
    run = seen[0][1]
    whole = followed(client, client.beta.threads.runs.retrieve(run["id"], thread_id=run["thread_id"]))
    *events, done = list(events_of(whole))
    assert [(event.name, json.loads(event.data)) for event in events] == seen
    assert (done.name, done.number) == ("done", None)


def test_a_reader_goes_on_where_it_left_off(client: Client) -> None:
    run = asked(client, "hello")
    *events, _ = list(events_of(followed(client, run)))
    for place, event in enumerate(events, 1):
        *rest, done = list(events_of(followed(client, run, str(event.number))))
        assert rest == events[place:]
        assert done.name == "done"


def test_it_is_followed_over_its_calls_for_functions_by_many(client: Client) -> None:
    run = asked(client, "two cities")
    texts: dict[int, str] = {}

    def follow(number: int) -> None:
        with Client(str(client.base_url)) as other:
            texts[number] = followed(other, run)

    readers = [threading.Thread(target=follow, args=(number,)) for number in range(5)]
    for reader in readers:
        reader.start()
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "rain", "sun")
    )
    for reader in readers:
        reader.join(30)
    assert len(texts) == 5
    assert set(texts.values()) == {followed(client, run)}
    names = [event.name for event in events_of(texts[0])]
    assert names.count("thread.run.requires_action") == 1
    assert names[-2:] == ["thread.run.completed", "done"]


def test_a_crash_is_told_in_the_stream(tmp_path: Path) -> None:
    script = write_script(tmp_path)
    with server_process(tmp_path / "data", script=script) as server, Client(server.url) as client:
        run = hanging(client)
        server.kill()
    with server_process(tmp_path / "data", script=script) as server, Client(server.url) as client:
        reached(client, run, "in_progress")
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        settled(client, run)
        events = [event for event in events_of(followed(client, run)) if event.name != "done"]
        messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id, order="asc"))
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    names = [event.name for event in events]
    broken, begun = names.index("thread.message.incomplete"), names.index("thread.message.created")
    again = names.index("thread.message.created", begun + 1)
    assert begun < broken < names.index("thread.run.queued", broken) < again
    for message in messages:
        all_deltas = [json.loads(one.data) for one in events if one.name == "thread.message.delta"]
        deltas = [one for one in all_deltas if one["id"] == message.id]
        assert "".join(one["delta"]["content"][0]["text"]["value"] for one in deltas) == "".join(
            map(text_of, [message] if message.content else [])
        )


def test_a_reader_who_has_seen_all_gets_the_end_only(client: Client) -> None:
    run = asked(client, "hello")
    last = [event.number for event in events_of(followed(client, run))][-2]
    for seen in (last, 10**18 - 1):
        assert followed(client, run, seen or 0) == "event: done\ndata: [DONE]\n\n"


def test_a_log_that_is_not_kept_says_so(tmp_path: Path) -> None:
    settings: Any = {"event_log_seconds": 0, "script": write_script(tmp_path)}
    with running_server(tmp_path / "data", **settings) as base_url, Client(base_url) as client:
        run = asked(client, "hello")
    while int(time.time()) <= (run.completed_at or 0):  # logs are looked through at the start, and then each minute
        time.sleep(0.05)
    with running_server(tmp_path / "data", **settings) as base_url, Client(base_url) as client:
        shown = refused(_until_gone, client, run)
    assert shown.status == 404
    assert f"The event log of run {run.id} is not kept any more" in shown.message


def _until_gone(client: Client, run: Any) -> None:
    while True:
        followed(client, run)


@pytest.mark.parametrize("last", ["x", "-1", "1" * 19, "1.5"])
def test_a_wrong_place_is_refused(client: Client, last: str) -> None:
    run = asked(client, "hello")
    shown = refused(followed, client, run, last)
    assert (shown.status, shown.param) == (400, "Last-Event-ID")


def test_a_run_that_is_not_there(client: Client) -> None:
    run = asked(client, "hello")
    thread = client.beta.threads.create()
    path = f"/threads/{thread.id}/runs/{run.id}/events"
    shown = refused(client.get, path, cast_to=httpx2.Response)
    assert (shown.status, shown.message) == (404, f"No run found with id '{run.id}'.")


def test_a_deleted_thread_ends_its_readers(client: Client) -> None:
    run = asked(client, "weather")
    texts: list[str] = []
    reader = threading.Thread(target=lambda: texts.append(followed(client, run)))
    reader.start()
    with Client(str(client.base_url)) as other:
        other.beta.threads.delete(run.thread_id)
    reader.join(30)
    if texts:  # it may have come too late to find the run
        assert "deleted while it was streamed" in texts[0]
