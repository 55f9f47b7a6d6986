"""Keys: who gets in, and that a key sees its own project only."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from perdure.api.routes import OPERATIONS, Operation
from perdure.wire.messages import AddMessage, ModifyMessage
from perdure.wire.runs import CreateRun, ModifyRun, RetryRun, SubmitToolOutputs
from perdure.wire.search import SearchRequest
from perdure.wire.threads import ModifyThread
from perdure.wire.uploads import CompleteUpload
from perdure.wire.vector_stores import CreateFileBatch, CreateVectorStoreFile, RebuildVectorStore, UpdateAttributes
from tests.api.scenes import WEATHER, ask, asked, refused, settled, write_script
from tests.server import Client, running_server, server_process

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're accessing the API "
    "from your browser and are prompted for a username and password. You can obtain an API key from "
    "https://platform.openai.com/account/api-keys."
)


def perdure(*arguments: str, columns: int = 200) -> subprocess.CompletedProcess[str]:
    """Run the command line; the environment of the test run does not leak in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, "-m", "perdure", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, "COLUMNS": str(columns)},
    )


def create_key(data: Path, project: str = "default") -> str:
    done = perdure("keys", "create", "--data", str(data), "--project", project, "--name", f"for {project}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def key_ids(data: Path, columns: int = 200) -> list[str]:
    listed = perdure("keys", "list", "--data", str(data), columns=columns)
    return re.findall("key_[A-Za-z0-9]{24}", listed.stdout)


def get(url: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    return httpx2.get(f"{url}/assistants", headers=headers)


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


# -- an open server


def test_on_loopback_any_key_opens_until_one_is_made(url: str) -> None:
    for headers in (
        {"authorization": "Bearer anything"},
        {"authorization": "bearer  anything"},
        {"api-key": "anything"},
        basic("", "anything"),
    ):
        assert get(url, headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic"},
        {"authorization": "Basic %%%"},
        {"authorization": "Basic /////w=="},
        basic("user", ""),
        {"authorization": "Digest x"},
        {"api-key": ""},
    ],
    ids=repr,
)
def test_no_key_at_all_is_refused(url: str, headers: dict[str, str]) -> None:
    answer = get(url, headers)
    assert answer.status_code == 401
    assert answer.json()["error"] == {
        "message": NO_KEY,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_a_key_is_asked_for_before_anything_else(url: str) -> None:
    for method, path in (("POST", "/assistants"), ("GET", "/threads/new"), ("GET", "/models"), ("POST", "/threads")):
        assert httpx2.request(method, url + path, content=b"{").status_code == 401


# -- keys made, listed and revoked while the server runs


def test_keys_take_effect_in_a_running_server_at_once(data: Path) -> None:
    with running_server(data) as url, Client(url, "whatever") as anybody:
        mine = anybody.beta.assistants.create(model="m")
        key = create_key(data)
        with pytest.raises(openai.AuthenticationError):
            anybody.beta.assistants.retrieve(mine.id)
        with Client(url, key) as client:
            assert client.beta.assistants.retrieve(mine.id) == mine
        for headers in ({"api-key": key}, basic("", key), basic("anybody", key)):
            assert get(url, headers).status_code == 200
        listed = perdure("keys", "list", "--data", str(data))
        assert (listed.returncode, key in listed.stdout, "for default" in listed.stdout) == (0, False, True)
        (key_id,) = key_ids(data)
        second = create_key(data)
        assert perdure("keys", "revoke", key_id, "--data", str(data)).returncode == 0
        assert get(url, {"authorization": f"Bearer {key}"}).status_code == 401
        assert get(url, {"authorization": f"Bearer {second}"}).status_code == 200
        again = perdure("keys", "revoke", key_id, "--data", str(data))
        assert (again.returncode, again.stderr.count("\n")) == (2, 1)
        assert "perdure keys list" in again.stderr


def test_the_door_stays_shut_when_the_only_key_is_revoked(data: Path) -> None:
    create_key(data)
    (key_id,) = key_ids(data)
    assert perdure("keys", "revoke", key_id, "--data", str(data)).returncode == 0
    with running_server(data) as url:
        assert get(url, {"authorization": "Bearer anything"}).status_code == 401


def test_the_list_shows_whole_ids_in_a_pipe_or_a_narrow_terminal(data: Path) -> None:
    create_key(data)
    assert len(key_ids(data, columns=80)) == 1


# -- binding beyond loopback


def test_binding_elsewhere_needs_a_key(data: Path) -> None:
    flags = ("serve", "--data", str(data), "--builtin-model", "scripted", "--port", "0")
    done = perdure(*flags, "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "perdure: refusing to bind 0.0.0.0 without a key: run `perdure keys create` first, or bind 127.0.0.1\n"
    )
    key = create_key(data)
    with server_process(data, host="0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert get(url, {"authorization": "Bearer anything"}).status_code == 401
        assert get(url, {"authorization": f"Bearer {key}"}).status_code == 200


# -- two projects


class Neighbours(msgspec.Struct):
    """A server with two projects; the first one's objects, by the names of path parameters."""

    url: str
    mine: Client
    theirs: Client
    ids: dict[str, str]
    their_ids: dict[str, str]


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    folder = tmp_path_factory.mktemp("projects")
    data = folder / "data"
    keys = [create_key(data, project) for project in ("mine", "theirs")]
    with (
        running_server(data, script=write_script(folder)) as url,
        Client(url, keys[0]) as mine,
        Client(url, keys[1]) as theirs,
    ):
        yield Neighbours(url, mine, theirs, objects_of(mine), objects_of(theirs))


def objects_of(client: Client) -> dict[str, str]:
    """Make one of each: a run that waits for outputs shows any cancel, submit or message that gets through."""
    run = asked(client, "weather")
    message = client.beta.threads.messages.list(run.thread_id).data[0]
    step = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data[0]
    file = client.files.create(file=("a.txt", b"words"), purpose="assistants")
    upload = client.uploads.create(filename="b.txt", purpose="assistants", bytes=5, mime_type="text/plain")
    store = client.vector_stores.create(name="store")
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[file.id], poll_interval_ms=20)
    return {
        "file_id": file.id,
        "upload_id": upload.id,
        "vector_store_id": store.id,
        "batch_id": batch.id,
        "assistant_id": run.assistant_id,
        "thread_id": run.thread_id,
        "message_id": message.id,
        "run_id": run.id,
        "step_id": step.id,
    }


def unknown(ids: dict[str, str]) -> dict[str, str]:
    """Return ids of the same kinds that nobody has."""
    return {name: re.sub("[A-Za-z0-9]{20,}$", "0" * 24, value) for name, value in ids.items()}


def everything(client: Client, ids: dict[str, str]) -> list[Any]:
    threads, thread_id = client.beta.threads, ids["thread_id"]
    return [
        client.beta.assistants.list().data,
        threads.retrieve(thread_id),
        threads.messages.list(thread_id).data,
        threads.runs.list(thread_id).data,
        threads.runs.steps.list(ids["run_id"], thread_id=thread_id).data,
        client.files.list().data,
        client.vector_stores.list().data,
        client.vector_stores.files.list(ids["vector_store_id"]).data,
        client.vector_stores.file_batches.retrieve(ids["batch_id"], vector_store_id=ids["vector_store_id"]),
    ]


def body_of(operation: Operation, ids: dict[str, str]) -> dict[str, Any] | None:
    """Return a body that would do its work if the ids were one's own."""
    bodies: dict[type, dict[str, Any]] = {
        AddMessage: {"role": "user", "content": "x"},
        ModifyMessage: {"metadata": {"stolen": "yes"}},
        CreateRun: {"assistant_id": ids["assistant_id"]},
        ModifyRun: {"metadata": {"stolen": "yes"}},
        RetryRun: {},
        SubmitToolOutputs: {"tool_outputs": []},
        ModifyThread: {"metadata": {"stolen": "yes"}},
        CompleteUpload: {"part_ids": ["part_0"]},
        CreateVectorStoreFile: {"file_id": ids["file_id"]},
        CreateFileBatch: {"file_ids": [ids["file_id"]]},
        UpdateAttributes: {"attributes": {"stolen": "yes"}},
        SearchRequest: {"query": "words"},
        RebuildVectorStore: {},
    }
    return bodies.get(operation.body, {"metadata": {"stolen": "yes"}}) if operation.body else None


WITH_IDS = [one for one in OPERATIONS if "{" in one.path and not one.path.startswith("/models")]
WITHOUT_IDS = {one.operation_id for one in OPERATIONS} - {one.operation_id for one in WITH_IDS}


def call(client: Client, operation: Operation, ids: dict[str, str]) -> httpx2.Response:
    body: dict[str, Any] = {"json": body_of(operation, ids)}
    if operation.file:
        body = {"files": {operation.file: ("a.txt", b"words")}}
    return httpx2.request(
        operation.method,
        f"{client.base_url}{operation.path.format(**ids)[1:]}",
        headers={"authorization": f"Bearer {client.api_key}"},
        **body,
    )


@pytest.mark.parametrize("operation", WITH_IDS, ids=lambda one: one.operation_id)
def test_anothers_object_is_as_unknown_as_one_that_is_not_there(neighbours: Neighbours, operation: Operation) -> None:
    before = everything(neighbours.mine, neighbours.ids)
    nothing = unknown(neighbours.ids)
    answer = call(neighbours.theirs, operation, neighbours.ids)
    reference = call(neighbours.theirs, operation, nothing)
    assert (answer.status_code, reference.status_code) == (404, 404)
    text = reference.text
    for name, value in nothing.items():
        text = text.replace(value, neighbours.ids[name])
    assert answer.text == text
    assert everything(neighbours.mine, neighbours.ids) == before


NESTED = [one for one in WITH_IDS if one.path.count("{") > 1]


@pytest.mark.parametrize("operation", NESTED, ids=lambda one: one.operation_id)
def test_anothers_object_is_not_found_through_ones_own_parent(neighbours: Neighbours, operation: Operation) -> None:
    names = [name for name in neighbours.ids if f"{{{name}}}" in operation.path]
    before = everything(neighbours.mine, neighbours.ids)
    for own in range(1, len(names)):
        mixed = {**neighbours.ids, **{name: neighbours.their_ids[name] for name in names[:own]}}
        assert call(neighbours.theirs, operation, mixed).status_code == 404
    assert everything(neighbours.mine, neighbours.ids) == before


def test_every_operation_without_ids_is_looked_at_here() -> None:
    """A new operation whose path names no object must be added to one of the tests below."""
    assert {
        *("createAssistant", "listAssistants", "createThread", "createThreadAndRun"),
        *("listModels", "retrieveModel", "deleteModel"),  # models belong to nobody
        "listThreads",
        *("createFile", "listFiles", "createUpload", "createVectorStore", "listVectorStores"),
    } == WITHOUT_IDS


def test_lists_show_ones_own_only(neighbours: Neighbours) -> None:
    ids = [one.id for one in neighbours.theirs.beta.assistants.list()]
    assert ids == [neighbours.their_ids["assistant_id"]]
    for cursor in ("after", "before"):
        refusal = refused(neighbours.theirs.beta.assistants.list, **{cursor: neighbours.ids["assistant_id"]})
        assert refusal.status == 400
        assert refusal == refused(neighbours.theirs.beta.assistants.list, **{cursor: "x"})._replace(
            message=refusal.message
        )


def test_the_list_of_threads_shows_ones_own_only(neighbours: Neighbours) -> None:
    neighbours.mine.beta.threads.update(neighbours.ids["thread_id"], metadata={"whose": "mine"})
    for query in ("", "?metadata[whose]=mine"):
        shown = neighbours.theirs.get(f"/threads{query}", cast_to=httpx2.Response).json()["data"]
        assert neighbours.ids["thread_id"] not in {one["id"] for one in shown}
        assert bool(shown) == (query == "")
    cursor = f"/threads?after={neighbours.ids['thread_id']}"
    assert refused(neighbours.theirs.get, cursor, cast_to=httpx2.Response).status == 400


def test_lists_of_files_and_vector_stores_show_ones_own_only(neighbours: Neighbours) -> None:
    theirs = neighbours.theirs
    assert neighbours.ids["file_id"] not in {one.id for one in theirs.files.list()}
    assert neighbours.ids["vector_store_id"] not in {one.id for one in theirs.vector_stores.list()}
    assert refused(theirs.files.list, after=neighbours.ids["file_id"]).status == 400
    assert refused(theirs.vector_stores.list, after=neighbours.ids["vector_store_id"]).status == 400


def test_anothers_file_and_vector_store_can_not_be_named(neighbours: Neighbours) -> None:
    theirs, ids = neighbours.theirs, neighbours.ids
    store: Any = {"file_search": {"vector_store_ids": [ids["vector_store_id"]]}}
    code: Any = {"code_interpreter": {"file_ids": [ids["file_id"]]}}
    image: Any = [{"type": "image_file", "image_file": {"file_id": ids["file_id"]}}]
    attached: Any = {"file_id": ids["file_id"], "tools": [{"type": "file_search"}]}
    for make, named in (
        (theirs.vector_stores.create, {"file_ids": [ids["file_id"]]}),
        (theirs.beta.assistants.create, {"model": "m", "tool_resources": store}),
        (theirs.beta.assistants.create, {"model": "m", "tool_resources": code}),
        (theirs.beta.threads.create, {"tool_resources": store}),
        (theirs.beta.threads.create, {"messages": [{"role": "user", "content": image}]}),
        (theirs.beta.threads.create, {"messages": [{"role": "user", "content": "x", "attachments": [attached]}]}),
    ):
        refusal = refused(make, **named)
        assert refusal.status == 404, named
    their_store = neighbours.their_ids["vector_store_id"]
    assert refused(theirs.vector_stores.files.create, their_store, file_id=ids["file_id"]).status == 404


def test_anothers_assistant_does_not_run(neighbours: Neighbours) -> None:
    missing = (404, f"No assistant found with id '{neighbours.ids['assistant_id']}'.", None, None)
    theirs: Any = neighbours.theirs.beta.threads
    named = {"assistant_id": neighbours.ids["assistant_id"]}
    thread = theirs.create(messages=[{"role": "user", "content": "x"}])
    for stream in (False, True):
        assert refused(theirs.create_and_run, **named, stream=stream) == missing
        assert refused(theirs.runs.create, thread.id, **named, stream=stream) == missing
    assert theirs.runs.list(thread.id).data == []


def test_anothers_run_does_not_filter_ones_own_messages(neighbours: Neighbours) -> None:
    theirs = neighbours.theirs.beta.threads.messages
    assert theirs.list(neighbours.their_ids["thread_id"], run_id=neighbours.ids["run_id"]).data == []


def test_what_one_makes_is_ones_own(neighbours: Neighbours) -> None:
    made = neighbours.theirs.beta.assistants.create(model="m", tools=[WEATHER])
    thread = neighbours.theirs.beta.threads.create()
    assert refused(neighbours.mine.beta.assistants.retrieve, made.id).status == 404
    assert refused(neighbours.mine.beta.threads.retrieve, thread.id).status == 404
    assert settled(neighbours.theirs, ask(neighbours.theirs, "hello")).status == "completed"
    neighbours.theirs.beta.assistants.delete(made.id)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("not-a-real-key-not-authorized", "not-a-re*****************ized"),
        ("sk-" + "x" * 200 + "abcd", "sk-xxxxx" + "*" * 24 + "abcd"),
        ("short", "*****"),
    ],
)
def test_a_wrong_key_is_refused_and_not_shown(neighbours: Neighbours, key: str, shown: str) -> None:
    answer = get(neighbours.url, {"authorization": f"Bearer {key}"})
    assert answer.status_code == 401
    text = f"Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com/account/api-keys."
    assert answer.json()["error"] == {
        "message": text,
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_api_key",
    }
    with Client(neighbours.url, key) as client, pytest.raises(openai.AuthenticationError):
        client.beta.threads.create()
