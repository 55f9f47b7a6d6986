"""Every operation of the route table, called with the official client in strict mode, and each answer held against
/openapi.json and, where it is at hand, against OpenAI's own specification.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
import openai
import pytest
from openai.types.beta import Thread
from openai.types.beta.threads import Run

from perdure.api.routes import OPERATIONS, Operation
from tests.api.described import HOSTED, Described, Fault, Json, Seen, events_of
from tests.api.scenes import WEATHER, ask, asked, hanging, outputs_for, reached, settled, write_script
from tests.api.walk_vector_stores import STORE_WALK
from tests.server import Client, running_server

SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "pair", "schema": {"type": "object"}, "strict": True}}
FULL: dict[str, Any] = {
    "name": "Full",
    "description": "Everything is set.",
    "instructions": "Be brief.",
    "reasoning_effort": "low",
    "tools": [WEATHER, {"type": "code_interpreter"}, {"type": "file_search"}],
    "tool_resources": {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []}},
    "metadata": {"k": "v"},
    "temperature": 0.5,
    "top_p": 0.5,
    "response_format": SCHEMA,
}
CONTENT: Any = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
]
RUN: dict[str, Any] = {
    "instructions": "Answer.",
    "metadata": {"k": "v"},
    "temperature": 0,
    "top_p": 1,
    "max_prompt_tokens": 1000,
    "max_completion_tokens": 1000,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "parallel_tool_calls": False,
    "response_format": {"type": "text"},
    "reasoning_effort": None,
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("conformance")
    with running_server(folder / "data", script=write_script(folder), embedding_model="hashing") as base_url:
        yield base_url


@pytest.fixture
def seen() -> list[Seen]:
    """What went over the wire."""
    return []


@pytest.fixture
def client(url: str, seen: list[Seen]) -> Iterator[Client]:
    def keep(response: httpx2.Response) -> None:
        kind = response.headers["content-type"]
        if kind.startswith("text/event-stream") and response.request.headers.get("x-hangs"):
            return
        response.read()
        path = urlsplit(str(response.url)).path.removeprefix("/v1")
        seen.append(Seen(response.request.method, path, response.status_code, kind, response.text))

    http = openai.DefaultHttpxClient(event_hooks={"response": [keep]})
    with Client(url, http_client=http) as one:
        yield one


@pytest.fixture(scope="module")
def described(url: str) -> Described:
    return Described(httpx2.get(f"{url}/openapi.json").json(), exact=True)


# -- the walk


def create_assistants(client: Client) -> None:
    for model in ("gpt-4o", "scripted"):
        client.beta.assistants.create(model=model)
    client.beta.assistants.create(model="gpt-4o", **FULL)


def modify_assistants(client: Client) -> None:
    assistant_id = client.beta.assistants.create(model="gpt-4o", **FULL).id
    client.beta.assistants.update(assistant_id, name="Other", tools=[], response_format="auto")
    client.beta.assistants.update(assistant_id, name=None, instructions=None, metadata=None)


def create_threads(client: Client) -> None:
    client.beta.threads.create()
    client.beta.threads.create(
        messages=[{"role": "user", "content": CONTENT}, {"role": "assistant", "content": "A picture."}],
        tool_resources={"code_interpreter": {"file_ids": []}},
        metadata={"k": "v"},
    )


def modify_thread(client: Client) -> None:
    thread = client.beta.threads.create()
    client.beta.threads.update(thread.id, metadata={"k": "v"}, tool_resources={"file_search": {}})


def create_messages(client: Client) -> None:
    thread = client.beta.threads.create()
    client.beta.threads.messages.create(thread.id, role="user", content="Hello", attachments=[], metadata={"k": "v"})
    client.beta.threads.messages.create(thread.id, role="assistant", content=CONTENT)


def list_messages(client: Client) -> None:
    run = asked(client, "hello")
    cut = hanging(client, extra_headers={"x-hangs": "1"})
    client.beta.threads.messages.list(cut.thread_id)
    client.beta.threads.runs.cancel(cut.id, thread_id=cut.thread_id)
    settled(client, cut)
    client.beta.threads.messages.list(cut.thread_id)
    client.beta.threads.messages.list(asked(client, "refuse").thread_id)
    client.beta.threads.messages.list(client.beta.threads.create().id)
    assert len(list(client.beta.threads.messages.list(run.thread_id, limit=1, order="asc"))) == 2
    assert len(client.beta.threads.messages.list(run.thread_id, run_id=run.id).data) == 1


def with_message(act: Callable[[Client, str, str], object]) -> Callable[[Client], None]:
    def call(client: Client) -> None:
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
        act(client, thread.id, client.beta.threads.messages.list(thread.id).data[0].id)

    return call


def create_runs(client: Client) -> None:
    ask(client, "hello", **RUN, tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}})
    ask(client, "hello", additional_messages=[{"role": "user", "content": "more"}], additional_instructions="Now.")
    for question in ("hello", "two cities", "think aloud", "break", "busy", "refuse"):
        stream: Any = ask(client, question, stream=True)
        assert next(iter(stream)).event == "thread.run.created"
    short: Any = ask(client, "hello", stream=True, max_completion_tokens=1)
    assert [event.event for event in short][-1] == "thread.run.incomplete"


def create_threads_and_runs(client: Client) -> None:
    assistant_id = client.beta.assistants.create(model="gpt-4o").id
    options = {name: value for name, value in RUN.items() if name != "reasoning_effort"}
    thread: Any = {"messages": [{"role": "user", "content": "hello"}], "metadata": {"k": "v"}}
    client.beta.threads.create_and_run(assistant_id=assistant_id, thread=thread, **options)
    stream = client.beta.threads.create_and_run(assistant_id=assistant_id, thread=thread, stream=True)
    assert next(iter(stream)).event == "thread.created"


def get_runs(client: Client) -> None:
    ended = [asked(client, question).status for question in ("hello", "weather", "two cities", "busy", "break")]
    assert ended == ["completed", "requires_action", "requires_action", "failed", "failed"]
    assert asked(client, "hello", max_completion_tokens=1).status == "incomplete"


def list_runs(client: Client) -> None:
    run = asked(client, "hello")
    client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
    assert len(list(client.beta.threads.runs.list(run.thread_id, limit=1))) == 2


def modify_run(client: Client) -> None:
    run = asked(client, "hello")
    client.beta.threads.runs.update(run.id, thread_id=run.thread_id, metadata={"k": "v"})


def cancel_runs(client: Client) -> None:
    for run in (asked(client, "two cities"), hanging(client, extra_headers={"x-hangs": "1"})):
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        reached(client, run, "cancelled")
        client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)


def submit_outputs(client: Client) -> None:
    runs = client.beta.threads.runs
    run = asked(client, "two cities")
    runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "rain", "sun"))
    assert settled(client, run).status == "completed"
    run = asked(client, "weather")
    outputs = outputs_for(run, "again")
    stream = runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs, stream=True)
    assert [event.event for event in stream][-1] == "thread.run.requires_action"


def list_steps(client: Client) -> None:
    for question in ("hello", "think aloud", "busy", "break"):
        run = asked(client, question)
        client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, limit=100, order="asc")
    run = asked(client, "weather")
    client.beta.threads.runs.submit_tool_outputs(run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "rain"))
    settled(client, run)
    include: Any = ["step_details.tool_calls[*].file_search.results[*].content"]
    assert len(list(client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, limit=1, include=include))) > 1


def get_step(client: Client) -> None:
    run = asked(client, "hello")
    step = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data[0]
    client.beta.threads.runs.steps.retrieve(step.id, thread_id=run.thread_id, run_id=run.id)


def delete_model(client: Client) -> None:
    with pytest.raises(openai.BadRequestError):
        client.models.delete("scripted")


def list_threads(client: Client) -> None:
    client.beta.threads.create(metadata={"k": "v"})
    page = client.get("/threads?limit=1&metadata[k]=v&created_at[gte]=1", cast_to=httpx2.Response).json()
    assert (len(page["data"]), page["data"][0]["metadata"]) == (1, {"k": "v"})
    assert client.get(f"/threads?before={page['first_id']}&order=asc", cast_to=httpx2.Response).json()["data"]


def fork_threads(client: Client) -> None:
    run = asked(client, "hello")
    question = client.beta.threads.messages.list(run.thread_id, order="asc").data[0]
    for body in ({}, {"message_id": question.id, "metadata": {"k": "v"}}):
        fork = client.post(f"/threads/{run.thread_id}/fork", body=body, cast_to=Thread)
        client.beta.threads.messages.list(fork.id)


def retry_runs(client: Client) -> None:
    run = asked(client, "break")
    path = f"/threads/{run.thread_id}/runs/{run.id}/retry"
    assert settled(client, client.post(path, cast_to=Run)).status == "failed"
    answer = client.post(path, body={"stream": True}, cast_to=httpx2.Response)
    assert answer.headers["content-type"].startswith("text/event-stream")


def follow_runs(client: Client) -> None:
    for question in ("hello", "break"):
        run = asked(client, question)
        path = f"/threads/{run.thread_id}/runs/{run.id}/events"
        client.get(path, cast_to=httpx2.Response)
        client.get(path, cast_to=httpx2.Response, options={"headers": {"Last-Event-ID": "1"}})


def create_files(client: Client) -> None:
    client.files.create(file=b"some text", purpose="assistants")
    expires: Any = {"anchor": "created_at", "seconds": 3600}
    client.files.create(file=("a.csv", b"a,b"), purpose="user_data", expires_after=expires)
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=b"x", purpose=cast("Any", "world_domination"))


def list_files(client: Client) -> None:
    made = [client.files.create(file=b"x", purpose="batch") for _ in range(3)]
    assert list(client.files.list(purpose="batch", limit=1))[:3] == made[::-1]
    assert client.files.list(purpose="fine-tune", order="asc").data == []


def download_file(client: Client) -> None:
    file_id = client.files.create(file=("data", b"some bytes"), purpose="assistants").id
    assert client.files.content(file_id).read() == b"some bytes"
    part = client.files.content(file_id, extra_headers={"range": "bytes=5-"})
    assert (part.response.status_code, part.read()) == (206, b"bytes")
    with pytest.raises(openai.APIStatusError, match="not within"):
        client.files.content(file_id, extra_headers={"range": "bytes=10-"})


def with_file(act: Callable[[Client, str], object]) -> Callable[[Client], object]:
    return lambda client: act(client, client.files.create(file=b"x", purpose="vision").id)


def upload_in_parts(client: Client) -> None:
    for number in (1, 2):
        upload = client.uploads.create(filename="a.txt", purpose="assistants", bytes=6 * number, mime_type="text/plain")
        parts = [client.uploads.parts.create(upload.id, data=b"sixbyt") for _ in range(number)]
        done = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
        assert done.file is not None
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[])


def cancel_upload(client: Client) -> None:
    upload = client.uploads.create(filename="a.txt", purpose="batch", bytes=6, mime_type="text/plain")
    assert client.uploads.cancel(upload.id).status == "cancelled"


def with_assistant(act: Callable[[Client, str], object]) -> Callable[[Client], object]:
    return lambda client: act(client, client.beta.assistants.create(model="gpt-4o", **FULL).id)


def with_thread(act: Callable[[Client, str], object]) -> Callable[[Client], object]:
    return lambda client: act(client, client.beta.threads.create(metadata={"k": "v"}).id)


WALK: dict[str, Callable[[Client], object]] = {
    "createAssistant": create_assistants,
    "listAssistants": lambda client: [client.beta.assistants.list(), client.beta.assistants.list(limit=1, order="asc")],
    "getAssistant": with_assistant(lambda client, one: client.beta.assistants.retrieve(one)),
    "modifyAssistant": modify_assistants,
    "deleteAssistant": with_assistant(lambda client, one: client.beta.assistants.delete(one)),
    "createThread": create_threads,
    "getThread": with_thread(lambda client, one: client.beta.threads.retrieve(one)),
    "modifyThread": modify_thread,
    "deleteThread": with_thread(lambda client, one: client.beta.threads.delete(one)),
    "createMessage": create_messages,
    "listMessages": list_messages,
    "getMessage": with_message(
        lambda client, thread, one: client.beta.threads.messages.retrieve(one, thread_id=thread)
    ),
    "modifyMessage": with_message(
        lambda client, thread, one: client.beta.threads.messages.update(one, thread_id=thread, metadata={"k": "v"})
    ),
    "deleteMessage": with_message(
        lambda client, thread, one: client.beta.threads.messages.delete(one, thread_id=thread)
    ),
    "createRun": create_runs,
    "createThreadAndRun": create_threads_and_runs,
    "getRun": get_runs,
    "listRuns": list_runs,
    "modifyRun": modify_run,
    "cancelRun": cancel_runs,
    "submitToolOuputsToRun": submit_outputs,
    "listRunSteps": list_steps,
    "getRunStep": get_step,
    "listModels": lambda client: client.models.list(),
    "retrieveModel": lambda client: client.models.retrieve("scripted"),
    "deleteModel": delete_model,
    "createFile": create_files,
    "listFiles": list_files,
    "retrieveFile": with_file(lambda client, one: client.files.retrieve(one)),
    "deleteFile": with_file(lambda client, one: client.files.delete(one)),
    "downloadFile": download_file,
    "createUpload": upload_in_parts,
    "addUploadPart": upload_in_parts,
    "completeUpload": upload_in_parts,
    "cancelUpload": cancel_upload,
    "listThreads": list_threads,
    "forkThread": fork_threads,
    "retryRun": retry_runs,
    "followRunEvents": follow_runs,
    **STORE_WALK,
}
IDS = [one.operation_id for one in OPERATIONS]
HOSTED_OPERATIONS = [one for one in OPERATIONS if not one.extension]


def walked(operation: Operation, client: Client, seen: list[Seen], described: Described) -> list[Seen]:
    """Call an operation; return all answers on the way, which must have been some of it."""
    assert operation.operation_id in WALK, "the walk does not know this operation: add it to WALK"
    WALK[operation.operation_id](client)
    met = {described.operation(one.method, one.path)[0] for one in seen}
    assert operation.operation_id in met
    return seen


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_every_answer_is_as_the_server_describes_it(
    operation: Operation, client: Client, seen: list[Seen], described: Described
) -> None:
    for one in walked(operation, client, seen, described):
        assert described.faults(one) == [], one.text


def test_the_walk_has_no_operation_too_many() -> None:
    assert set(WALK) == set(IDS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_refusals_are_as_described(operation: Operation, url: str, described: Described) -> None:
    ids = {
        "assistant_id": "asst_0",
        "thread_id": "thread_0",
        "message_id": "msg_0",
        "run_id": "run_0",
        "step_id": "step_0",
        "vector_store_id": "vs_0",
        "file_id": "file-0",
        "batch_id": "vsfb_0",
        "upload_id": "upload_0",
    }
    good = operation.path.replace(":path", "").format(**ids, model="none")
    wrong = operation.path.replace(":path", "").format(**dict.fromkeys(ids, "x"), model="none")
    key = {"authorization": "Bearer k"}
    with httpx2.Client(base_url=url) as plain:
        for path, headers, content in [
            (good, key, b"{}"),
            (wrong, key, b"{}"),
            (good, {}, b"{}"),
            (good, key, b"{"),
            (f"{good}?limit=0", key, b'{"x": 1}'),
            (f"{good}?after=nothing", key, b"[]"),
        ]:
            answer = plain.request(operation.method, path, headers=headers, content=content)
            kind, route = answer.headers["content-type"], path.partition("?")[0]
            one = Seen(operation.method, route, answer.status_code, kind, answer.text)
            assert described.faults(one) == []


# -- OpenAI's own specification

EMPTY = "an empty page has no ids: the hosted server sent null [recorded], and clients read it so"
NEVER = "a store that never expires says null, as recordings show of the hosted server, and clients read it so"
SMALL = "caps under the specification's 256 are taken, as recordings show of the hosted server"
RAW = "the specification calls the bytes of a file a JSON string; the hosted server sent the bytes"
NULLS = "the hosted server sent null where a file has none [recorded], and clients read it so"
DIFFERENCES = {
    ("expires_at", 'null is not of type "integer"'): NULLS,
    ("status_details", 'null is not of type "string"'): NULLS,
    ("", "application/octet-stream is not described"): RAW,
    ("", "the status 206 is not described"): "a part of a file, for who asks for a range",
    ("", "the status 416 is not described"): "a range that the file does not have",
    ("first_id", 'null is not of type "string"'): EMPTY,
    ("last_id", 'null is not of type "string"'): EMPTY,
    ("expires_after", 'null is not of type "object"'): NEVER,
    ("max_completion_tokens", "1 is not valid under any of the schemas listed in the 'anyOf' keyword"): SMALL,
}
"""Where an answer differs from OpenAI's specification on purpose: the field, how it differs, and why."""


def hosted_document() -> Json:
    """Return OpenAI's specification with the events where ours has them, and `nullable` in today's words."""
    document: Json = _nullable(json.loads(HOSTED.read_text(encoding="utf-8")))
    schemas = document["components"]["schemas"]
    events: Json = {}
    for kind in ("Thread", "Run", "RunStep", "Message"):
        whole = schemas[f"{kind}StreamEvent"]
        for event in whole.get("oneOf", [whole]):
            events[event["properties"]["event"]["enum"][0]] = event["properties"]["data"]
    events |= {"error": schemas["Error"], "done": {"const": "[DONE]"}}
    for path in document["paths"].values():
        for operation in path.values():
            content = operation["responses"]["200"]["content"]
            content["text/event-stream"] = {"x-events": events}
            refusal = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}}
            operation["responses"] |= dict.fromkeys(("400", "404"), refusal)
    return document


def _nullable(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_nullable(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _nullable(one) for name, one in schema.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


@pytest.fixture(scope="module")
def hosted() -> Described:
    if not HOSTED.is_file():
        pytest.skip(f"OpenAI's specification is not at hand ({HOSTED.name} beside the repository)")
    return Described(hosted_document(), exact=False)


@pytest.mark.parametrize("operation", HOSTED_OPERATIONS, ids=[one.operation_id for one in HOSTED_OPERATIONS])
def test_every_answer_is_as_openai_described_it(
    operation: Operation, client: Client, seen: list[Seen], hosted: Described
) -> None:
    faults: set[Fault] = set()
    for one in walked(operation, client, seen, hosted):
        faults |= set(hosted.faults(one))
    assert {one for one in faults if (one.instance.rpartition("/")[2], one.message) not in DIFFERENCES} == set()


def test_streams_keep_their_frames(client: Client, seen: list[Seen]) -> None:
    create_runs(client)
    streams = [list(events_of(one.text)) for one in seen if one.content_type.startswith("text/event-stream")]
    assert len(streams) == 7
    for events in streams:
        numbers = [event.number for event in events[:-1]]
        assert None not in numbers
        assert numbers == sorted(set(numbers))  # type: ignore[type-var]
        assert (events[-1].name, events[-1].number) == ("done", None)
