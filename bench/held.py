"""What is held: open streams that wait, and threads that have grown long."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bench.load import Connection, Target, fast_loop
from bench.measures import MESSAGE, Length, new_assistant
from bench.processes import Server, cpu_seconds_of, empty_handler, memory_of, perdure
from bench.table import Row, time_row
from perdure.app import DATABASE_FILE
from perdure.domain.creation import new_message, new_thread
from perdure.ids import RandomIds
from perdure.store.keys import DEFAULT_PROJECT
from perdure.store.messages import insert_messages
from perdure.store.sqlite import SqliteDatabase
from perdure.store.threads import insert_thread
from perdure.wire.messages import CreateMessage
from perdure.wire.threads import CreateThread

FIRST_WAIT_SECONDS = 3.0  # what opening cost is over then
BATCH = 5000
SHORT_THREAD = 100
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
ASKS = {"otherwise": {"call": [{"name": "look"}]}}
T = TypeVar("T")


# -- streams that wait


def idle_streams(folder: Path, length: Length) -> list[Row]:
    """Memory and CPU of open streams while nothing happens: each follows a run of its own that waits for outputs."""
    _allow_files(length.streams + 200)
    script = folder / "script.json"
    script.write_bytes(msgspec.json.encode(ASKS))
    with perdure(folder / "held", script=str(script)) as server:
        held = _run(_held(server, length, waiting=True))
    with empty_handler(folder) as empty:
        floor = _run(_held(empty, length, waiting=False))
    what = f"{length.streams:,} open streams, each on a run that waits"
    if held is None or floor is None:
        return []
    memory, floor_memory = (one[0] / length.streams / 1024 for one in (held, floor))
    return [
        Row(
            f"memory of a stream, {what}",
            f"{memory:.1f} KB",
            f"{floor_memory:.1f} KB",
            f"{memory / floor_memory:.2f}",
        ),
        Row(f"CPU, {what}", f"{held[1]:.1%} of a core", f"{floor[1]:.1%}", ""),
    ]


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else hard, hard))


async def _held(server: Server, length: Length, *, waiting: bool) -> tuple[float, float] | None:
    """Return the bytes that the streams add, and the share of a core that they take."""
    target = Target(server.url)
    paths = ["/threads/t/runs/r"] * length.streams
    if waiting:
        paths = await _waiting_runs(target, length.streams)
    before = memory_of(server.pid)
    async with target.connections(length.streams) as connections:
        opened = [_first_piece(one, target.get(f"{path}/events")) for one, path in zip(connections, paths, strict=True)]
        await asyncio.gather(*opened)
        await asyncio.sleep(FIRST_WAIT_SECONDS)
        begun, spent = time.perf_counter(), cpu_seconds_of(server.pid)
        await asyncio.sleep(length.idle_seconds)
        busy = (cpu_seconds_of(server.pid) - spent) / (time.perf_counter() - begun)
        after = memory_of(server.pid)
    if before is None or after is None:
        return None
    return after.proportional_bytes - before.proportional_bytes, busy


async def _first_piece(connection: Connection, request: bytes) -> None:
    """Open a stream and leave it open."""
    came: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_piece(_: bytes) -> None:
        if not came.done():
            came.set_result(None)

    connection.watch(on_piece)
    connection.send(request, lambda _status, _body: None)
    await came


async def _waiting_runs(target: Target, count: int) -> list[str]:
    """Make runs, each on a thread of its own, and return their paths when all of them wait for outputs."""
    assistant_id = await new_assistant(target, tools=[TOOL])
    body = {"assistant_id": assistant_id, "thread": {"messages": [MESSAGE]}}
    paths: list[str] = []

    async def make(connection: Connection) -> None:
        while len(paths) < count:
            run = msgspec.json.decode(await connection.ask(target.post("/threads/runs", body)))
            paths.append(f"/threads/{run['thread_id']}/runs/{run['id']}")

    async with target.connections(16) as connections:
        await asyncio.gather(*map(make, connections))
        for path in paths:
            await _until_waiting(connections[0], target.get(path))
    return paths[:count]


async def _until_waiting(connection: Connection, poll: bytes) -> None:
    while b'"status":"requires_action"' not in await connection.ask(poll):  # noqa: ASYNC110  # the server is another process
        await asyncio.sleep(0.005)


# -- long threads


def last_page(folder: Path, length: Length) -> list[Row]:
    """The last page of a long thread, from both ends of the order; the floor is a thread of a hundred messages."""
    data = folder / "long"
    data.mkdir(parents=True)
    ids = {count: _run(_fill(data, count)) for count in (SHORT_THREAD, length.messages)}
    rows = []
    with perdure(data) as server:
        for name, query in (("newest first", "order=desc"), ("oldest first, from a cursor", "order=asc&after={after}")):
            times = _run(_page_times(server, ids, query, length.runs))
            what = f"last page of {length.messages:,} messages, {name}; floor: of {SHORT_THREAD}"
            rows.append(time_row(what, times[length.messages], times[SHORT_THREAD]))
    return rows


async def _fill(data: Path, count: int) -> tuple[str, str]:
    """Store a thread; return its id and that of the message before its last page of 20."""
    ids, now = RandomIds(), 1_700_000_000
    database = await SqliteDatabase.open(data / DATABASE_FILE)
    thread = new_thread(CreateThread(), ids.new("thread"), now)
    await database.run(insert_thread, thread, [], DEFAULT_PROJECT)
    body, made = CreateMessage(role="user", content=MESSAGE["content"]), 0
    before_last = ""
    while made < count:
        some = [new_message(body, thread.id, ids.new("msg"), now) for _ in range(min(BATCH, count - made))]
        made += len(some)
        await database.run(insert_messages, some)
        before_last = some[-21].id
    await database.close()
    return thread.id, before_last


async def _page_times(
    server: Server, ids: dict[int, tuple[str, str]], query: str, times: int
) -> dict[int, list[float]]:
    """Ask for the page of each thread in turns; return seconds."""
    target = Target(server.url)
    requests = {
        count: target.get(f"/threads/{thread_id}/messages?limit=20&{query.format(after=after)}")
        for count, (thread_id, after) in ids.items()
    }
    taken: dict[int, list[float]] = {count: [] for count in ids}
    async with target.connections(1) as (connection,):
        for number in range(times + 10):
            for count, request in requests.items():
                begun = time.perf_counter()
                await connection.ask(request)
                if number >= 10:  # the first ones fill caches
                    taken[count].append(time.perf_counter() - begun)
    return taken


def _run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        return runner.run(work)
