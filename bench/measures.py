"""What is measured. Each measure runs in rounds, with its floor measured before and after every round."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import msgspec

from bench.floor import ASSISTANT_ID, THREAD_ID
from bench.load import Connection, Target, UnexpectedAnswer, hammer
from bench.processes import Server, empty_handler, memory_of, perdure
from bench.table import Row, rate_row, time_row

CLIENTS = (1, 16, 64)
THREADS = 512  # inserts and reads are spread over so many threads
MESSAGE = {"role": "user", "content": "What is 3 + 4? Please answer in one short sentence."}
ACTIVE = {b"queued", b"in_progress"}
STREAMS = 50
STREAM_WORDS = 400
TOKEN = b'"content":"'
DELTA = b"event: thread.message.delta"


class Length(NamedTuple):
    """How long to measure, and how much is held."""

    rounds: int
    seconds: float
    runs: int
    streams: int
    messages: int
    idle_seconds: float


async def interleaved(
    rounds: int, measure: Callable[[], Awaitable[float]], floor: Callable[[], Awaitable[float]]
) -> tuple[list[float], list[float]]:
    """Return the figures of all rounds, and for each the mean of the floors before and after it."""
    figures, floors = [], [await floor()]
    for _ in range(rounds):
        figures.append(await measure())
        floors.append(await floor())
    return figures, [mean(pair) for pair in itertools.pairwise(floors)]


# -- objects


async def objects(server: Server, empty: Server, length: Length) -> list[Row]:
    """Threads created and read, messages inserted, per second."""
    target, floor = Target(server.url), Target(empty.url)
    connection = await target.connect()
    ids = [id_of(await connection.ask(target.post("/threads"))) for _ in range(THREADS)]
    connection.close()
    kinds: dict[str, Callable[[Target, str], bytes]] = {
        "thread create": lambda where, _: where.post("/threads"),
        "thread read": lambda where, thread_id: where.get(f"/threads/{thread_id}"),
        "message insert": lambda where, thread_id: where.post(f"/threads/{thread_id}/messages", MESSAGE),
    }
    rows = []
    for name, build in kinds.items():
        requests = [build(target, thread_id) for thread_id in ids]
        same = [build(floor, THREAD_ID)]
        for clients in CLIENTS:
            rates, floors = await interleaved(
                length.rounds,
                lambda: hammer(target, clients, length.seconds, itertools.cycle(requests).__next__),  # noqa: B023
                lambda: hammer(floor, clients, length.seconds, itertools.cycle(same).__next__),  # noqa: B023
            )
            aim = "0.3" if (name, clients) == ("message insert", 16) else ""
            rows.append(rate_row(f"{name}, {_clients(clients)}", rates, floors, "/s", aim))
    return rows


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def id_of(body: bytes) -> str:
    return str(msgspec.json.decode(body)["id"])


def _status_of(body: bytes) -> bytes:
    """Cheaper than decoding: the answers hold the key once."""
    at = body.index(b'"status":"') + len(b'"status":"')
    return body[at : body.index(b'"', at)]


# -- runs


async def new_assistant(target: Target, **more: Any) -> str:
    connection = await target.connect()
    try:
        return id_of(await connection.ask(target.post("/assistants", {"model": "scripted", **more})))
    finally:
        connection.close()


async def _until_ended(target: Target, connection: Connection, path: str, *, held: bool) -> None:
    """Poll a run to its end: as the official polling helper does, or without its header each millisecond."""
    poll = target.get(path, x_stainless_poll_helper="true") if held else target.get(path)
    while (status := _status_of(await connection.ask(poll))) in ACTIVE:
        if not held:
            await asyncio.sleep(0.001)
    if status != b"completed":
        raise UnexpectedAnswer(f"a run ended {status.decode()}")


async def _whole_run(target: Target, connection: Connection, assistant_id: str, *, held: bool) -> float:
    """Thread, message, run, poll to the end: one after the other, as the notebook does. Returns seconds."""
    begun = time.perf_counter()
    thread_id = id_of(await connection.ask(target.post("/threads")))
    await connection.ask(target.post(f"/threads/{thread_id}/messages", MESSAGE))
    run_id = id_of(await connection.ask(target.post(f"/threads/{thread_id}/runs", {"assistant_id": assistant_id})))
    await _until_ended(target, connection, f"/threads/{thread_id}/runs/{run_id}", held=held)
    return time.perf_counter() - begun


async def run_latency(server: Server, empty: Server, length: Length) -> list[Row]:
    """The time from the first request to the completed run, one run at a time."""
    target, floor = Target(server.url), Target(empty.url)
    assistant_id = await new_assistant(target)
    rows = []
    async with target.connections(1) as (here,), floor.connections(1) as (there,):
        for how, held in (("official polling helper", True), ("polled each 1 ms", False)):
            await _whole_run(target, here, assistant_id, held=held)
            times, floors = [], []
            for _ in range(length.runs):
                floors.append(await _whole_run(floor, there, ASSISTANT_ID, held=held))
                times.append(await _whole_run(target, here, assistant_id, held=held))
            what = f"run: thread, message, run, poll to completed ({how})"
            rows.append(time_row(what, times, floors, "under +15 ms"))
    return rows


async def _runs_per_second(target: Target, assistant_id: str, clients: int, seconds: float) -> float:
    """Each client: create thread and run in one call, poll as the official helper does, again."""
    request = target.post("/threads/runs", {"assistant_id": assistant_id, "thread": {"messages": [MESSAGE]}})
    end = time.perf_counter() + seconds

    async def client(connection: Connection) -> int:
        done = 0
        while time.perf_counter() < end:
            run = msgspec.json.decode(await connection.ask(request))
            await _until_ended(target, connection, f"/threads/{run['thread_id']}/runs/{run['id']}", held=True)
            done += 1
        return done

    begun = time.perf_counter()
    async with target.connections(clients) as connections:
        counts = await asyncio.gather(*map(client, connections))
    return sum(counts) / (time.perf_counter() - begun)


async def run_throughput(server: Server, empty: Server, length: Length) -> list[Row]:
    """Runs ended per second with a model that answers at once; the floor answers the same two requests."""
    target, floor = Target(server.url), Target(empty.url)
    assistant_id = await new_assistant(target)
    rows = []
    for clients in CLIENTS:
        rates, floors = await interleaved(
            length.rounds,
            lambda: _runs_per_second(target, assistant_id, clients, length.seconds),  # noqa: B023
            lambda: _runs_per_second(floor, ASSISTANT_ID, clients, length.seconds),  # noqa: B023
        )
        rows.append(rate_row(f"runs, {_clients(clients)}", rates, floors, "/s"))
    return rows


# -- through an upstream


def chat_request(model: Target, question: str) -> bytes:
    """The request that Perdure sends for a run on a new thread."""
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return model.post("/chat/completions", body)


def upstream_script() -> str:
    words = " ".join(["token"] * STREAM_WORDS)
    rules = [{"when": "long", "say": words}]
    return msgspec.json.encode({"rules": rules, "otherwise": {"say": "It is 7."}}).decode()


def _run_request(target: Target, assistant_id: str, question: str) -> bytes:
    thread = {"messages": [{"role": "user", "content": question}]}
    return target.post("/threads/runs", {"assistant_id": assistant_id, "thread": thread, "stream": True})


async def _first(connection: Connection, request: bytes, mark: bytes) -> float:
    """Seconds to the first chunk that holds the mark."""
    arrived: list[float] = []

    def on_piece(piece: bytes) -> None:
        if not arrived and mark in piece:
            arrived.append(time.perf_counter())

    begun = time.perf_counter()
    await connection.stream(request, on_piece)
    return arrived[0] - begun


async def first_token(server: Server, model: Server, length: Length) -> list[Row]:
    """The time to the first token of a streamed run, against the same client straight on the model."""
    target, direct = Target(server.url), Target(model.url)
    assistant_id = await new_assistant(target)
    streamed = _run_request(target, assistant_id, "What is 3 + 4?")
    asked = chat_request(direct, "What is 3 + 4?")
    times, floors = [], []
    async with target.connections(1) as (here,), direct.connections(1) as (there,):
        await _first(here, streamed, DELTA)
        for _ in range(length.runs):
            floors.append(await _first(there, asked, TOKEN + b"I"))
            times.append(await _first(here, streamed, DELTA))
    what = "first token of a streamed run (thread, message and run created in the same call)"
    return [time_row(what, times, floors, "under +5 ms")]


async def _tokens_per_second(target: Target, request: bytes, mark: bytes, answers: int) -> float:
    """Tokens that arrive in all streams together, each stream asking so many times."""

    async def client(connection: Connection) -> int:
        count = 0
        for _ in range(answers):
            count += (await connection.stream(request, lambda _: None)).count(mark)
        return count

    async with target.connections(STREAMS) as connections:
        begun = time.perf_counter()
        counts = await asyncio.gather(*map(client, connections))
        return sum(counts) / (time.perf_counter() - begun)


async def relayed_tokens(server: Server, model: Server, length: Length) -> list[Row]:
    """Tokens relayed at once by many streams, as fast as the model gives them."""
    target, direct = Target(server.url), Target(model.url)
    assistant_id = await new_assistant(target)
    streamed, asked = _run_request(target, assistant_id, "long"), chat_request(direct, "long")
    rates, floors = await interleaved(
        length.rounds,
        lambda: _tokens_per_second(target, streamed, DELTA, 2),
        lambda: _tokens_per_second(direct, asked, TOKEN, 2),
    )
    return [rate_row(f"tokens relayed, {STREAMS} streams, floor: the model alone", rates, floors, "/s", "0.5")]


async def _answers_per_second(direct: Target, clients: int, seconds: float) -> float:
    request = chat_request(direct, "What is 3 + 4?")
    return await hammer(direct, clients, seconds, lambda: request)


async def upstream_runs(server: Server, model: Server, length: Length) -> list[Row]:
    """Runs per second where the model is another process that answers at once, against that model alone."""
    target, direct = Target(server.url), Target(model.url)
    assistant_id = await new_assistant(target)
    rows = []
    for clients in CLIENTS:
        rates, floors = await interleaved(
            length.rounds,
            lambda: _runs_per_second(target, assistant_id, clients, length.seconds),  # noqa: B023
            lambda: _answers_per_second(direct, clients, length.seconds),  # noqa: B023
        )
        what = f"runs over an upstream, {_clients(clients)}, floor: the model alone"
        rows.append(rate_row(what, rates, floors, "/s"))
    return rows


# -- start and idle


def start_and_idle(folder: Path, length: Length) -> list[Row]:
    """Start-up time and memory at idle, with each kind of model."""
    kinds: dict[str, dict[str, str] | None] = {
        "empty handler": None,
        "scripted model": {},
        "upstream only": {"builtin_model": "none", "upstream_url": "http://127.0.0.1:9/v1"},
        "built-in model": {"builtin_model": "smollm2-135m-instruct"},
    }
    starts: dict[str, list[float]] = {name: [] for name in kinds}
    held: dict[str, Any] = {}
    for number in range(length.rounds):
        for name, settings in kinds.items():
            place = folder / f"{name}-{number}"
            place.mkdir()
            try:
                with empty_handler(place) if settings is None else perdure(place, **settings) as server:
                    starts[name].append(server.start_seconds)
                    if name == "built-in model":
                        asyncio.run(_one_answer(server))
                    time.sleep(0.5)
                    held[name] = memory_of(server.pid)
            except RuntimeError as failure:  # the weights are an extra
                print(f"left out: {name}: {failure}")
    return _start_rows(starts) + _memory_rows(held)


async def _one_answer(server: Server) -> None:
    """A model that has never answered has not touched all its weights."""
    target = Target(server.url)
    assistant_id = await new_assistant(target)
    await _runs_per_second(target, assistant_id, 1, 0.01)


def _start_rows(starts: dict[str, list[float]]) -> list[Row]:
    floors = starts.pop("empty handler")
    return [time_row(f"process start to first 200, {name}", times, floors) for name, times in starts.items() if times]


def _memory_rows(held: dict[str, Any]) -> list[Row]:
    floor = held.pop("empty handler")
    rows = []
    for name, memory in held.items():
        if memory is None or floor is None:
            continue
        after = ", after an answer" if name == "built-in model" else ""
        rows.append(
            Row(
                f"memory at idle, {name}{after}",
                f"{memory.resident_bytes / 1e6:.0f} MB resident, {memory.proportional_bytes / 1e6:.0f} MB proportional",
                f"{floor.resident_bytes / 1e6:.0f} MB",
                f"{memory.resident_bytes / floor.resident_bytes:.2f}",
            )
        )
    return rows
