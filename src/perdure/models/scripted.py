"""A small model that answers from a script: in the process, or as an upstream over HTTP.

It ships with the server: `demo` and every test run on it. Rules: both ways give the same pieces (`script.py` works them
out); what was asked can be looked at afterwards. Without a script it repeats the question.

By hand: `python -m perdure.models.scripted --port 9000 --script FILE --key KEY`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from perdure.errors import OperatorError, RunFailure
from perdure.ids import Clock, Ids, RandomIds, SystemClock
from perdure.models.base import (
    Capacity,
    Finished,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    RefusalDelta,
    TextDelta,
    ToolCallDelta,
)
from perdure.models.script import Answer, BreakOffError, Player, Script, ScriptedFailure, load_script, play
from perdure.models.tokens import TokenCounter
from perdure.models.upstream_failures import run_error_code

__all__ = ["Received", "Script", "ScriptedModel", "ScriptedServer", "load_script", "main", "scripted_app", "serving"]

REQUESTS_KEPT = 1000
"""How many of the newest requests are remembered for whoever wants to look."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ScriptedModel:
    """The scripted model inside the process. `requests` holds what it was asked, oldest first."""

    name = "scripted"

    def __init__(self, script: Script | None = None, clock: Clock | None = None, ids: Ids | None = None) -> None:
        self.requests: list[ModelRequest] = []
        self._player = Player(script or Script(), ids or RandomIds())
        self._clock = clock or SystemClock()
        self._counter = TokenCounter()

    def capacity(self, model: str) -> Capacity:
        """Return no limits; the script has none."""
        del model
        return Capacity(counter=self._counter)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        """Answer from the script. Raises RunFailure as an upstream's client does."""
        self.requests.append(request)
        del self.requests[:-REQUESTS_KEPT]
        answer = self._player.answer(request.messages, request.max_completion_tokens)
        failure = answer.failure
        if failure is not None:
            raise RunFailure(
                f"The scripted model failed with status {failure.status}: {failure.message}",
                code=run_error_code(failure.status, failure.code, failure.message),
            )
        try:
            async for piece in play(answer, self._clock):
                yield piece
        except BreakOffError:
            raise RunFailure("The scripted model broke off its answer.") from None

    async def list_models(self) -> list[str]:
        """Return the names in the script."""
        return self._player.script.models

    async def warm_up(self) -> None:
        """Do nothing: it is always ready."""

    async def close(self) -> None:
        """Nothing is held."""


class Received(msgspec.Struct):
    """One request as it came in. `closed_early`: the client closed the connection before the answer's end."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    closed_early: bool = False


class ScriptedServer:
    """An upstream that serves a script: an ASGI application for granian and uvicorn.

    `POST /v1/chat/completions`, `GET /v1/models`, and `GET /log`: what came in, also in `requests`, oldest first.
    """

    def __init__(
        self,
        script: Script | None = None,
        log: list[Received] | None = None,
        *,
        key: str | None = None,
        clock: Clock | None = None,
        ids: Ids | None = None,
    ) -> None:
        self.requests: list[Received] = [] if log is None else log
        self._script = script or Script()
        self._key = key
        self._clock = clock or SystemClock()
        self._ids = ids or RandomIds()
        self._player = Player(self._script, self._ids)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or one lifespan."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        where = scope["method"], scope["path"]
        if where == ("GET", "/log"):
            await _send_json(send, 200, self.requests)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        received = Received(*where, headers, _parsed(await _read(receive)))
        self.requests.append(received)
        del self.requests[:-REQUESTS_KEPT]
        if self._key is not None and headers.get("authorization") != f"Bearer {self._key}":
            await _send_error(send, 401, "Incorrect API key provided.", "invalid_api_key")
        elif where == ("GET", "/v1/models"):
            await _send_json(send, 200, {"object": "list", "data": [self._model(one) for one in self._script.models]})
        elif where == ("POST", "/v1/chat/completions"):
            await self._until_closed(received, receive, send)
        else:
            await _send_error(send, 404, f"Invalid URL ({where[0]} {where[1]})", None)

    def _model(self, name: str) -> Message:
        return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "perdure"}

    async def _until_closed(self, received: Received, receive: Receive, send: Send) -> None:
        """Complete, but stop at once when the client closes the connection."""
        answering = asyncio.ensure_future(self._complete(received.body, send))
        watching = asyncio.ensure_future(_closed(receive))
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
            received.closed_early = not answering.done()
        finally:
            answering.cancel()
            watching.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)
        if not answering.cancelled():
            answering.result()  # a bug shows itself

    async def _complete(self, body: Any, send: Send) -> None:
        if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
            await _send_error(send, 400, "Missing required parameter: 'messages'.", "missing_required_parameter")
            return
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        answer = self._player.answer(body["messages"], limit)
        if answer.failure is not None:
            await _send_failure(send, answer.failure)
            return
        head = {
            "id": self._ids.new("chatcmpl").replace("_", "-"),
            "object": "chat.completion.chunk" if body.get("stream") else "chat.completion",
            "created": int(self._clock.now()),
            "model": body.get("model", "scripted"),
            "system_fingerprint": None,
        }
        with contextlib.suppress(BreakOffError):  # leaving without an end breaks off the answer
            if body.get("stream"):
                with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
                await self._send_chunks(send, head, answer, with_usage)
            else:
                await self._send_whole(send, head, answer)

    async def _send_chunks(self, send: Send, head: Message, answer: Answer, with_usage: bool) -> None:
        async def chunk(choices: list[Message], usage: Message | None = None) -> None:
            body = {**head, "choices": choices, **({"usage": usage} if with_usage else {})}
            await _send_body(send, b"data: " + msgspec.json.encode(body) + b"\n\n", more=True)

        await _send_start(send, 200, b"text/event-stream; charset=utf-8")
        await chunk([_choice({"role": "assistant", "content": "", "refusal": None})])
        async with aclosing(play(answer, self._clock)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Finished):
                    await chunk([_choice({}, answer.finish)])
                elif not isinstance(piece, ModelUsage):
                    await chunk([_choice(_delta(piece))])
                elif with_usage:
                    await chunk([], _usage(piece))
        await _send_body(send, b"data: [DONE]\n\n")

    async def _send_whole(self, send: Send, head: Message, answer: Answer) -> None:
        message: Message = {"role": "assistant", "content": None, "refusal": None}
        usage = None
        async with aclosing(play(answer, self._clock)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ModelUsage):
                    usage = _usage(piece)
                else:
                    _gather(message, piece)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish}
        await _send_json(send, 200, {**head, "choices": [choice], **({"usage": usage} if usage else {})})


def scripted_app(script: Script | None = None, log: list[Received] | None = None) -> ScriptedServer:
    """Return the application for a script."""
    return ScriptedServer(script, log)


def _choice(delta: Message, finish: str | None = None) -> Message:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _delta(piece: ModelPiece) -> Message:
    match piece:
        case TextDelta(text):
            return {"content": text}
        case RefusalDelta(text):
            return {"refusal": text}
        case ToolCallDelta(index, None, _, arguments):
            return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}
        case ToolCallDelta(index, call_id, name, arguments):
            function = {"name": name, "arguments": arguments}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case _:
            return {}


def _gather(message: Message, piece: ModelPiece) -> None:
    match piece:
        case TextDelta(text):
            message["content"] = (message["content"] or "") + text
        case RefusalDelta(text):
            message["refusal"] = (message["refusal"] or "") + text
        case ToolCallDelta(index, call_id, name, arguments):
            calls = message.setdefault("tool_calls", [])
            if index == len(calls):
                calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})
            calls[index]["function"]["arguments"] += arguments
        case _:
            pass


def _usage(usage: ModelUsage) -> Message:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _parsed(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace")


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


async def _closed(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _live(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _send_start(send: Send, status: int, content_type: bytes, *more: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type), *more]})


async def _send_body(send: Send, body: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _send_json(send: Send, status: int, value: Any, *more: tuple[bytes, bytes]) -> None:
    body = msgspec.json.encode(value)
    await _send_start(send, status, b"application/json", (b"content-length", str(len(body)).encode()), *more)
    await _send_body(send, body)


async def _send_error(send: Send, status: int, message: str, code: str | None, *more: tuple[bytes, bytes]) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 - HTTP's own border
    error = {"message": message, "type": kind, "param": None, "code": code}
    await _send_json(send, status, {"error": error}, *more)


async def _send_failure(send: Send, failure: ScriptedFailure) -> None:
    wait = failure.retry_after
    more = () if wait is None else ((b"retry-after", f"{wait:g}".encode()),)
    await _send_error(send, failure.status, failure.message, failure.code, *more)


@asynccontextmanager
async def serving(app: ScriptedServer, port: int = 0) -> AsyncIterator[str]:
    """Serve on loopback inside this process; gives the base URL, ending in /v1. Port 0 takes a free one."""
    from granian.constants import Interfaces  # noqa: PLC0415 - the in-process model needs no server
    from granian.server.embed import Server  # noqa: PLC0415

    port = port or _free_port()
    server = Server(app, port=port, interface=Interfaces.ASGI, log_enabled=False, websockets=False)
    running = asyncio.ensure_future(server.serve())
    try:
        await _until_listening(running, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.stop()  # type: ignore[no-untyped-call] # granian leaves it without annotations
        await running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_listening(running: asyncio.Future[None], port: int) -> None:
    while not running.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            return
        await asyncio.sleep(0.005)


async def _serve(app: ScriptedServer, port: int) -> None:
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows has no signal handlers on the loop
        for one in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(one, stopped.set)
    async with serving(app, port) as url:
        sys.stdout.write(f"scripted model on {url}\n")
        sys.stdout.flush()
        await stopped.wait()


def main() -> None:
    """Serve a script on loopback until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m perdure.models.scripted", description="Serve a scripted model.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--script", type=Path, help="JSON script; without it the question is repeated")
    parser.add_argument("--key", help="demand this key as a Bearer token")
    given = parser.parse_args()
    try:
        script = load_script(given.script) if given.script else Script()
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(ScriptedServer(script, key=given.key), given.port))


if __name__ == "__main__":
    main()
