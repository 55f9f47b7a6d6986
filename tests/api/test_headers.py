"""Headers: what every answer carries, and what of a request counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.api.scenes import WEATHER, ask, settled
from tests.server import Client, running_server

RESULTS = "step_details.tool_calls[*].file_search.results[*].content"
NO_BETA = (
    "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by setting the header "
    "'OpenAI-Beta: assistants=v2'."
)
NO_V1 = (
    "The v1 Assistants API has been deprecated. Please try again by setting the header 'OpenAI-Beta: assistants=v2'. "
    "See the migration guide for more information: https://platform.openai.com/docs/assistants/migration."
)
V1 = {"openai-beta": "assistants=v1"}


@pytest.fixture(scope="module")
def plain(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, headers={"authorization": "Bearer k"}) as one:
        yield one


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A server that wants the beta header, as the hosted one did."""
    with (
        running_server(tmp_path_factory.mktemp("strict") / "data", require_beta_header=True) as base_url,
        httpx2.Client(base_url=base_url, headers={"authorization": "Bearer k"}) as one,
    ):
        yield one


def assert_headers(answer: httpx2.Response, content_type: str = "application/json") -> None:
    assert re.fullmatch("req_[0-9a-f]{32}", answer.headers["x-request-id"])
    assert answer.headers["openai-version"] == "2020-10-01"
    assert answer.headers["openai-processing-ms"].isdigit()
    assert answer.headers["content-type"] == content_type
    for name in ("x-request-id", "content-type", "openai-version", "openai-processing-ms"):
        assert len(answer.headers.get_list(name)) == 1


def test_every_answer_carries_them(plain: httpx2.Client) -> None:
    answers = [
        plain.get("/assistants"),
        plain.post("/threads"),
        plain.get("/models"),
        plain.get("/threads/thread_none"),
        plain.get("/nope"),
        plain.put("/threads"),
        plain.post("/threads", content=b"{"),
        plain.post("/threads", content=b" " * (33 * 1024 * 1024)),
        httpx2.get(f"{plain.base_url}assistants"),
    ]
    assert [one.status_code for one in answers] == [200, 200, 200, 404, 404, 405, 400, 413, 401]
    for answer in answers:
        assert_headers(answer)
    assert len({one.headers["x-request-id"] for one in answers}) == len(answers)


def test_a_stream_carries_them_too(plain: httpx2.Client) -> None:
    assistant = plain.post("/assistants", json={"model": "m"}).json()
    body = {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "x"}]}, "stream": True}
    with plain.stream("POST", "/threads/runs", json=body) as answer:
        text = answer.read().decode()
    assert_headers(answer, "text/event-stream; charset=utf-8")
    assert "content-length" not in answer.headers
    frames = text.split("\n\n")
    assert frames[-2:] == ["event: done\ndata: [DONE]", ""]
    for frame in frames[:-2]:
        assert re.match(r"event: thread\.[a-z_.]+\ndata: \{.*\}(\nid: \d+)?$", frame)


def test_the_client_shows_the_request_id(client: Client) -> None:
    thread = client.beta.threads.create()
    assert re.fullmatch("req_[0-9a-f]{32}", thread._request_id or "")


def test_runs_say_when_to_poll(client: Client) -> None:
    run = ask(client, "hello")
    runs = client.beta.threads.runs.with_raw_response
    answer: Any = runs.retrieve(run.id, thread_id=run.thread_id)
    assert answer.headers["openai-poll-after-ms"] == "100"
    settled(client, run)
    assert "openai-poll-after-ms" not in client.beta.threads.with_raw_response.retrieve(run.thread_id).headers


def test_head_has_the_headers_of_get_and_no_body(plain: httpx2.Client) -> None:
    answer = plain.head("/models")
    assert (answer.status_code, answer.content) == (200, b"")
    assert_headers(answer)


def test_health_needs_no_key(url: str) -> None:
    answer = httpx2.get(url.replace("/v1", "/health"))
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    "beta", [None, "assistants=v2", "assistants=v2,realtime=v1", "realtime=v1, assistants=v2", "x"]
)
def test_the_beta_header_may_be_missing(plain: httpx2.Client, beta: str | None) -> None:
    headers = {} if beta is None else {"openai-beta": beta}
    assert plain.get("/assistants", headers=headers).status_code == 200


def test_the_beta_header_can_be_demanded(strict: httpx2.Client) -> None:
    for path in ("/assistants", "/threads/thread_1", "/threads/thread_1/runs"):
        for headers in ({}, {"openai-beta": "realtime=v1"}):
            answer = strict.get(path, headers=headers)
            assert answer.status_code == 400
            assert answer.json()["error"] == {
                "message": NO_BETA,
                "type": "invalid_request_error",
                "param": None,
                "code": "invalid_beta",
            }
    for beta in ("assistants=v2", "realtime=v1,assistants=v2", "assistants=v1"):
        assert strict.get("/assistants", headers={"openai-beta": beta}).status_code == 200
    assert strict.get("/models").status_code == 200
    two = [("openai-beta", "realtime=v1"), ("openai-beta", "assistants=v2")]
    assert strict.get("/assistants", headers=two).status_code == 200


def test_the_official_client_passes_a_strict_server(strict: httpx2.Client) -> None:
    with Client(str(strict.base_url)) as client:
        assert settled(client, ask(client, "hello")).status == "completed"


# -- the v1 era


def test_v1_words_are_mapped_both_ways(plain: httpx2.Client) -> None:
    body = {"model": "m", "tools": [{"type": "retrieval"}, WEATHER], "file_ids": []}
    made = plain.post("/assistants", json=body, headers=V1)
    assert_headers(made)
    old = made.json()
    assert [tool["type"] for tool in old["tools"]] == ["retrieval", "function"]
    assert old["tools"][0] == {"type": "retrieval"}
    assert old["file_ids"] == []
    assert not {"tool_resources", "temperature", "top_p", "response_format"} & set(old)
    new = plain.get(f"/assistants/{old['id']}").json()
    assert [tool["type"] for tool in new["tools"]] == ["file_search", "function"]
    listed = plain.get("/assistants", headers=V1).json()
    assert listed["data"][0] == old
    assert (listed["object"], listed["first_id"]) == ("list", old["id"])


def test_a_conversation_of_the_v1_era(plain: httpx2.Client) -> None:
    assistant = plain.post("/assistants", json={"model": "m", "tools": [{"type": "retrieval"}]}, headers=V1).json()
    first = {"role": "user", "content": "hello", "file_ids": []}
    thread = plain.post("/threads", json={"messages": [first]}, headers=V1).json()
    assert "tool_resources" not in thread
    message = plain.post(f"/threads/{thread['id']}/messages", json=first, headers=V1).json()
    assert (message["file_ids"], "attachments" in message) == ([], False)
    run = {"assistant_id": assistant["id"], "tools": [{"type": "retrieval"}]}
    made = plain.post(f"/threads/{thread['id']}/runs", json=run, headers=V1)
    assert made.headers["openai-poll-after-ms"] == "100"
    assert (made.json()["file_ids"], made.json()["tools"]) == ([], [{"type": "retrieval"}])
    both = {"assistant_id": assistant["id"], "thread": {"messages": [first]}}
    assert plain.post("/threads/runs", json=both, headers=V1).json()["status"] == "queued"


def test_a_stream_of_the_v1_era(plain: httpx2.Client) -> None:
    assistant = plain.post("/assistants", json={"model": "m"}, headers=V1).json()
    body = {"assistant_id": assistant["id"], "thread": {"messages": [{"role": "user", "content": "x"}]}, "stream": True}
    with plain.stream("POST", "/threads/runs", json=body, headers=V1) as answer:
        text = answer.read().decode()
    assert_headers(answer, "text/event-stream; charset=utf-8")
    assert text.endswith("event: done\ndata: [DONE]\n\n")


def test_v1_files_do_not_map(plain: httpx2.Client) -> None:
    files = {"file_ids": ["file-1"]}
    message = {"role": "user", "content": "x", **files}
    for path, body in (
        ("/assistants", {"model": "m", **files}),
        ("/threads", {"messages": [message]}),
        ("/threads/thread_none/messages", message),
        ("/threads/runs", {"assistant_id": "asst_1", "thread": {"messages": [message]}}),
    ):
        answer = plain.post(path, json=body, headers=V1)
        error = {"message": NO_V1, "type": "invalid_request_error", "param": None, "code": "invalid_beta"}
        assert (answer.status_code, answer.json()["error"]) == (400, error)


def test_v2_wins_over_v1(plain: httpx2.Client) -> None:
    both = {"openai-beta": "assistants=v1, assistants=v2"}
    answer = plain.post("/assistants", json={"model": "m", "tools": [{"type": "retrieval"}]}, headers=both)
    assert answer.json()["error"]["param"] == "tools[0].type"


# -- what is ignored


def test_unknown_headers_and_query_parameters_are_ignored(client: Client) -> None:
    headers = {
        "openai-organization": "org-1",
        "openai-project": "proj_1",
        "idempotency-key": "k",
        "x-stainless-retry-count": "2",
        "content-type": "text/plain",
        "accept": "text/html",
        "x-anything": "1",
    }
    query = {"api-version": "2024-05-01-preview", "anything": "1", "expand[]": "x"}
    assistant = client.beta.assistants.create(model="m", extra_headers=headers, extra_query=query)
    listed = client.beta.assistants.list(limit=1, extra_headers=headers, extra_query=query)
    assert listed.data[0] == assistant


def test_include_is_taken_in_three_spellings(plain: httpx2.Client, client: Client) -> None:
    run = settled(client, ask(client, "hello"))
    path = f"/threads/{run.thread_id}/runs/{run.id}/steps"
    plainly = plain.get(path).json()
    for name in ("include%5B%5D", "include[]", "include"):
        assert plain.get(f"{path}?{name}={RESULTS}").json() == plainly
    step = plainly["data"][0]
    assert plain.get(f"{path}/{step['id']}?include[]={RESULTS}").json() == step
    options: Any = {"include": [RESULTS]}
    again = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id, **options)
    assert settled(client, again).status == "completed"


# -- browser pages of other origins

PAGE = {"origin": "https://page.example", "access-control-request-method": "POST"}


def test_no_other_origin_is_let_in_by_default(url: str) -> None:
    answer = httpx2.options(f"{url}/threads", headers=PAGE)
    assert "access-control-allow-origin" not in answer.headers


def test_named_origins_are_let_in(data: Path) -> None:
    with running_server(data, cors_origins="https://page.example, https://other.example") as url:
        asked = {**PAGE, "access-control-request-headers": "authorization,openai-beta,x-stainless-lang"}
        preflight = httpx2.options(f"{url}/threads", headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        key = {"authorization": "Bearer any"}
        answer = httpx2.post(f"{url}/threads", headers={**key, "origin": "https://page.example"})
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        stranger = httpx2.post(f"{url}/threads", headers={**key, "origin": "https://stranger.example"})
        assert "access-control-allow-origin" not in stranger.headers
