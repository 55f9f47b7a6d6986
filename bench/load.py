"""The measuring client: keep-alive HTTP/1.1 written straight onto an event-loop protocol.

It must cost far less than what it measures, so it knows just what the servers here send: a status, a length or chunks.
Requests are bytes made before the clock starts. One request at a time on a connection.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD_END = b"\r\n\r\n"
WARM_UP_SECONDS = 0.2

Answered = Callable[[int, bytes], None]
PieceCame = Callable[[bytes], None]


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop that the server runs on, None for asyncio's own."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415  # not there on Windows

    return uvloop.new_event_loop


class UnexpectedAnswer(Exception):
    """A server said something that the measurement does not allow for."""


class Connection(asyncio.Protocol):
    """One connection. `send` calls back, `ask` awaits, `stream` hands on each chunk of a body as it comes."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._status = 0
        self._chunked = False
        self._pieces: list[bytes] = []
        self._on_answer: Answered | None = None
        self._on_piece: PieceCame | None = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def send(self, request: bytes, on_answer: Answered) -> None:
        self._on_answer = on_answer
        assert self._transport is not None
        self._transport.write(request)

    def watch(self, on_piece: PieceCame) -> None:
        """Hand on each chunk of the bodies that come from now on."""
        self._on_piece = on_piece

    async def ask(self, request: bytes) -> bytes:
        """Return the body of a 200. Raises UnexpectedAnswer for any other status."""
        waiting: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self.send(request, self._wake)
        status, body = await waiting
        if status != 200:
            raise UnexpectedAnswer(f"{status}: {body[:500]!r} to {request[:200]!r}")
        return body

    async def stream(self, request: bytes, on_piece: PieceCame) -> bytes:
        """Like `ask`, with each chunk handed to `on_piece` on the way."""
        self._on_piece = on_piece
        try:
            return await self.ask(request)
        finally:
            self._on_piece = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    # -- the protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is not a subclass

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or UnexpectedAnswer("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        buffer = self._rest + data if self._rest else data
        if self._chunked:
            self._take_chunks(buffer)
            return
        end = buffer.find(HEAD_END)
        if end < 0:
            self._rest = buffer
            return
        begin = end + len(HEAD_END)
        self._status = int(buffer[9:12])
        length = _LENGTH.search(buffer, 0, end + 2)
        if length is None:
            self._chunked = True
            self._take_chunks(buffer[begin:])
            return
        last = begin + int(length[1])
        if len(buffer) < last:
            self._rest = buffer
            return
        self._rest = b""
        self._finish(buffer[begin:last])

    def _take_chunks(self, buffer: bytes) -> None:
        at = 0
        while (line := buffer.find(b"\r\n", at)) >= 0:
            size = int(buffer[at:line], 16)
            end = line + 2 + size + 2
            if len(buffer) < end:
                break
            at = end
            if size == 0:
                self._rest, self._chunked = b"", False
                pieces, self._pieces = self._pieces, []
                self._finish(b"".join(pieces))
                return
            piece = buffer[line + 2 : end - 2]
            self._pieces.append(piece)
            if self._on_piece is not None:
                self._on_piece(piece)
        self._rest = buffer[at:]

    def _finish(self, body: bytes) -> None:
        answered, self._on_answer = self._on_answer, None
        if answered is not None:
            answered(self._status, body)

    def _wake(self, status: int, body: bytes) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((status, body))


class Target:
    """A server under a base URL such as `http://127.0.0.1:8000/v1`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.url = url
        self.host, self.port, self._base = parts.hostname, parts.port, parts.path

    def post(self, path: str, body: Any = None, **headers: str) -> bytes:
        content: bytes = msgspec.json.encode({} if body is None else body)
        head = self._head("POST", path, headers)
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(content), content)

    def get(self, path: str, **headers: str) -> bytes:
        return self._head("GET", path, headers) + b"\r\n"

    def _head(self, method: str, path: str, headers: dict[str, str]) -> bytes:
        """The headers that the official client sends, without its own description."""
        lines = [
            f"{method} {self._base}{path} HTTP/1.1",
            f"host: {self.host}:{self.port}",
            "accept: application/json",
            "authorization: Bearer sk-bench",
            "openai-beta: assistants=v2",
            "content-type: application/json",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        return ("\r\n".join(lines) + "\r\n").encode()

    async def connect(self) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, self.host, self.port)
        return connection

    @asynccontextmanager
    async def connections(self, count: int) -> AsyncIterator[list[Connection]]:
        """Open connections for the length of a block."""
        opened = [await self.connect() for _ in range(count)]
        try:
            yield opened
        finally:
            for connection in opened:
                connection.close()


async def hammer(target: Target, clients: int, seconds: float, next_request: Callable[[], bytes]) -> float:
    """Keep so many clients asking without a pause; return answers per second. Raises UnexpectedAnswer."""
    clock = time.perf_counter
    begin = clock() + WARM_UP_SECONDS
    end = begin + seconds
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    answered, busy = 0, clients

    def ask_again(connection: Connection) -> None:
        def on_answer(status: int, body: bytes) -> None:
            nonlocal answered, busy
            now = clock()
            if status != 200 and not done.done():
                done.set_exception(UnexpectedAnswer(f"{status}: {body[:500]!r}"))
            elif now < end:
                answered += now >= begin
                connection.send(next_request(), on_answer)
            else:
                busy -= 1
                if not busy and not done.done():
                    done.set_result(None)

        connection.send(next_request(), on_answer)

    async with target.connections(clients) as connections:
        for connection in connections:
            ask_again(connection)
        await done
    return answered / seconds
