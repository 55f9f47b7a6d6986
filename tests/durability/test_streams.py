"""Streams over real sockets: a client that hangs up leaves nothing behind, and silence is filled with comments."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from perdure.app import Running, open_server, run_loop
from perdure.settings import read_settings

DEADLINE = 20.0
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^hang", "say": "one two three", "hang_after": 2},
        {"when": "^late", "say": "at last", "first_delay_seconds": 0.8},
        {"when": "^long", "say": " ".join(["word"] * 60), "delay_seconds": 0.01},
    ]
}


@asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[tuple[Running, openai.AsyncOpenAI]]:
    """Serve in this event loop, so that the test can look at the engine's feeds."""
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    given = {"data": folder / "data", "port": 0, "builtin_model": "scripted", "script": script, **settings}
    async with (
        open_server(read_settings(**given)) as running,
        openai.AsyncOpenAI(base_url=running.url, api_key="test-key", max_retries=0) as client,
    ):
        yield running, client


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  # a counter fires no event
            await asyncio.sleep(0.01)


async def no_feed_left(running: Running) -> None:
    await until(lambda: not running.worker._feeds.open)


class RawStream:
    """A streamed run over a bare socket: bytes as they come, and a real hang-up."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def begin(cls, url: str, assistant_id: str, question: str) -> RawStream:
        host, _, port = url.removeprefix("http://").partition("/")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        messages = [{"role": "user", "content": question}]
        body = json.dumps({"assistant_id": assistant_id, "stream": True, "thread": {"messages": messages}})
        head = (
            f"POST /v1/threads/runs HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer test-key\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write((head + body).encode())
        return cls(reader, writer)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self._reader.readuntil(mark)

    def hang_up(self) -> None:
        self._writer.transport.abort()


def test_clients_that_hang_up_leave_no_feed_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(tmp_path, shutdown_grace_seconds=0) as (running, client):
            assistant = await client.beta.assistants.create(model="gpt-4o")
            streams = [await RawStream.begin(running.url, assistant.id, "hang") for _ in range(8)]
            for stream in streams:
                await stream.until(b"event: thread.message.delta")
            feeds = running.worker._feeds._feeds
            assert len(feeds) == 8
            assert {feed.users for feed in feeds.values()} == {2}
            for stream in streams:
                stream.hang_up()
            await until(lambda: {feed.users for feed in feeds.values()} == {1})
            assert len(feeds) == 8, "the runs go on"
        await no_feed_left(running)

    run_loop(main)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_run_goes_on_without_its_client(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (running, client):
            assistant = await client.beta.assistants.create(model="gpt-4o")
            for moment in (b"event: thread.run.created", b"event: thread.message.delta"):
                stream = await RawStream.begin(running.url, assistant.id, "long")
                await stream.until(b"event: thread.created\ndata: ")
                thread = json.loads(await stream.until(b"\n"))
                await stream.until(moment)
                stream.hang_up()
                await no_feed_left(running)
                message = (await client.beta.threads.messages.list(thread["id"], limit=1)).data[0]
                assert (message.role, message.status) == ("assistant", "completed")

    run_loop(main)


def test_silence_is_filled_with_comments(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, keepalive_seconds=0.2) as (running, client):
            assistant = await client.beta.assistants.create(model="gpt-4o")
            stream = await RawStream.begin(running.url, assistant.id, "late")
            answer = await stream.until(b"data: [DONE]\n\n")
            stream.hang_up()
            before, _, after = answer.partition(b"event: thread.run.step.created")
            assert before.count(b"\n: keep-alive\n") >= 2
            assert after.count(b"event: thread.message.delta") == 2
            message: Any = {"role": "user", "content": "late"}
            thread = await client.beta.threads.create(messages=[message])
            async with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as official:
                await official.until_done()
                assert (await official.get_final_messages())[0].status == "completed"

    run_loop(main)


def test_a_stream_whose_thread_is_deleted_ends_with_an_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (running, client):
            assistant = await client.beta.assistants.create(model="gpt-4o")
            message: Any = {"role": "user", "content": "hang"}
            thread = await client.beta.threads.create(messages=[message])
            stream = await client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True)
            async for event in stream:
                if event.event == "thread.message.delta":
                    break
            await client.beta.threads.delete(thread.id)
            with pytest.raises(openai.APIError, match="deleted"):
                _ = [event async for event in stream]
            await no_feed_left(running)

    run_loop(main)


def test_a_hundred_streams_come_and_go(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, concurrency=8) as (running, client):
            assistant = await client.beta.assistants.create(model="gpt-4o")

            async def one(number: int) -> None:
                stream = await RawStream.begin(running.url, assistant.id, f"short {number}")
                if number % 2:
                    await stream.until(b"event: thread.run.queued")
                else:
                    assert b"thread.run.completed" in await stream.until(b"data: [DONE]\n\n")
                stream.hang_up()

            await asyncio.gather(*(one(number) for number in range(100)))
            await no_feed_left(running)

    run_loop(main)
