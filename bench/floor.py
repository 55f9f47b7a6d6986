"""The floor: the same HTTP server, routing and JSON as Perdure's, and nothing behind them.

Each path takes the body that Perdure takes, decodes it with validation, and answers one fixed object of the same kind.
No key is looked up, nothing is stored. What Perdure does beyond this is the ratio in the table.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.routing import Mount, Route, Router
from starlette.types import Receive, Scope, Send

from bench.load import fast_loop
from perdure.domain.creation import new_assistant, new_message, new_run, new_thread
from perdure.http_server import http_server
from perdure.wire.assistants import CreateAssistant
from perdure.wire.messages import CreateMessage
from perdure.wire.runs import CreateRun, CreateThreadAndRun
from perdure.wire.threads import CreateThread

THREAD_ID, RUN_ID, ASSISTANT_ID = f"thread_{'a' * 24}", f"run_{'a' * 24}", f"asst_{'a' * 24}"
NOW = 1_700_000_000
_encode = msgspec.json.Encoder().encode


class Empty:
    """One path: decodes what it takes and answers its object."""

    def __init__(self, value: Any, body: type | None = None) -> None:
        self._value = value
        self._decoder: msgspec.json.Decoder[Any] | None = msgspec.json.Decoder(body) if body else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST" and self._decoder is not None:
            pieces = []
            more = True
            while more:
                message = await receive()
                pieces.append(message.get("body", b""))
                more = message.get("more_body", False)
            self._decoder.decode(b"".join(pieces))
        await Response(_encode(self._value), media_type="application/json")(scope, receive, send)


class Silence:
    """An open stream: one comment, then nothing until the client hangs up."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": open\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass


def empty_api() -> Router:
    """Return the paths that are measured."""
    thread = new_thread(CreateThread(), THREAD_ID, NOW)
    message = new_message(CreateMessage(role="user", content="What is 3 + 4?"), THREAD_ID, f"msg_{'a' * 24}", NOW)
    assistant, extra = new_assistant(CreateAssistant(model="scripted"), ASSISTANT_ID, NOW)
    run, _ = new_run(
        CreateRun(assistant_id=ASSISTANT_ID),
        assistant,
        extra,
        run_id=RUN_ID,
        thread_id=THREAD_ID,
        now=NOW,
        expiry_seconds=600,
    )
    run = msgspec.structs.replace(run, status="completed")
    paths = [
        Route("/threads/runs", Empty(run, CreateThreadAndRun)),
        Route("/threads/{thread_id}/messages", Empty(message, CreateMessage)),
        Route("/threads/{thread_id}/runs/{run_id}/events", Silence()),
        Route("/threads/{thread_id}/runs/{run_id}", Empty(run)),
        Route("/threads/{thread_id}/runs", Empty(run, CreateRun)),
        Route("/threads", Empty(thread, CreateThread)),
        Route("/threads/{thread_id}", Empty(thread, CreateThread)),
        Route("/assistants", Empty(assistant, CreateAssistant)),
    ]
    return Router([Route("/health", Empty({"status": "ok"})), Mount("/v1", app=Router(paths))])


async def _main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address, port = probe.getsockname()
    server = http_server(empty_api(), address, port)
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, server.stop)
    print(f"OPENAI_BASE_URL=http://{address}:{port}/v1", flush=True)
    await serving


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(_main())
