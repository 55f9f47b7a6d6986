"""The file search tool in runs: what is found, cited and shown, with models that search and models that do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from openai.types.beta import Assistant
from openai.types.beta.threads import Message, Run

from perdure.models.script import Script
from perdure.models.scripted import ScriptedServer
from perdure.wire.steps import FOUND_TEXT
from tests.api.scenes import WEATHER, outputs_for, refused, settled
from tests.server import Client, running_server, upstream_of

SEARCH: Any = {"type": "file_search"}
CATS = "Cats eat fish. A cat sleeps sixteen hours a day.\n"
REFUNDS = "환불은 구매 후 칠 일 안에 신청할 수 있습니다. 영수증이 필요합니다.\n"
ANSWER = "Cats 🐈 eat fish【4:0†cats.txt】, they say【4:0†cats.txt】 and 【9:9†none】."
CALL = {"name": "file_search", "arguments": {"queries": ["what do cats eat"]}}
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^cats$", "call": [CALL]},
        {"when": "^refunds$", "call": [{"name": "file_search", "arguments": {"query": "환불"}}]},
        {"when": "^no query$", "call": [{"name": "file_search", "arguments": {}}]},
        {"when": "^weather and cats$", "call": [CALL, {"name": "get_weather", "arguments": {"city": "Seoul"}}]},
        {"when": "^twice$", "call": [CALL]},
        {"when": "^told ", "role": "user", "say": "{question}"},
        {"when": "sunny", "role": "tool", "say": "It is sunny, and cats eat fish【4:0†cats.txt】."},
        {"when": "【4:0†cats", "role": "tool", "say": ANSWER},
        {"when": "", "role": "tool", "say": "{output}"},
    ]
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("file-search")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    with running_server(folder / "data", script=script, embedding_model="hashing") as base_url:
        yield base_url


def store_of(client: Client, **texts: str) -> str:
    """Make a vector store of texts, by name; return its id once all are in."""
    store = client.vector_stores.create(name="texts")
    files = [(f"{name}.txt", text.encode()) for name, text in texts.items()]
    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=files, poll_interval_ms=20)
    assert batch.file_counts.completed == len(texts)
    return store.id


def searcher(client: Client, store_id: str | None, *tools: Any, **options: Any) -> Assistant:
    resources: Any = {"file_search": {"vector_store_ids": [store_id]}} if store_id else None
    return client.beta.assistants.create(model="gpt-4o", tools=[SEARCH, *tools], tool_resources=resources, **options)


def run_on(client: Client, assistant: Assistant, question: str, **options: Any) -> Run:
    thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **options)
    return settled(client, run)


def answer_of(client: Client, run: Run) -> Message:
    return client.beta.threads.messages.list(run.thread_id, run_id=run.id).data[0]


def value_of(message: Message) -> str:
    part = message.content[-1]
    assert part.type == "text"
    return part.text.value


def search_step(client: Client, run: Run, **query: Any) -> Any:
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc", **query).data
    return next(step for step in steps if step.type == "tool_calls").to_dict()


def test_an_answer_cites_the_files_that_it_rests_on(client: Client) -> None:
    run = run_on(client, searcher(client, store_of(client, cats=CATS, refunds=REFUNDS)), "cats")
    assert run.status == "completed"
    part = answer_of(client, run).content[0]
    assert part.type == "text"
    assert part.text.value == ANSWER
    assert len(part.text.annotations) == 2, "the one that names no result is plain text"
    for annotation in part.text.annotations:
        assert annotation.type == "file_citation"
        assert part.text.value[annotation.start_index : annotation.end_index] == annotation.text == "【4:0†cats.txt】"
        assert client.files.retrieve(annotation.file_citation.file_id).filename == "cats.txt"


def test_a_stream_carries_each_citation_whole(client: Client) -> None:
    assistant = searcher(client, store_of(client, cats=CATS))
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "cats"}])
    names: list[str] = []
    deltas: list[Any] = []
    search: list[Any] = []
    for event in client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True):
        names.append(event.event)
        if event.event == "thread.message.delta":
            deltas += [part.to_dict()["text"] for part in event.data.delta.content or []]
        if event.event == "thread.run.step.delta":
            search += event.data.to_dict()["delta"]["step_details"]["tool_calls"]  # type: ignore[index]
    assert "".join(delta["value"] for delta in deltas) == ANSWER
    cited = [delta for delta in deltas if delta.get("annotations")]
    assert [delta["value"] for delta in cited] == ["【4:0†cats.txt】"] * 2
    assert [delta["annotations"][0]["index"] for delta in cited] == [0, 1]
    assert cited[0]["annotations"][0]["file_citation"]["quote"] == ""
    assert names[3:6] == ["thread.run.step.created", "thread.run.step.in_progress", "thread.run.step.delta"]
    assert names.count("thread.run.step.delta") == 1, "recorded: one delta, without results"
    assert search[0]["file_search"] == {
        "ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.0},
        "results": [],
    }
    message = client.beta.threads.messages.list(thread.id).data[0]
    assert value_of(message) == ANSWER


def test_the_stream_helper_takes_it(client: Client) -> None:
    assistant = searcher(client, store_of(client, cats=CATS))
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "cats"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        stream.until_done()
        final = stream.get_final_messages()[0]
    part = final.content[0]
    assert part.type == "text"
    assert (part.text.value, len(part.text.annotations)) == (ANSWER, 2)


def test_a_step_shows_results_and_their_text_where_asked(client: Client) -> None:
    run = run_on(client, searcher(client, store_of(client, cats=CATS, refunds=REFUNDS)), "cats")
    [call] = search_step(client, run)["step_details"]["tool_calls"]
    first = call["file_search"]["results"][0]
    assert (first["file_name"], first["attributes"]) == ("cats.txt", {})
    assert 0 < first["score"] <= 1
    assert "content" not in first
    assert "x_" not in json.dumps(call)
    [shown] = search_step(client, run, include=[FOUND_TEXT])["step_details"]["tool_calls"]
    assert shown["file_search"]["results"][0]["content"] == [{"type": "text", "text": CATS.strip()}]
    assert shown["file_search"]["x_queries"] == ["what do cats eat"]
    step_id = search_step(client, run)["id"]
    path = f"/threads/{run.thread_id}/runs/{run.id}/steps/{step_id}"
    plain = client.get(path, cast_to=httpx2.Response).json()
    assert "content" not in plain["step_details"]["tool_calls"][0]["file_search"]["results"][0]
    whole = client.get(f"{path}?include%5B%5D={FOUND_TEXT}", cast_to=httpx2.Response).json()
    assert whole["step_details"]["tool_calls"][0]["file_search"]["results"][0]["content"]


def test_the_stream_shows_the_text_where_the_run_was_begun_so(client: Client) -> None:
    assistant = searcher(client, store_of(client, cats=CATS))
    for include, shown in (([], False), ([FOUND_TEXT], True)):
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "cats"}])
        stream: Any = client.beta.threads.runs.create(
            thread.id,
            assistant_id=assistant.id,
            stream=True,
            include=include,  # type: ignore[arg-type]
        )
        done: Any = [event.data for event in stream if event.event == "thread.run.step.completed"]
        assert ("content" in done[0].to_dict()["step_details"]["tool_calls"][0]["file_search"]["results"][0]) == shown


def test_korean_words_are_found_inside_a_sentence(client: Client) -> None:
    run = run_on(client, searcher(client, store_of(client, cats=CATS, refunds=REFUNDS)), "refunds")
    assert value_of(answer_of(client, run)).startswith("【4:0†refunds.txt】\n환불은 구매")


def test_the_stores_of_assistant_and_thread_are_searched_together(client: Client) -> None:
    assistant = searcher(client, store_of(client, refunds=REFUNDS))
    file = client.files.create(file=("cats.txt", CATS.encode()), purpose="assistants")
    attached: Any = {"file_id": file.id, "tools": [SEARCH]}
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "cats", "attachments": [attached]}])
    run = settled(client, client.beta.threads.runs.create(thread.id, assistant_id=assistant.id))
    names = {
        one["file_name"] for one in search_step(client, run)["step_details"]["tool_calls"][0]["file_search"]["results"]
    }
    assert names == {"cats.txt", "refunds.txt"}
    resources = client.beta.threads.retrieve(thread.id).tool_resources
    assert resources is not None
    assert resources.file_search is not None
    [store_id] = resources.file_search.vector_store_ids or []
    expiry = client.vector_stores.retrieve(store_id).expires_after
    assert expiry is not None
    assert expiry.days == 7


def test_limits_of_the_tool_hold(client: Client) -> None:
    store_id = store_of(client, **{f"cats{number}": f"{CATS}{number}" for number in range(4)})
    few: Any = {"type": "file_search", "file_search": {"max_num_results": 2}}
    strict: Any = {"type": "file_search", "file_search": {"ranking_options": {"score_threshold": 1.0}}}
    for tool, count in ((few, 2), (strict, 0)):
        assistant = client.beta.assistants.create(
            model="gpt-4o", tools=[tool], tool_resources={"file_search": {"vector_store_ids": [store_id]}}
        )
        run = run_on(client, assistant, "cats")
        search = search_step(client, run)["step_details"]["tool_calls"][0]["file_search"]
        assert len(search["results"]) == count
        assert all(one["score"] <= 1 for one in search["results"])


def test_what_can_not_be_searched_is_told_to_the_model(client: Client) -> None:
    nothing = run_on(client, searcher(client, None), "cats")
    assert value_of(answer_of(client, nothing)).startswith("There are no files to search")
    no_query = run_on(client, searcher(client, store_of(client, cats=CATS)), "no query")
    assert value_of(answer_of(client, no_query)).startswith("No query was given")
    empty = client.vector_stores.create()
    found = run_on(client, searcher(client, empty.id), "cats")
    assert value_of(answer_of(client, found)) == "Nothing was found. Try other words."


def test_a_store_that_was_deleted_is_passed_over(client: Client) -> None:
    store_id = store_of(client, cats=CATS)
    assistant = searcher(client, store_id)
    client.vector_stores.delete(store_id)
    run = run_on(client, assistant, "cats")
    assert run.status == "completed"


def test_a_forced_choice_holds_for_the_first_turn(client: Client) -> None:
    assistant = searcher(client, store_of(client, cats=CATS))
    run = run_on(client, assistant, "cats", tool_choice={"type": "file_search"})
    assert run.status == "completed"
    other = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "cats"}])
    refusal = refused(
        client.beta.threads.runs.create, thread.id, assistant_id=other.id, tool_choice={"type": "file_search"}
    )
    assert refusal.param == "tool_choice"


def test_functions_beside_a_search_wait_for_the_program(client: Client) -> None:
    run = run_on(client, searcher(client, store_of(client, cats=CATS), WEATHER), "weather and cats")
    assert run.status == "requires_action"
    assert run.required_action is not None
    [call] = run.required_action.submit_tool_outputs.tool_calls
    assert call.function.name == "get_weather"
    step = search_step(client, run)
    assert [one["type"] for one in step["step_details"]["tool_calls"]] == ["file_search", "function"]
    assert step["step_details"]["tool_calls"][0]["file_search"]["results"]
    run = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "sunny"), poll_interval_ms=20
    )
    part = answer_of(client, run).content[0]
    assert part.type == "text"
    assert part.text.value == "It is sunny, and cats eat fish【4:0†cats.txt】."
    assert [one.text for one in part.text.annotations] == ["【4:0†cats.txt】"]


def test_usage_is_the_sum_of_all_turns(client: Client) -> None:
    run = run_on(client, searcher(client, store_of(client, cats=CATS)), "cats")
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    assert run.usage is not None
    assert run.usage.total_tokens == sum(step.usage.total_tokens for step in steps if step.usage)
    assert all(step.usage for step in steps)


# -- models that do not search by themselves

TOOLLESS: dict[str, Any] = {
    "rules": [
        {
            "when": "^cats$",
            "fail": {"status": 400, "message": '"gemma" does not support tools', "times": 1},
            "say": ANSWER,
        },
    ],
    "models": ["gemma"],
}


def asks_without_tools(client: Client, upstream: ScriptedServer, question: str = "cats") -> tuple[Run, list[Any]]:
    assistant = searcher(client, store_of(client, cats=CATS, refunds=REFUNDS), instructions="Be brief.")
    run = run_on(client, assistant, question, model="gemma")
    bodies = [one.body for one in upstream.requests if one.path.endswith("/chat/completions")]
    return run, bodies


def check_given(client: Client, run: Run, body: Any) -> None:
    """The passages stand in the instructions, the answer cites them, a step shows the search."""
    assert run.status == "completed"
    assert "tools" not in body
    system = body["messages"][0]
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\nPassages from the user's files")
    assert f"【4:0†cats.txt】\n{CATS.strip()}" in system["content"]
    part = answer_of(client, run).content[0]
    assert part.type == "text"
    assert len(part.text.annotations) == 2
    step = search_step(client, run)
    [call] = step["step_details"]["tool_calls"]
    assert call["file_search"]["results"][0]["file_name"] == "cats.txt"
    assert step["usage"]["total_tokens"] == 0, "no model was asked"


def test_an_upstream_that_refuses_tools_gets_the_passages(tmp_path: Path) -> None:
    upstream = ScriptedServer(msgspec.convert(TOOLLESS, Script))
    with (
        upstream_of(upstream) as upstream_url,
        running_server(
            tmp_path, upstream_url=upstream_url, builtin_model="none", embedding_model="hashing"
        ) as base_url,
        Client(base_url) as client,
    ):
        run, bodies = asks_without_tools(client, upstream)
        assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["file_search"]
        check_given(client, run, bodies[1])
        again, later = asks_without_tools(client, upstream)
        assert len(later) == 3, "what was learned is kept"
        check_given(client, again, later[-1])


def test_an_upstream_that_is_said_to_call_no_tools_is_never_offered_any(tmp_path: Path) -> None:
    upstream = ScriptedServer(msgspec.convert({**TOOLLESS, "rules": [{"when": "^cats$", "say": ANSWER}]}, Script))
    settings = {"builtin_model": "none", "embedding_model": "hashing", "toolless_models": "gem*, other"}
    with (
        upstream_of(upstream) as upstream_url,
        running_server(tmp_path, upstream_url=upstream_url, **settings) as base_url,
        Client(base_url) as client,
    ):
        run, bodies = asks_without_tools(client, upstream)
        assert len(bodies) == 1
        check_given(client, run, bodies[0])


def test_functions_that_a_model_can_not_call_end_the_run_with_its_words(tmp_path: Path) -> None:
    failing = {"rules": [{"when": ".", "fail": {"status": 400, "message": "gemma does not support tools"}}]}
    upstream = ScriptedServer(msgspec.convert({**TOOLLESS, **failing}, Script))
    with (
        upstream_of(upstream) as upstream_url,
        running_server(
            tmp_path, upstream_url=upstream_url, builtin_model="none", embedding_model="hashing"
        ) as base_url,
        Client(base_url) as client,
    ):
        run = run_on(client, searcher(client, None, WEATHER), "cats", model="gemma")
        assert run.status == "failed"
        assert run.last_error is not None
        assert "does not support tools" in run.last_error.message
