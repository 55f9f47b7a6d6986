"""Files: upload, list, retrieve, content, delete, and what names them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types import FileObject

from tests.api.scenes import refused
from tests.api.test_keys import create_key
from tests.server import Client, running_server

KEY = {"authorization": "Bearer k"}
PURPOSES: list[Any] = ["fine-tune", "assistants", "batch", "user_data", "vision"]
"""`evals` is taken too, but the official client's own types do not know a file of that purpose."""


@pytest.fixture
def plain(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers=KEY) as one:
        yield one


def new_file(client: Client, content: bytes = b"some text", name: str = "a.txt", **more: Any) -> FileObject:
    return client.files.create(**{"file": (name, content), "purpose": "assistants", **more})


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """Check a refusal with its twin, and return it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "detail"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert body["detail"] == {"message": error["message"], "code": error["code"]}
    return error


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_file_as_recorded(client: Client, purpose: Any) -> None:
    file = new_file(client, purpose=purpose)
    assert re.fullmatch("file-[A-Za-z0-9]{22}", file.id)
    raw = client.files.with_raw_response.retrieve(file.id).http_response.json()
    expected = {
        "object": "file",
        "id": file.id,
        "purpose": purpose,
        "filename": "a.txt",
        "bytes": 9,
        "created_at": file.created_at,
        "expires_at": None,
        "status": "processed",
        "status_details": None,
    }
    assert list(raw.items()) == list(expected.items())
    assert client.files.wait_for_processing(file.id, poll_interval=0.01) == file


@pytest.mark.parametrize("content", [b"", b"x", b"\r\n--", os.urandom(3_333_333), b"\r\n" * 70_000], ids=len)
def test_what_goes_in_comes_out(client: Client, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.bin"
    path.write_bytes(content)
    file = client.files.create(file=path, purpose="assistants")
    assert (file.bytes, file.filename) == (len(content), "some.bin")
    answer = client.files.content(file.id)
    assert answer.read() == content
    assert answer.response.headers["content-length"] == str(len(content))
    with client.files.with_streaming_response.content(file.id) as streamed:
        assert b"".join(streamed.iter_bytes(4096)) == content


def test_the_answer_to_a_download_tells_name_and_type(client: Client, plain: httpx2.Client) -> None:
    file = new_file(client, b"a,b", '표 "1".csv')
    for answer in (plain.get(f"/files/{file.id}/content"), plain.head(f"/files/{file.id}/content")):
        assert answer.headers["content-type"] == "text/csv"
        assert answer.headers["content-length"] == "3"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"] == (
            "attachment; filename=\"_ _1_.csv\"; filename*=UTF-8''%ED%91%9C%20%221%22.csv"
        )
    assert plain.head(f"/files/{file.id}/content").content == b""
    nameless = new_file(client, b"x", "data")
    assert plain.get(f"/files/{nameless.id}/content").headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("asked", "status", "content", "shown"),
    [
        ("bytes=0-3", 206, b"0123", "bytes 0-3/10"),
        ("bytes=4-", 206, b"456789", "bytes 4-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=9-99", 206, b"9", "bytes 9-9/10"),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("bytes=x-", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_a_range_of_a_file(
    client: Client, plain: httpx2.Client, asked: str, status: int, content: bytes, shown: str | None
) -> None:
    file = new_file(client, b"0123456789")
    answer = plain.get(f"/files/{file.id}/content", headers={"range": asked})
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, content, shown)


@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=5-4", "bytes=-0", "bytes=99999-"])
def test_a_range_that_is_not_there(client: Client, plain: httpx2.Client, asked: str) -> None:
    file = new_file(client, b"0123456789")
    error = error_of(plain.get(f"/files/{file.id}/content", headers={"range": asked}), 416)
    assert "not within the file's 10 bytes" in error["message"]


def test_lists(tmp_path: Path) -> None:
    with running_server(tmp_path / "data") as url, Client(url) as client:
        empty = client.files.list()
        raw = client.files.with_raw_response.list().http_response.json()
        assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
        assert empty.data == []
        made = [new_file(client, b"%d" % number, purpose=PURPOSES[number % 2]) for number in range(7)]
        assert list(client.files.list()) == made[::-1]
        assert list(client.files.list(order="asc", limit=2)) == made
        assert list(client.files.list(purpose="assistants", order="asc", limit=1)) == made[1::2]
        assert client.files.list(purpose="nothing").data == []
        assert client.files.list(limit=10_000, extra_query={"before": made[0].id}).data == made[::-1]
        page = client.files.list(limit=3)
        client.files.delete(page.data[-1].id)
        assert page.get_next_page().data == made[3::-1][:3]
        assert refused_twice(client.files.list, limit=10_001).param == "limit"
        assert refused_twice(client.files.list, after="file-none").param == "after"


def refused_twice(call: Any, *args: Any, **named: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        call(*args, **named)
    error_of(caught.value.response, 400)
    return caught.value


def test_a_file_that_is_not_there(client: Client, plain: httpx2.Client) -> None:
    gone = new_file(client)
    deleted = client.files.delete(gone.id)
    assert deleted.to_dict() == {"object": "file", "deleted": True, "id": gone.id}
    for file_id in (gone.id, "fake_id", "file-\N{HANGUL SYLLABLE GA}", "file-%00"):
        shown = file_id.replace("%00", "\N{REPLACEMENT CHARACTER}")
        for answer in (
            plain.get(f"/files/{file_id}"),
            plain.delete(f"/files/{file_id}"),
            plain.get(f"/files/{file_id}/content"),
        ):
            error = error_of(answer, 404)
            assert (error["message"], error["param"], error["code"]) == (f"No such File object: {shown}", "id", None)


def test_an_unknown_purpose_in_the_recorded_words(client: Client) -> None:
    error = refused_twice(client.files.create, file=b"x", purpose="world_domination")
    assert error.response.json()["error"] == {
        "message": "'world_domination' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', 'vision', "
        "'evals'] - 'purpose'",
        "type": "invalid_request_error",
        "param": "purpose",
        "code": None,
    }


def test_expiry_is_told(client: Client) -> None:
    file = new_file(client, expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file


@pytest.mark.parametrize(
    ("after", "param", "says"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "seconds", "Expected a value >= 3600, but got 3599"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "seconds", "Expected a value <= 2592000, but got 2592001"),
        ({"anchor": "created_at", "seconds": "soon"}, "seconds", "expected an integer, but got a string"),
        ({"anchor": "last_active_at", "seconds": 3600}, "anchor", "Supported values are"),
        ({"anchor": "created_at"}, "seconds", "Missing required parameter"),
        ({"seconds": 3600}, "anchor", "Missing required parameter"),
    ],
)
def test_an_expiry_that_can_not_be(client: Client, after: Any, param: str, says: str) -> None:
    error = refused_twice(new_file, client, expires_after=after)
    assert (error.param, says in error.message) == (f"expires_after.{param}", True), error.message


def test_the_hosted_refusal_of_downloads_is_a_setting(tmp_path: Path) -> None:
    with running_server(tmp_path / "data", refuse_downloads=True) as url, Client(url) as client:
        for purpose in ("assistants", "user_data"):
            file = new_file(client, purpose=purpose)
            error = refused_twice(client.files.content, file.id)
            assert error.response.json()["error"]["message"] == f"Not allowed to download files of purpose: {purpose}"
        assert client.files.content(new_file(client, purpose="vision").id).read() == b"some text"


def test_a_beta_header_is_never_asked_for(tmp_path: Path) -> None:
    with running_server(tmp_path / "data", require_beta_header=True) as url, Client(url) as client:
        assert client.files.content(new_file(client).id).read() == b"some text"


def test_azures_clients_upload_too(url: str) -> None:
    azure: Any = openai.AzureOpenAI(
        azure_endpoint=url.removesuffix("/v1"), api_key="k", api_version="2024-05-01-preview"
    )
    with azure as client:
        file = client.files.create(file=("a.txt", b"hello"), purpose="assistants")
        assert client.files.content(file.id).read() == b"hello"
        assert client.files.delete(file.id).deleted


def test_files_belong_to_a_project(tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = [create_key(data), create_key(data, "other")]
    with running_server(data) as url, Client(url, keys[0]) as mine, Client(url, keys[1]) as theirs:
        file = new_file(mine)
        for call in (theirs.files.retrieve, theirs.files.delete, theirs.files.content):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
        assert theirs.files.list().data == []
        resources: Any = {"code_interpreter": {"file_ids": [file.id]}}
        assert refused(theirs.beta.threads.create, tool_resources=resources).status == 404
        upload = mine.uploads.create(filename="a", purpose="batch", bytes=1, mime_type="text/plain")
        with pytest.raises(openai.NotFoundError):
            theirs.uploads.parts.create(upload.id, data=b"x")
        with pytest.raises(openai.NotFoundError):
            theirs.uploads.cancel(upload.id)
        assert mine.files.content(file.id).read() == b"some text"


# -- what names files


def resources_of(*file_ids: str) -> Any:
    return {"code_interpreter": {"file_ids": list(file_ids)}}


def test_a_deleted_file_is_taken_out_of_all_that_names_it(client: Client) -> None:
    kept, gone = new_file(client).id, new_file(client).id
    assistants, threads = client.beta.assistants, client.beta.threads
    made = assistants.create(model="m", tool_resources=resources_of(gone, kept), tools=[{"type": "code_interpreter"}])
    changed = assistants.create(model="m")
    assistants.update(changed.id, tool_resources=resources_of(gone))
    thread = threads.create(tool_resources=resources_of(kept, gone))
    fork = client.post(f"/threads/{thread.id}/fork", body={}, cast_to=httpx2.Response).json()["id"]
    without = threads.create(tool_resources=resources_of(gone))
    threads.update(without.id, tool_resources=resources_of(kept))
    client.files.delete(gone)
    for one, left in (
        (assistants.retrieve(made.id), [kept]),
        (assistants.retrieve(changed.id), []),
        (threads.retrieve(thread.id), [kept]),
        (threads.retrieve(fork), [kept]),
        (threads.retrieve(without.id), [kept]),
    ):
        resources: Any = one.tool_resources
        assert resources.code_interpreter.file_ids == left
    threads.delete(without.id)
    assistants.delete(made.id)
    client.files.delete(kept)
    named: Any = threads.retrieve(thread.id).tool_resources
    assert named.code_interpreter.file_ids == []


def test_unknown_files_are_refused_wherever_they_are_named(client: Client) -> None:
    known = new_file(client).id
    thread = client.beta.threads.create()
    assistant = client.beta.assistants.create(model="m")
    unknown: Any = resources_of(known, "file-9")
    attached: Any = {"role": "user", "content": "x", "attachments": [{"file_id": "file-9", "tools": []}]}
    image: Any = {"role": "user", "content": [{"type": "image_file", "image_file": {"file_id": "file-9"}}]}
    threads = client.beta.threads
    calls: list[tuple[Any, dict[str, Any]]] = [
        (client.beta.assistants.create, {"model": "m", "tool_resources": unknown}),
        (client.beta.assistants.update, {"assistant_id": assistant.id, "tool_resources": unknown}),
        (threads.create, {"tool_resources": unknown}),
        (threads.update, {"thread_id": thread.id, "tool_resources": unknown}),
        (threads.create, {"messages": [attached]}),
        (threads.messages.create, {"thread_id": thread.id, **attached}),
        (threads.messages.create, {"thread_id": thread.id, **image}),
        (threads.create_and_run, {"assistant_id": assistant.id, "thread": {"messages": [image]}}),
        (threads.create_and_run, {"assistant_id": assistant.id, "tool_resources": unknown}),
        (
            threads.runs.create,
            {"thread_id": thread.id, "assistant_id": assistant.id, "additional_messages": [attached]},
        ),
    ]
    for call, named in calls:
        assert refused(call, **named) == (404, "No such File object: file-9", "id", None)


def test_messages_with_files_come_back_as_they_were_sent(client: Client) -> None:
    file_id = new_file(client, purpose="vision", name="a.png").id
    text_id = new_file(client).id
    given: Any = [{"file_id": text_id, "tools": [{"type": "code_interpreter"}, {"type": "file_search"}]}]
    thread = client.beta.threads.create()
    message = client.beta.threads.messages.create(
        thread.id,
        role="user",
        content=[{"type": "image_file", "image_file": {"file_id": file_id}}, {"type": "text", "text": "x"}],
        attachments=given,
    )
    seen = client.beta.threads.messages.retrieve(message.id, thread_id=thread.id)
    assert seen == message
    assert seen.to_dict()["attachments"] == given
    shown: Any = seen.to_dict()["content"]
    assert shown[0] == {"type": "image_file", "image_file": {"file_id": file_id, "detail": "auto"}}
