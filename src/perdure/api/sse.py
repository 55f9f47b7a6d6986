"""Streams: a run's event log as server-sent events.

The frame is `event`, `data`, `id`, in this order: hand-written parsers of the wild expect data right after event. A
client that hangs up ends its stream and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from perdure.api.failures import error_event
from perdure.engine.live import Feeds
from perdure.errors import ApiError, NotFound
from perdure.wire.events import END_EVENTS, LogEvent

DONE = b"event: done\ndata: [DONE]\n\n"
# One line, without the empty one that ends a frame: after an event with an `id`, openai-python takes an empty line for
# an event of its own and breaks on its missing data (measured with 3.54.0).
KEEPALIVE = b": keep-alive\n"


class EventStream(Response):
    """The events of a run after a number, up to one of `ends`: by default until the run pauses or ends."""

    media_type = "text/event-stream"

    def __init__(
        self, feeds: Feeds, run_id: str, after: int, keepalive_seconds: float, ends: Collection[str] = END_EVENTS
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = feeds.follow(run_id, after, keepalive_seconds, ends)
        self._ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until the end, or until the client hangs up."""
        del scope
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        current = asyncio.current_task()
        assert current is not None  # noqa: S101  # a server calls us in a task
        watch = asyncio.get_running_loop().create_task(_cancel_on_disconnect(receive, current))
        try:
            await _send_frames(self._events, self._ends, send)
        except asyncio.CancelledError:
            if not watch.done():
                raise  # somebody else wants us to stop
            current.uncancel()
        finally:
            watch.cancel()


async def _cancel_on_disconnect(receive: Receive, stream: asyncio.Task[object]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


async def _send_frames(events: AsyncGenerator[list[LogEvent], None], ends: Collection[str], send: Send) -> None:
    ended = False
    try:
        async with aclosing(events) as batches:
            async for batch in batches:
                body = b"".join(frame(event) for event in batch) or KEEPALIVE
                ended = bool(batch) and batch[-1].name in ends
                if ended:
                    break
                await send({"type": "http.response.body", "body": body, "more_body": True})
    except ApiError as failure:
        body = b"event: error\ndata: " + error_event(failure) + b"\n\n"
    else:
        if not ended:
            gone = NotFound("The run, or its event log, was deleted while it was streamed.")
            body = b"event: error\ndata: " + error_event(gone) + b"\n\n"
    await send({"type": "http.response.body", "body": body + DONE, "more_body": False})


class NothingLeft(Response):
    """A stream whose events the reader has seen all."""

    media_type = "text/event-stream"

    def __init__(self) -> None:
        super().__init__(DONE, headers={"cache-control": "no-cache"})


def frame(event: LogEvent) -> bytes:
    """Return one event as it goes over the wire."""
    return b"event: %s\ndata: %s\nid: %d\n\n" % (event.name.encode(), bytes(event.data), event.sequence)
