"""The scripted model as an upstream: OpenAI's shapes, a key, a log, and a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from perdure.models.scripted import Script, ScriptedServer, scripted_app, serving

Use = Callable[[ScriptedServer, openai.AsyncOpenAI], Awaitable[None]]
QUESTION: Any = [{"role": "user", "content": "hi"}]


def run(script: dict[str, Any], use: Use, key: str | None = None) -> None:
    """Run something with the official client."""

    async def inside() -> None:
        app = ScriptedServer(msgspec.convert(script, Script), key=key)
        async with (
            serving(app) as url,
            openai.AsyncOpenAI(base_url=url, api_key="sk-x", max_retries=0, _strict_response_validation=True) as client,
        ):
            await use(app, client)

    asyncio.run(inside())


def test_the_official_client_reads_a_whole_answer() -> None:
    async def use(app: ScriptedServer, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=QUESTION)
        assert answer.choices[0].message.content == "You said: hi"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 5
        assert answer.model == "m"
        assert app.requests[0].body == {"model": "m", "messages": QUESTION}

    run({}, use)


def test_the_official_client_reads_a_stream_with_and_without_usage() -> None:
    script = {"otherwise": {"say": "wait ", "call": [{"name": "f", "arguments": {"x": [1]}}]}}

    async def use(_: ScriptedServer, client: openai.AsyncOpenAI) -> None:
        async with client.chat.completions.stream(
            model="m", messages=QUESTION, stream_options={"include_usage": True}
        ) as stream:
            whole = await stream.get_final_completion()
        calls = whole.choices[0].message.tool_calls
        assert whole.choices[0].message.content == "wait "
        assert calls is not None
        assert (calls[0].function.name, json.loads(calls[0].function.arguments)) == ("f", {"x": [1]})
        assert whole.usage is not None
        answer = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        plain = [chunk async for chunk in answer]
        assert all(chunk.usage is None and chunk.choices for chunk in plain)
        assert plain[-1].choices[0].finish_reason == "tool_calls"

    run(script, use)


def test_models_errors_and_the_log() -> None:
    async def use(app: ScriptedServer, client: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in client.models.list()] == ["one", "two"]
        with pytest.raises(openai.RateLimitError, match="Slow") as caught:
            await client.chat.completions.create(model="m", messages=QUESTION)
        assert caught.value.code == "slow_down"
        assert caught.value.response.headers["retry-after"] == "2"
        async with httpx2.AsyncClient() as plain:
            url = str(client.base_url)
            assert (await plain.post(f"{url}chat/completions", content=b"{")).status_code == 400
            assert (await plain.get(f"{url}nothing")).status_code == 404
            log = (await plain.get(url.replace("/v1/", "/log"))).json()
        assert [one["path"].removeprefix("/v1/") for one in log] == ["models", *["chat/completions"] * 2, "nothing"]
        assert log[1]["headers"]["authorization"] == "Bearer sk-x"
        assert log == [msgspec.to_builtins(one) for one in app.requests]

    fail = {"status": 429, "message": "Slow.", "code": "slow_down", "retry_after": 2}
    run({"models": ["one", "two"], "otherwise": {"fail": fail}}, use)


def test_a_key_is_demanded() -> None:
    async def use(app: ScriptedServer, client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError) as caught:
            await client.chat.completions.create(model="m", messages=QUESTION)
        assert caught.value.code == "invalid_api_key"
        assert len(app.requests) == 1

    run({}, use, key="another")


def test_a_break_is_seen_as_one() -> None:
    async def use(_: ScriptedServer, client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
        with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
            [chunk async for chunk in answer]

    run({"otherwise": {"say": "a b c", "break_after": 1}}, use)


def test_it_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"otherwise": {"say": "from a file"}}', encoding="utf-8")
    command = [sys.executable, "-m", "perdure.models.scripted", "--port", "0", "--script", str(script), "--key", "k"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("scripted model on http://127.0.0.1:")
        with openai.OpenAI(base_url=line.split()[-1], api_key="k") as client:
            answer = client.chat.completions.create(model="m", messages=QUESTION)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert answer.choices[0].message.content == "from a file"


def test_a_wrong_script_ends_the_process_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perdure.models.scripted", "--script", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_scripted_app_writes_into_the_log_it_is_given() -> None:
    async def inside() -> None:
        log: list[Any] = []
        async with serving(scripted_app(log=log)) as url, httpx2.AsyncClient() as plain:
            await plain.get(f"{url}/models")
        assert [one.path for one in log] == ["/v1/models"]

    asyncio.run(inside())
