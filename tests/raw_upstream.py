"""Upstreams that answer with exactly these bytes, and a client of them whose time is played."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from perdure.models.base import (
    ModelPiece,
    ModelRequest,
)
from perdure.models.chat_completions import ChatCompletionsModel
from perdure.models.scripted import Script, ScriptedServer, serving
from perdure.settings import UpstreamSettings, read_settings

KEY = "sk-a-very-secret-key-0123456789"
JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream\r\n"


class PlayedClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return 1_800_000_000.0 + sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class CountedIds:
    """Identifiers that can be foretold."""

    def __init__(self) -> None:
        self.count = 0

    def new(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_made{self.count}"


class RawUpstream:
    """A server that answers each request with the next of some bytes, the last for ever, and then hangs up.

    An answer that is a list is sent part by part. `slow` keeps the connection open after the answer.
    """

    def __init__(self, *answers: bytes | list[bytes], slow: bool = False) -> None:
        self.answers = list(answers)
        self.slow = slow
        self.bodies: list[Any] = []
        self.heads: list[str] = []
        self.hung_up = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = next((line[16:] for line in head.splitlines() if line.startswith("content-length: ")), "0")
            self.heads.append(head)
            self.bodies.append(json.loads(await reader.readexactly(int(length)) or b"null"))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            for part in answer if isinstance(answer, list) else [answer]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.001)
            if self.slow:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.hung_up.set()
            writer.close()


@asynccontextmanager
async def listening(upstream: RawUpstream) -> AsyncIterator[str]:
    server = await asyncio.start_server(upstream.answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await server.wait_closed()


def response(body: bytes, head: bytes = JSON, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\n%sconnection: close\r\n\r\n%s" % (status, head, body)


def refusal(status: int, message: str, head: bytes = JSON, **more: Any) -> bytes:
    return response(json.dumps({"error": {"message": message, "type": "x", **more}}).encode(), head, status)


def events(*chunks: Any, end: str = "data: [DONE]\n\n") -> bytes:
    lines = "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks)
    return response((lines + end).encode(), EVENTS)


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def call(*pieces: dict[str, Any]) -> dict[str, Any]:
    return delta(tool_calls=list(pieces))


def asking(text: str = "hi", **fields: Any) -> ModelRequest:
    messages = fields.pop("messages", [{"role": "user", "content": text}])
    return ModelRequest(model="some-model", messages=messages, **fields)


@asynccontextmanager
async def client(url: str, clock: PlayedClock | None = None, name: str = "default", **more: Any) -> AsyncIterator[Any]:
    settings = read_settings(upstream_silence_seconds=more.pop("silence", 5.0), **more)
    upstream = UpstreamSettings(url=url, key=KEY)
    model = ChatCompletionsModel(name, upstream, settings, clock or PlayedClock(), ids=CountedIds(), jitter=lambda: 0.0)
    try:
        yield model
    finally:
        await model.close()


async def gathered(model: ChatCompletionsModel, request: ModelRequest) -> list[ModelPiece]:
    return [piece async for piece in model.stream(request)]


def read(*answers: bytes | list[bytes], request: ModelRequest | None = None, **more: Any) -> list[ModelPiece]:
    """What comes out of the answers of a raw upstream."""

    async def run() -> list[ModelPiece]:
        async with listening(RawUpstream(*answers)) as url, client(url, **more) as model:
            return await gathered(model, request or asking())

    return asyncio.run(run())


def scripted(script: dict[str, Any], use: Callable[[ScriptedServer, Any], Awaitable[None]], **more: Any) -> None:
    """Run something against the scripted model behind a real server."""

    async def run() -> None:
        app = ScriptedServer(msgspec.convert(script, Script), key=KEY)
        async with serving(app) as url, client(url, **more) as model:
            await use(app, model)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the server under test has no event to wait for
        await asyncio.sleep(0.002)
