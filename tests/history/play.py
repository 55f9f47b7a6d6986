"""A round: some threads with some clients each, then quiet, then the threads are deleted under their clients' hands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx2
import openai

from perdure.domain.lifecycle import ACTIVE
from tests.api.described import events_of
from tests.history.check import Checker, UnexplainedError, last_order
from tests.history.clients import TOOL, WHILE_IT_GOES, WHILE_IT_LIVES, Program, Shared
from tests.history.moves import Event, Move, To, moves_of
from tests.history.record import Recorder, with_ids

PAGE = 100
MOST_SECONDS = 120  # something waits for ever
# The last run of a thread asks for outputs that nobody gives; its log goes with the thread.
LAST_RUN: tuple[Move, ...] = ((To("in_progress"),), (To("requires_action"),), (To("cancelled"),))


class Size(NamedTuple):
    """How much is asked in a round."""

    threads: int = 3
    clients: int = 5
    calls: int = 40
    last_calls: int = 12


class Scene:
    """One thread, its clients and the history of their calls."""

    def __init__(self, name: str, seed: str, client: openai.AsyncOpenAI, assistant_id: str, clients: int) -> None:
        self.name = name
        self.recorder = Recorder()
        self._client = client
        self._shared = Shared(assistant_id)
        self._programs = [
            Program(f"{name}.{number}", seed, client, self._shared, self.recorder) for number in range(clients)
        ]
        self._tokens: dict[str, str] = {}
        self._moves: dict[str, tuple[Move, ...]] = {}

    async def begin(self) -> None:
        await self._programs[0].create_thread()

    async def live(self, calls: int) -> None:
        """All clients at once."""
        await asyncio.gather(*(one.work(calls, WHILE_IT_LIVES) for one in self._programs))

    async def settle(self) -> None:
        """End all runs, read everything once more in peace, and what the runs did out of their logs."""
        one, runs = self._programs[0], self._client.beta.threads.runs
        while True:
            left = [run async for run in runs.list(self._shared.thread_id, limit=PAGE) if run.status in ACTIVE]
            if not left:
                break
            for run in left:
                if (await one.see_run(run.id))[2] == "requires_action":
                    await one.submit_outputs()
            await asyncio.sleep(0.01)
        await self._read_all()
        async for run in runs.list(self._shared.thread_id, limit=PAGE):
            self._tokens[run.id] = (run.metadata or {})["token"]
            self._moves[run.id] = moves_of(await self._log(run.id))

    async def _read_all(self) -> None:
        for see in (self._programs[0].see_messages, self._programs[0].see_runs):
            after: Any = None
            more = True
            while more:
                _, rows, more = await see("asc", PAGE, after)
                after = rows[-1][0] if rows else None

    async def _log(self, run_id: str) -> list[Event]:
        path = f"/threads/{self._shared.thread_id}/runs/{run_id}/events"
        text = (await self._client.get(path, cast_to=httpx2.Response)).text
        return [(one.name, httpx2.Response(200, text=one.data).json()) for one in events_of(text) if one.name != "done"]

    async def go(self, calls: int) -> None:
        """Let a run wait for outputs, then delete the thread while all clients ask on."""
        one = self._programs[0]
        await one.add_message("call", "reject")
        before = set(self._shared.runs)
        while set(self._shared.runs) == before:
            await one.create_run(messages=0)
        (run_id,) = set(self._shared.runs) - before
        self._tokens[run_id] = self._shared.runs[run_id]
        self._moves[run_id] = LAST_RUN
        while (await one.see_run(run_id))[2] != "requires_action":  # noqa: ASYNC110  # the server is another process
            await asyncio.sleep(0.01)
        await asyncio.gather(*(each.work(calls, WHILE_IT_GOES) for each in self._programs))
        await one.delete_thread()
        await one.see_messages("asc", PAGE, None)

    def check(self) -> Checker:
        """Explain all answers. Raises UnexplainedError."""
        calls = with_ids(self.recorder.calls, self._tokens)
        checker = Checker(calls, self._moves, last_order(calls))
        try:
            checker.check()
        except UnexplainedError as failure:
            failure.add_note(f"the runs' own moves: {self._moves}")
            raise
        return checker


async def play(
    url: str, seed: str, size: Size, disturb: Callable[[list[Scene]], asyncio.Task[None]] | None = None
) -> list[Scene]:
    """Play a round and return its scenes. `disturb` begins what befalls the server while the threads live."""
    limits = httpx2.Limits(max_connections=None)
    http = openai.DefaultAsyncHttpxClient(limits=limits, timeout=15)
    async with (
        asyncio.timeout(MOST_SECONDS),
        openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0, http_client=http) as client,
    ):
        assistant = await client.beta.assistants.create(model="gpt-4o", tools=[TOOL], instructions="Be brief.")
        scenes = [Scene(f"{number}", seed, client, assistant.id, size.clients) for number in range(size.threads)]
        await asyncio.gather(*(scene.begin() for scene in scenes))
        trouble = disturb(scenes) if disturb is not None else None
        await asyncio.gather(*(scene.live(size.calls) for scene in scenes))
        if trouble is not None:
            await trouble
        await asyncio.gather(*(scene.settle() for scene in scenes))
        await asyncio.gather(*(scene.go(size.last_calls) for scene in scenes))
    return scenes
