"""Bad input: whatever is sent, the answer is a clear 4xx in the error shape, and the server goes on."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.api.routes import OPERATIONS, Operation
from tests.postgres_server import postgres_server
from tests.server import running_server

BODY_LIMIT = 2 * 1024 * 1024
NOT_JSON = "We could not parse the JSON body of your request."
MESSAGES = "/threads/thread_none/messages"
RUNS = "/threads/thread_none/runs"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("bad") / "data"
    with running_server(data, body_limit_bytes=BODY_LIMIT, body_timeout_seconds=0.5) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def plain(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers={"authorization": "Bearer k"}, timeout=30) as one:
        yield one


@pytest.fixture(autouse=True)
def still_answers(plain: httpx2.Client) -> Iterator[None]:
    yield
    assert plain.get("/assistants").status_code == 200


def error_of(answer: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """Check the shape of a refusal and return what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
    body = answer.json()
    files = re.match("/v1/(files|uploads)", answer.request.url.path) is not None
    assert set(body) == ({"error", "detail"} if files else {"error"})
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b"{'model': 'm'}",
        b'{"model": "m",}',
        b'{"model": "m"} trailing',
        b'{"model": NaN}',
        b'{"model": "\xff\xfe"}',
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b'{"model": "\\ud800"}',
        b'{"model": "\\udc00\\ud800"}',
        b'{"model": "a\x00b"}',
        b'{"temperature": 1e999, "model": "m"}',
        b"\x00",
        b"model=m",
        b"--x\r\ncontent-disposition: form-data; name=model\r\n\r\nm\r\n--x--",
    ],
)
@pytest.mark.parametrize("path", ["/assistants", "/threads", MESSAGES, RUNS])
def test_what_is_not_json_is_refused(plain: httpx2.Client, path: str, body: bytes) -> None:
    error = error_of(plain.post(path, content=body))
    assert NOT_JSON in error["message"] or "1e999" in body.decode("latin-1")


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"5", b"null", b"true", b"1.5"])
def test_json_that_is_no_object_is_refused(plain: httpx2.Client, body: bytes) -> None:
    for path in ("/assistants", "/threads", "/threads/runs"):
        error = error_of(plain.post(path, content=body))
        assert (error["code"], error["message"].split(":")[0]) == ("invalid_type", "Invalid type for the request body")


FUNCTION = {"type": "function", "function": {"name": "f"}}
WRONG: list[tuple[str, Any, str]] = [
    ("/assistants", {}, "model"),
    ("/assistants", {"model": None}, "model"),
    ("/assistants", {"model": ""}, "model"),
    ("/assistants", {"model": 5}, "model"),
    ("/assistants", {"model": "m", "name": "x" * 257}, "name"),
    ("/assistants", {"model": "m", "description": "x" * 513}, "description"),
    ("/assistants", {"model": "m", "instructions": "x" * 300_000}, "instructions"),
    ("/assistants", {"model": "m", "tools": {}}, "tools"),
    ("/assistants", {"model": "m", "tools": [None]}, "tools[0]"),
    ("/assistants", {"model": "m", "tools": [{}]}, "tools[0].type"),
    ("/assistants", {"model": "m", "tools": [{"type": 5}]}, "tools[0].type"),
    ("/assistants", {"model": "m", "tools": [{"type": "function"}]}, "tools[0].function"),
    ("/assistants", {"model": "m", "tools": [{**FUNCTION, "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ("/assistants", {"model": "m", "tools": [{**FUNCTION, "function": {"name": ""}}]}, "tools[0].function.name"),
    (
        "/assistants",
        {"model": "m", "tools": [FUNCTION, {"type": "function", "function": {"name": "f", "parameters": []}}]},
        "tools[1].function.parameters",
    ),
    ("/assistants", {"model": "m", "tools": [FUNCTION] * 129}, "tools"),
    ("/assistants", {"model": "m", "tool_resources": []}, "tool_resources"),
    (
        "/assistants",
        {"model": "m", "tool_resources": {"code_interpreter": {"file_ids": [1]}}},
        "tool_resources.code_interpreter.file_ids[0]",
    ),
    ("/assistants", {"model": "m", "temperature": "warm"}, "temperature"),
    ("/assistants", {"model": "m", "temperature": -0.1}, "temperature"),
    ("/assistants", {"model": "m", "temperature": 10**40}, "temperature"),
    ("/assistants", {"model": "m", "top_p": True}, "top_p"),
    ("/assistants", {"model": "m", "reasoning_effort": "much"}, "reasoning_effort"),
    ("/assistants", {"model": "m", "response_format": 5}, "response_format"),
    ("/assistants", {"model": "m", "response_format": "json"}, "response_format"),
    ("/assistants", {"model": "m", "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("/assistants", {"model": "m", "metadata": []}, "metadata"),
    ("/assistants", {"model": "m", "metadata": {"a": None}}, "metadata.a"),
    ("/assistants", {"model": "m", "metadata": {"a": {"b": "c"}}}, "metadata.a"),
    ("/assistants", {"model": "m", "metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ("/assistants", {"model": "m", "metadata": {"k" * 65: ""}}, "metadata"),
    ("/assistants", {"model": "m", "metadata": {"k": "v" * 513}}, "metadata.k"),
    ("/assistants", {"model": "m", "modle": "m"}, "modle"),
    ("/assistants", {"model": "m", "file_ids": ["file-1"]}, "file_ids"),
    ("/assistants/asst_none", {"tools": "all"}, "tools"),
    ("/threads", {"messages": "hello"}, "messages"),
    ("/threads", {"messages": [{"role": "user"}]}, "messages[0].content"),
    ("/threads", {"messages": [{"content": "x"}]}, "messages[0].role"),
    ("/threads", {"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    ("/threads", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("/threads/thread_none", {"metadata": "x"}, "metadata"),
    (MESSAGES, {"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
    (MESSAGES, {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content[0].image_url.url"),
    (
        MESSAGES,
        {"role": "user", "content": "x", "attachments": [{"tools": [{"type": "x"}]}]},
        "attachments[0].tools[0].type",
    ),
    (RUNS, {"assistant_id": None}, "assistant_id"),
    (RUNS, {"assistant_id": "asst_1", "max_prompt_tokens": 0}, "max_prompt_tokens"),
    (RUNS, {"assistant_id": "asst_1", "max_completion_tokens": 1.5}, "max_completion_tokens"),
    (RUNS, {"assistant_id": "asst_1", "stream": "yes"}, "stream"),
    (RUNS, {"assistant_id": "asst_1", "truncation_strategy": {"type": "none"}}, "truncation_strategy.type"),
    ("/threads/runs", {"assistant_id": "asst_1", "thread": "thread_1"}, "thread"),
    ("/threads/runs", {"assistant_id": "asst_1", "thread": {"messages": [{}]}}, "thread.messages[0].role"),
    (f"{RUNS}/run_none/submit_tool_outputs", {}, "tool_outputs"),
    (f"{RUNS}/run_none/submit_tool_outputs", {"tool_outputs": [{"output": 5}]}, "tool_outputs[0].output"),
]


@pytest.mark.parametrize(("path", "body", "param"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_a_wrong_value_is_named(plain: httpx2.Client, path: str, body: Any, param: str) -> None:
    error = error_of(plain.post(path, json=body))
    assert error["param"] == param
    assert error["code"] is not None or "non-empty" in error["message"]


def test_huge_integers_and_nul_are_kept(plain: httpx2.Client) -> None:
    schema = {"type": "object", "maximum": 10**60, "minimum": -(10**60), "title": "a\x00b"}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    made = plain.post("/assistants", json={"model": "m\x00", "tools": [tool], "metadata": {"\x00": "\x00"}})
    assert made.status_code == 200, made.text
    again = plain.get(f"/assistants/{made.json()['id']}").json()
    assert again == made.json()
    assert again["tools"][0]["function"]["parameters"] == schema
    assert again["metadata"] == {"\x00": "\x00"}


@pytest.mark.parametrize("depth", [50, 500, 900, *range(970, 980), 1000, 5_000, 100_000])
def test_deep_nesting_is_taken_or_refused(plain: httpx2.Client, depth: int) -> None:
    nest = "[" * depth + "]" * depth
    tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {{"x": {nest}}}}}}}'
    for headers in ({}, {"openai-beta": "assistants=v1"}):
        answer = plain.post("/assistants", content=f'{{"model": "m", "tools": [{tool}]}}', headers=headers)
        if answer.status_code == 200:
            assistant_id = re.findall('"id":"(asst_[A-Za-z0-9]+)"', answer.text)[0]
            assert plain.get(f"/assistants/{assistant_id}").status_code == 200
            assert plain.post(f"/assistants/{assistant_id}", json={"name": "x"}).status_code in {200, 400}
            assert plain.get("/assistants?limit=1", headers=headers).status_code in {200, 400}
            plain.delete(f"/assistants/{assistant_id}")
        else:
            error_of(answer)
        error_of(plain.post("/threads", content='{"thread":' * depth + "1" + "}" * depth, headers=headers))
        error_of(plain.post("/threads", content='{"a":' * depth, headers=headers))


def test_a_body_over_the_limit_is_413(plain: httpx2.Client) -> None:
    at_limit = plain.post("/threads", content=b"{}".ljust(BODY_LIMIT))
    assert at_limit.status_code == 200
    over = error_of(plain.post("/threads", content=b"{}".ljust(BODY_LIMIT + 1)), 413)
    assert "PERDURE_BODY_LIMIT_BYTES" in over["message"]

    def pieces() -> Iterator[bytes]:
        for _ in range(BODY_LIMIT // 65536 + 1):
            yield b" " * 65536

    error_of(plain.post("/threads", content=pieces()), 413)


def conversation(url: str, request: bytes) -> bytes:
    """Send bytes as they are and read what comes until the server closes or is silent."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while piece := connection.recv(65536):
            received += piece
            head, _, body = received.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if length and len(body) >= int(length[1]):
                break
        return received


HEAD = b"POST /v1/threads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\ncontent-type: application/json\r\n"


def test_a_body_that_never_comes_is_408(url: str) -> None:
    answer = conversation(url, HEAD + b"content-length: 50\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "did not arrive" in error["message"]


def test_a_body_that_breaks_off_harms_nobody(url: str) -> None:
    where = urlsplit(url)
    for _ in range(3):
        with socket.create_connection((where.hostname or "", where.port or 0), timeout=10) as connection:
            connection.sendall(HEAD + b"content-length: 50\r\n\r\n{")


def test_a_length_that_is_too_short_cuts_the_body(url: str) -> None:
    answer = conversation(url, HEAD + b'content-length: 3\r\n\r\n{"metadata": {}}')
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert NOT_JSON.encode() in answer


@pytest.mark.parametrize("length", [b"-1", b"x", b"1e3", b"99999999999999999999999999"])
def test_a_length_that_is_none_is_refused(url: str, length: bytes) -> None:
    answer = conversation(url, HEAD + b"content-length: " + length + b"\r\n\r\n{}")
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)


def test_a_declared_length_over_the_limit_is_413_before_the_body(url: str) -> None:
    answer = conversation(url, HEAD + b"content-length: 999999999\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=101", "limit=x", "limit=1.5", "limit=1_0", "limit=%FF"]
)
@pytest.mark.parametrize("path", ["/assistants", MESSAGES, RUNS, f"{RUNS}/run_none/steps"])
def test_bad_limits(plain: httpx2.Client, path: str, query: str) -> None:
    assert error_of(plain.get(f"{path}?{query}"))["param"] == "limit"
    assert error_of(plain.get(f"{path}?limit={'9' * 6000}"))["param"] == "limit"


@pytest.mark.parametrize("query", ["order=up", "order=ASC", "order=asc%00"])
def test_bad_orders(plain: httpx2.Client, query: str) -> None:
    assert error_of(plain.get(f"/assistants?{query}"))["param"] == "order"


@pytest.mark.parametrize("cursor", ["asst_none", "%00", "%FF", "'; DROP TABLE assistants; --", "x" * 5000])
def test_bad_cursors(plain: httpx2.Client, cursor: str) -> None:
    for name in ("after", "before"):
        assert error_of(plain.get(f"/assistants?{name}={cursor}"))["param"] == name


def test_empty_query_values_count_as_absent(plain: httpx2.Client) -> None:
    assert plain.get("/assistants?limit=&order=&after=&before=&x=").status_code == 200


@pytest.mark.parametrize(
    "thread_id", ["thread_%00", "thread_%FF", "thread_%ED%A0%80", "thread_'--", "thread_" + "x" * 5000]
)
def test_odd_ids_are_unknown(plain: httpx2.Client, thread_id: str) -> None:
    assert error_of(plain.get(f"/threads/{thread_id}"), 404)["message"].startswith("No thread found with id 'thread_")
    assert error_of(plain.post(f"/threads/{thread_id}/messages", json={"role": "user", "content": "x"}), 404)


def test_a_nul_in_an_id_finds_nothing_on_postgres_either(tmp_path: Path) -> None:
    with (
        postgres_server() as database_url,
        running_server(tmp_path / "data", database_url=database_url) as base_url,
        httpx2.Client(base_url=base_url, headers={"authorization": "Bearer k"}) as one,
    ):
        text = {"role": "user", "content": "a\x00b", "metadata": {"\x00": "\x00"}}
        thread_id = one.post("/threads", json={"messages": [text]}).json()["id"]
        messages = one.get(f"/threads/{thread_id}/messages").json()["data"]
        assert messages[0]["content"][0]["text"]["value"] == "a\x00b"
        assert one.get(f"/threads/{thread_id}/messages?run_id=run_%00").json()["data"] == []
        error_of(one.get("/threads/thread_%00"), 404)
        error_of(one.get("/assistants?after=%00"))
        error_of(one.get(f"/threads/{thread_id}/messages?before=%00"))
        error_of(one.post(f"/threads/{thread_id}/runs", json={"assistant_id": "asst_\x00"}), 404)
        error_of(one.post("/threads/runs", json={"assistant_id": "asst_\x00"}), 404)


@pytest.mark.parametrize("thread_id", ["new", "%00", "%FF%FE", "msg_1", "THREAD_1", "null", "undefined"])
def test_wrong_prefixes(plain: httpx2.Client, thread_id: str) -> None:
    error = error_of(plain.get(f"/threads/{thread_id}/messages"))
    assert (error["param"], error["code"]) == ("thread_id", "invalid_value")
    assert error["message"].endswith("Expected an ID that begins with 'thread'.")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nope"),
        ("GET", "/assistants/"),
        ("GET", "/assistants/asst_1/nope"),
        ("POST", "/chat"),
        ("GET", "/%FF"),
        ("GET", "/../../etc/passwd"),
        ("GET", "//assistants"),
        ("POST", "/threads/thread_1/runs/run_1/steps/step_1/x"),
    ],
)
def test_unknown_paths(plain: httpx2.Client, method: str, path: str) -> None:
    error_of(plain.request(method, path), 404)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_methods_that_are_not_allowed(plain: httpx2.Client, method: str) -> None:
    for path in ("/assistants", "/threads/thread_1", RUNS, "/models"):
        error = error_of(plain.request(method, path), 405)
        assert error["message"].startswith(f"Not allowed to {method} on ")
    error_of(plain.request("DELETE", "/assistants"), 405)
    error_of(plain.request("GET", f"{RUNS}/run_1/cancel"), 405)


def test_odd_bodies_of_the_v1_era(plain: httpx2.Client) -> None:
    odd: list[Any] = [{"tools": 5}, {"tools": {"a": 1}}, {"messages": 5}, {"file_ids": 5}, {"thread": [1]}, [], 5]
    for body in odd:
        error_of(plain.post("/threads", json=body, headers={"openai-beta": "assistants=v1"}))


def test_a_body_where_none_is_wanted_is_ignored(plain: httpx2.Client) -> None:
    thread_id = plain.post("/threads").json()["id"]
    assert plain.request("GET", f"/threads/{thread_id}", content=b"{").status_code == 200
    error_of(plain.post(f"/threads/{thread_id}/runs/run_none/cancel", content=b"{"), 404)
    assert plain.request("DELETE", f"/threads/{thread_id}", content=b"{").status_code == 200


# -- anything at all


def fields_of(operation: Operation) -> list[str]:
    return [one.encode_name for one in msgspec.structs.fields(operation.body)] if operation.body else []


NAMES = sorted({name for one in OPERATIONS for name in fields_of(one)})
WORDS = [
    *("asst_none", "auto", "user", "assistant", "function", "file_search", "text", "image_url", "json_schema", "type"),
    *("name", "url", "file_id", "required", "last_messages", "tool_call_id", "output", "code_interpreter", ""),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(WORDS)
)
KEYS = st.sampled_from([*NAMES, *WORDS]) | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
POSTS = [one for one in OPERATIONS if one.method == "POST"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, Any]:
    """A POST operation with a body of anything, or of its own fields with anything in them."""
    operation = draw(st.sampled_from(POSTS))
    names = fields_of(operation)
    if not names or draw(st.booleans()):
        return operation.path, draw(JSON)
    return operation.path, draw(st.dictionaries(st.sampled_from(names), JSON, max_size=6))


@pytest.fixture(scope="module")
def ids(plain: httpx2.Client) -> dict[str, str]:
    """Objects that are there, so that bodies get past the path."""
    assistant = plain.post("/assistants", json={"model": "m"}).json()["id"]
    thread = plain.post("/threads", json={"messages": [{"role": "user", "content": "x"}]}).json()["id"]
    message = plain.get(f"/threads/{thread}/messages").json()["data"][0]["id"]
    run = plain.post(f"/threads/{thread}/runs", json={"assistant_id": assistant}).json()["id"]
    store = plain.post("/vector_stores").json()["id"]
    upload = plain.post("/uploads", json={"filename": "a", "purpose": "batch", "bytes": 1, "mime_type": "x"}).json()
    ids = {"assistant_id": assistant, "thread_id": thread, "message_id": message, "run_id": run}
    more = {"file_id": "file-none", "batch_id": "vsfb_none", "upload_id": upload["id"]}
    return {**ids, "vector_store_id": store, **more}


@settings(derandomize=True, max_examples=700, deadline=None, database=None)
@given(bodies())
def test_no_body_breaks_the_server(plain: httpx2.Client, ids: dict[str, str], sent: tuple[str, Any]) -> None:
    path, body = sent
    if isinstance(body, dict) and body.get("assistant_id") == "asst_none":
        body["assistant_id"] = ids["assistant_id"]
    content = json.dumps(body, ensure_ascii=False).encode()
    answer = plain.post(path.format(**ids), content=content)
    if answer.status_code != 200:
        assert 400 <= answer.status_code < 500, answer.text
        error_of(answer, answer.status_code)
