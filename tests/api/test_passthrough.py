"""Everything that is not Perdure's own goes through to an upstream: what is sent, what comes back, what never does."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec
import openai
import pytest

from perdure.app import open_database
from perdure.models.embeddings import embedder_installed
from perdure.models.scripted import Script, ScriptedServer
from perdure.settings import read_settings
from perdure.store.keys import DEFAULT_PROJECT, KeyRow, hash_key, insert_key
from tests.api.scenes import refused, text_of
from tests.server import Client, running_server, upstream_of

KEY = "sk-upstream-secret-0123456789"
OURS = "sk-perdure-own-key-987654321"

Message = dict[str, Any]


class Echo:
    """An upstream that remembers what it got and answers by the path's last part."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.step = threading.Semaphore(0)
        """A streamed answer takes one for each piece."""
        self.closed = threading.Event()
        self.arrived = threading.Event()
        """The first piece of a body is there."""

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        body, pieces, more = b"", 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.closed.set()
                return
            body += message.get("body", b"")
            pieces += bool(message.get("body"))
            more = message.get("more_body", False)
            if pieces:
                self.arrived.set()
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path, query = scope["path"], scope["query_string"].decode()
        raw_path = scope["raw_path"].decode()
        self.seen.append(
            {"method": scope["method"], "path": path, "raw": raw_path, "query": query, "headers": headers, "body": body}
        )
        last = path.rpartition("/")[2]
        if path == "/v1/models":
            await self._say(send, 200, b'{"object":"list","data":[{"id":"gpt-4o"},{"id":"mapped-model"}]}')
        elif last == "stream":
            await self._stream(receive, send)
        elif last == "break":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
            await send({"type": "http.response.body", "body": b"partly", "more_body": True})
            raise RuntimeError("broken off on purpose")
        elif last.isdigit():
            text = b'{"odd": ["body"], "said": "Incorrect key %s"}' % KEY.encode()
            await self._say(send, int(last), text, (b"retry-after", b"7"), (b"x-shown", KEY.encode()))
        else:
            await self._say(send, 200, b'{"ok":true,   "spaces" : 1}')

    async def _say(self, send: Any, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
        headers = [
            (b"content-type", b"application/json; odd=yes"),
            (b"x-request-id", b"req_upstream"),
            (b"openai-organization", b"org-upstream"),
            (b"set-cookie", b"a=b"),
            (b"x-ratelimit-remaining-requests", b"41"),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        gone = asyncio.ensure_future(receive())
        try:
            for number in range(3):
                while not self.step.acquire(blocking=False):
                    await asyncio.wait({gone}, timeout=0.005)
                    if gone.done():
                        self.closed.set()
                        return
                await send({"type": "http.response.body", "body": b"data: %d\n\n" % number, "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        finally:
            gone.cancel()


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def echo_url(echo: Echo) -> Iterator[str]:
    with upstream_of(echo) as url:
        yield url


@pytest.fixture(scope="module")
def url(echo_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data = tmp_path_factory.mktemp("passthrough") / "data"
    more = {"model_map": {"old-*": "mapped-model", "tiny": "builtin"}, "body_limit_bytes": 4096}
    with running_server(data, upstream_url=echo_url, upstream_key=KEY, **more) as base_url:
        yield base_url


@pytest.fixture
def web(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {OURS}"}) as one:
        yield one


@pytest.fixture(autouse=True)
def _forget(echo: Echo) -> None:
    echo.seen.clear()
    echo.closed.clear()
    echo.arrived.clear()


# What is sent


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_method_path_query_and_body_are_unchanged(web: httpx2.Client, echo: Echo, method: str) -> None:
    body = b"" if method in {"GET", "DELETE"} else b"\x00\xff bytes"
    kind = {"content-type": "application/x-odd", "x-mine": "kept", "user-agent": "me/1"}
    answer = web.request(method, "/some/th%2Fing/%41?a=1&b=%20&a=2", content=body, headers=kind)
    assert answer.status_code == 200
    [seen] = echo.seen
    assert (seen["method"], seen["path"], seen["query"], seen["body"]) == (
        method,
        "/v1/some/th/ing/A",
        "a=1&b=%20&a=2",
        body,
    )
    assert seen["raw"].startswith("/v1/some/th%2Fing/")
    assert {name: seen["headers"][name] for name in kind} == kind


def test_a_json_body_keeps_its_bytes(web: httpx2.Client, echo: Echo) -> None:
    body = b'{ "model" : "gpt-4o", "x": 1.50, "y": 12345678901234567890123 , "model2": null}'
    web.post("/responses", content=body, headers={"content-type": "application/json"})
    assert echo.seen[-1]["body"] == body


def test_only_the_models_name_is_changed_by_the_map(web: httpx2.Client, echo: Echo) -> None:
    body = b'{"a": [1.50,  2e400, 12345678901234567890123], "model": "old-3", "b": "\\u00e9"}'
    web.post("/responses", content=body, headers={"content-type": "application/json"})
    assert echo.seen[-1]["body"] == (
        b'{"a":[1.50,  2e400, 12345678901234567890123],"model":"mapped-model","b":"\\u00e9"}'
    )


def test_keys_and_accounts_stay_behind(web: httpx2.Client, echo: Echo) -> None:
    secret = {
        "api-key": OURS,
        "x-api-key": OURS,
        "cookie": f"session={OURS}",
        "openai-organization": "org-mine",
        "openai-project": "proj-mine",
        "connection": "keep-alive, x-hop",
        "x-hop": "1",
        "te": "trailers",
    }
    web.get("/batches", headers=secret)
    headers = echo.seen[-1]["headers"]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not set(headers) & (set(secret) - {"connection"})
    assert OURS not in str(headers)
    assert urlsplit(str(web.base_url)).netloc != headers["host"]


def test_a_multipart_upload_is_not_held(url: str, echo: Echo) -> None:
    """The upstream has the first piece before the client has sent the last; it is far over the JSON limit."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    part, end = b"y" * 65536, b"\r\n--x--\r\n"
    connection.putrequest("POST", "/v1/audio/transcriptions")
    connection.putheader("authorization", f"Bearer {OURS}")
    connection.putheader("content-type", "multipart/form-data; boundary=x")
    connection.putheader("content-length", str(len(head) + 8 * len(part) + len(end)))
    connection.endheaders(head)
    connection.send(part)
    assert echo.arrived.wait(30)
    assert echo.seen == []
    for _ in range(7):
        connection.send(part)
    connection.send(end)
    assert connection.getresponse().read().startswith(b'{"ok"')
    connection.close()
    [seen] = echo.seen
    assert seen["body"] == head + part * 8 + end
    assert seen["headers"]["content-length"] == str(len(seen["body"]))


def test_a_client_that_hangs_up_in_its_upload(url: str, echo: Echo) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.putrequest("POST", "/v1/audio/transcriptions")
    connection.putheader("authorization", f"Bearer {OURS}")
    connection.putheader("content-length", "1000000")
    connection.endheaders(b"z" * 70000)
    assert echo.arrived.wait(30)
    connection.close()
    assert echo.closed.wait(30)
    assert echo.seen == []


def test_json_over_the_limit(web: httpx2.Client, echo: Echo) -> None:
    answer = web.post("/responses", json={"model": "gpt-4o", "input": "x" * 5000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert echo.seen == []


def test_azures_deployments(url: str, echo: Echo) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=url.removesuffix("/v1"), api_key=OURS, api_version="2024-06-01", max_retries=0
    ) as client:
        client.with_raw_response.embeddings.create(model="old-7", input="x")
        client.with_raw_response.responses.create(model="gpt-4o", input="x")
    first, second = echo.seen
    assert (first["path"], first["query"], json.loads(first["body"])["model"]) == ("/v1/embeddings", "", "mapped-model")
    assert first["headers"]["authorization"] == f"Bearer {KEY}"
    assert "api-key" not in first["headers"]
    assert second["path"] == "/v1/responses"
    with httpx2.Client(base_url=url.removesuffix("/v1"), headers={"api-key": OURS}) as web:
        web.post("/openai/deployments/old-9/chat/completions?api-version=1&x=2", json={"messages": []})
    assert (echo.seen[-1]["query"], json.loads(echo.seen[-1]["body"])) == (
        "x=2",
        {"messages": [], "model": "mapped-model"},
    )


def test_names_of_upstreams_choose_them(echo_url: str, echo: Echo, data: Path) -> None:
    other = Echo()
    with upstream_of(other) as second:
        upstreams = {"second": {"url": f"{second}?api-version=9", "key": "sk-second"}}
        with (
            running_server(data, upstream_url=echo_url, upstreams=upstreams) as url,
            httpx2.Client(base_url=url) as web,
        ):
            web.headers["authorization"] = "Bearer x"
            web.post("/responses?q=1", json={"model": "second/some/model"})
            web.post("/moderations", json={"input": "x"})
    sent = [one for one in other.seen if one["path"] != "/v1/models"]
    assert [(one["query"], one["body"]) for one in sent] == [("api-version=9&q=1", b'{"model":"some/model"}')]
    assert sent[0]["headers"]["authorization"] == "Bearer sk-second"
    [first] = [one for one in echo.seen if one["path"] != "/v1/models"]
    assert first["path"] == "/v1/moderations"
    assert "authorization" not in first["headers"]


# What comes back


def test_the_answer_is_unchanged(web: httpx2.Client) -> None:
    answer = web.get("/fine_tuning/list")
    assert answer.content == b'{"ok":true,   "spaces" : 1}'
    assert answer.headers["content-type"] == "application/json; odd=yes"
    assert answer.headers["x-ratelimit-remaining-requests"] == "41"
    assert answer.headers["x-upstream-request-id"] == "req_upstream"
    assert answer.headers.get_list("x-request-id") != ["req_upstream"]
    assert len(answer.headers.get_list("x-request-id")) == len(answer.headers.get_list("date")) == 1
    assert not {"openai-organization", "set-cookie"} & set(answer.headers)


@pytest.mark.parametrize("status", [400, 401, 404, 418, 429, 500, 503])
def test_errors_come_through_without_the_upstreams_key(web: httpx2.Client, status: int) -> None:
    answer = web.post(f"/audio/{status}", content=b"x")
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["content-type"] == "application/json; odd=yes"
    assert answer.json() == {"odd": ["body"], "said": f"Incorrect key {'*' * len(KEY)}"}
    assert KEY not in str(answer.headers)


def test_a_stream_arrives_as_it_is_sent(web: httpx2.Client, echo: Echo) -> None:
    echo.step.release()
    with web.stream("POST", "/responses/stream", json={"model": "gpt-4o", "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        parts = answer.iter_raw()
        assert next(parts) == b"data: 0\n\n"  # the upstream sends the next one only now
        echo.step.release()
        assert next(parts) == b"data: 1\n\n"
        echo.step.release()
        assert b"".join(parts) == b"data: 2\n\ndata: [DONE]\n\n"


def test_hanging_up_closes_the_upstream(web: httpx2.Client, echo: Echo) -> None:
    echo.step.release()
    with web.stream("POST", "/responses/stream", json={"model": "gpt-4o"}) as answer:
        assert next(answer.iter_raw()) == b"data: 0\n\n"
        assert not echo.closed.is_set()
    assert echo.closed.wait(30)


def test_hanging_up_before_the_first_byte_closes_the_upstream(url: str, echo: Echo) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", "/v1/x/stream", b"multi", {"authorization": f"Bearer {OURS}"})
    assert echo.arrived.wait(30)
    connection.close()
    assert echo.closed.wait(30)


def test_an_answer_that_breaks_off_breaks_off(web: httpx2.Client) -> None:
    with pytest.raises(httpx2.RemoteProtocolError), web.stream("GET", "/x/break") as answer:
        answer.read()
    assert web.get("/x").status_code == 200


def test_an_upstream_that_is_not_there(data: Path) -> None:
    with running_server(data, upstream_url="http://127.0.0.1:9/v1", upstream_key=KEY) as url, Client(url) as client:
        for call in (
            lambda: client.moderations.create(input="x"),
            lambda: client.chat.completions.create(model="x", messages=[{"role": "user", "content": "x"}]),
            lambda: client.audio.transcriptions.create(model="x", file=("a", b"x")),
        ):
            with pytest.raises(openai.InternalServerError, match="can not be reached at") as caught:
                call()
            assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")


# What never goes through


@pytest.mark.parametrize(
    "path",
    [
        "/threads/thread_x/other",
        "/assistants/a/b",
        "//assistants",
        "/Threads/x",
        "/%61ssistants/a/b",
        "/files/x/other",
        "/uploads/x/other",
        "/vector_stores/vs_x/other",
        "/x/../assistants",
        "/x/%2e%2e/secret",
        "/x/..%2fsecret",
        "/deployments/m/threads",
        "/deployments/m/../x",
        "/",
    ],
)
def test_perdures_own_parts_and_climbing_paths(url: str, echo: Echo, path: str) -> None:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", f"/v1{path}", b"{}", {"authorization": f"Bearer {OURS}"})
    answer = connection.getresponse()
    assert (answer.status, set(json.loads(answer.read())) - {"detail"}) == (404, {"error"})
    connection.close()
    assert echo.seen == []


def test_without_a_key_nothing_goes_through(url: str, echo: Echo) -> None:
    with httpx2.Client(base_url=url) as web:
        answer = web.post("/responses", json={"model": "gpt-4o"})
    assert answer.status_code == 401
    assert echo.seen == []


async def _made_key(data: Path) -> str:
    database = await open_database(read_settings(data=data))
    try:
        shown = KeyRow("key_x", "default", "x", "sk-...", 1, None)
        await database.run(insert_key, shown, hash_key(OURS), DEFAULT_PROJECT)
    finally:
        await database.close()
    return OURS


def test_a_wrong_key_is_refused_once_there_are_keys(echo_url: str, echo: Echo, data: Path) -> None:
    key = asyncio.run(_made_key(data))
    with running_server(data, upstream_url=echo_url, upstream_key=KEY) as url:
        with Client(url, "wrong-key") as client, pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            client.moderations.create(input="x")
        assert echo.seen == []
        with httpx2.Client(base_url=url, auth=("", key)) as web:
            assert web.post("/moderations", json={"input": "x"}).status_code == 200
    assert echo.seen[-1]["headers"]["authorization"] == f"Bearer {KEY}"


def test_the_setting_limits_it_by_path(echo_url: str, data: Path) -> None:
    limited = {"upstream_url": echo_url, "passthrough": "chat/completions, images/*"}
    with running_server(data, **limited) as url, httpx2.Client(base_url=url) as web:
        web.headers["authorization"] = "Bearer x"
        assert web.post("/images/generations", json={}).status_code == 200
        assert web.post("/chat/completions", json={"model": "gpt-4o"}).status_code == 200
        for path in ("/responses", "/embeddings", "/chat/completions/x"):
            answer = web.post(path, json={"model": "gpt-4o"})
            assert answer.status_code == 404
            assert "PERDURE_PASSTHROUGH" in answer.json()["error"]["message"]
    with running_server(data, upstream_url=echo_url, passthrough="none") as url, Client(url) as client:
        assert refused(client.moderations.create, input="x").status == 404


def test_the_built_in_model_beside_an_upstream(url: str, echo: Echo) -> None:
    with Client(url) as client:
        for name in ("tiny", "scripted"):
            done = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}])
            assert (done.model, done.choices[0].message.content) == ("scripted", "You said: hi")
        refusal = refused(client.responses.create, model="tiny", input="x")
        assert (refusal.status, "serves only POST /chat/completions" in refusal.message) == (404, True)
        if embedder_installed():
            raw = client.embeddings.with_raw_response.create(model="universal-sentence-encoder", input="x")
            assert raw.http_response.json()["model"] == "universal-sentence-encoder"
    assert [one for one in echo.seen if one["path"] != "/v1/models"] == []


# A whole program


def test_a_program_that_mixes_everything_over_an_upstream(data: Path) -> None:
    script = msgspec.convert({"models": ["gpt-4o"]}, Script)
    upstream = ScriptedServer(script, key=KEY)
    with (
        upstream_of(upstream) as address,
        running_server(data, upstream_url=address, upstream_key=KEY) as url,
        Client(url, OURS) as client,
    ):
        question: Any = [{"role": "user", "content": "hi"}]
        chunks = client.chat.completions.create(model="gpt-4o", messages=question, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hi"
        assert client.chat.completions.create(model="gpt-4o", messages=question).model == "gpt-4o"
        assistant = client.beta.assistants.create(model="gpt-4o")
        thread = client.beta.threads.create(messages=question)
        with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
            stream.until_done()
            assert [text_of(one) for one in stream.get_final_messages()] == ["You said: hi"]
        missing = refused(client.embeddings.create, model="gpt-4o", input="x")
        assert missing.message == "Invalid URL (POST /v1/embeddings)"
    assert all(OURS not in str(one.headers) for one in upstream.requests)
