"""What must hold when all is quiet again. Each invariant has a name, which comes first in its failure."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import msgspec

from perdure.domain.lifecycle import RUN_MOVES, TERMINAL
from perdure.wire.events import ATTEMPT_STRIDE
from tests.simulation.play import Play, Reader, ViolationError

MOST_RECOVERIES = 3
Json = dict[str, Any]


class Stored(msgspec.Struct):
    """What the store has of a run: [number, name, data] of each event, in the order in which they were written."""

    run: Json
    recoveries: int
    events: list[tuple[int, str, Json]]
    messages: list[Json]
    steps: list[Json]


def require(name: str, holds: object, detail: object) -> None:
    if not holds:
        raise ViolationError(name, str(detail))


def check_all(play: Play) -> None:
    """Check every invariant. Raises ViolationError."""
    rows = play.world.connection.execute("SELECT id FROM runs").fetchall()
    stored = {row[0]: read_run(play, row[0]) for row in rows}
    check_acknowledged(play, stored)
    for one in stored.values():
        check_log(one)
        check_objects(one)
        check_answers(play, one)
    for reader in play.readers:
        if reader.run_id in stored:
            check_reader(reader, stored[reader.run_id])
    waiting = play.world.connection.execute(
        "SELECT id FROM runs WHERE waits > 0 UNION ALL SELECT id FROM messages WHERE waits > 0"
    ).fetchall()
    require("line-is-empty", not waiting, waiting)
    for process in play.world.processes:
        require("nothing-leaks", process.dead or process.feeds.open == 0, f"{process.name} has open feeds")


def read_run(play: Play, run_id: str) -> Stored:
    def bodies(table: str) -> list[Json]:
        rows = play.world.connection.execute(f"SELECT body FROM {table} WHERE run_id = ? ORDER BY seq", (run_id,))
        return [msgspec.json.decode(row[0]) for row in rows]

    body, status, recoveries = play.world.connection.execute(
        "SELECT body, status, recoveries FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    run = msgspec.json.decode(body)
    require("one-status", run["status"] == status, run_id)
    rows = play.world.connection.execute("SELECT events FROM run_events WHERE run_id = ? ORDER BY rowid", (run_id,))
    events = [tuple(event) for row in rows for event in msgspec.json.decode(row[0])]
    return Stored(run, recoveries, events, bodies("messages"), bodies("steps"))


def check_acknowledged(play: Play, stored: dict[str, Stored]) -> None:
    told = play.acknowledged
    for run_id, thread_id in told.runs.items():
        if thread_id not in told.deleted:
            require("nothing-lost", run_id in stored, f"{run_id} is gone")
    for message_id, (thread_id, text) in told.messages.items():
        if thread_id in told.deleted:
            continue
        rows = play.world.connection.execute("SELECT body FROM messages WHERE id = ?", (message_id,)).fetchall()
        require("nothing-lost", len(rows) == 1, f"{message_id} is there {len(rows)} times")
        require("nothing-lost", text_of(msgspec.json.decode(rows[0][0])) == text, f"{message_id} has changed")


def check_log(one: Stored) -> None:
    """Numbers rise in the order of writing, statuses move along the table, what is opened is closed once."""
    run_id = one.run["id"]
    numbers = [number for number, _, _ in one.events]
    require("log-order", all(left < right for left, right in itertools.pairwise(numbers)), f"{run_id}: {numbers}")
    status, opened, closed = "", set[str](), set[str]()
    for number, name, data in one.events:
        kind, _, word = name.rpartition(".")
        require("log-ends", status not in TERMINAL, f"{run_id}: {name} {number} after {status}")
        if kind == "thread.run":
            now = "queued" if word == "created" else word
            legal = not status or now == status == "queued" or now in RUN_MOVES[status]  # type: ignore[index]
            require("log-legal", legal, f"{run_id}: {status} -> {now}")
            require("log-legal", now not in TERMINAL or opened == closed, f"{run_id}: {now} with parts open")
            status = now
        elif word == "created" and kind != "thread":
            require("log-legal", data["id"] not in opened, f"{run_id}: {data['id']} was begun twice")
            opened.add(data["id"])
        elif word == "delta":
            require("log-legal", data["id"] in opened - closed, f"{run_id}: a delta of {data['id']}")
        elif word in {"completed", "failed", "cancelled", "expired", "incomplete"}:
            require("log-legal", data["id"] in opened - closed, f"{run_id}: {data['id']} ends twice")
            closed.add(data["id"])
    require("log-is-true", status == one.run["status"], f"{run_id}: log {status}, run {one.run['status']}")
    attempts = [number // ATTEMPT_STRIDE for number, name, _ in one.events if name == "thread.run.in_progress"]
    require("fence", len(attempts) == len(set(attempts)), f"{run_id}: attempts {attempts}")


def check_objects(one: Stored) -> None:
    """The run is over, nothing of it is open, and the log tells each object's last state and whole text."""
    run_id = one.run["id"]
    require("every-run-ends", one.run["status"] in TERMINAL, f"{run_id} is {one.run['status']}")
    if one.recoveries >= MOST_RECOVERIES:
        reason = (one.run["last_error"] or {}).get("message", "")
        ended = one.run["status"] in {"cancelled", "expired"} or "interrupted" in reason
        require("three-recoveries", ended, f"{run_id}: {one.recoveries} recoveries, {one.run['status']}")
    last = {data["id"]: data for _, name, data in one.events if not name.endswith(".delta")}
    for part in [*one.messages, *one.steps]:
        require("nothing-open", part["status"] != "in_progress", f"{run_id}: {part['id']}")
        require("log-is-true", last.get(part["id"]) == part, f"{run_id}: {part['id']}")
    for message in one.messages:
        said = said_in(one.events, message["id"])
        require("deltas-add-up", said == text_of(message), f"{message['id']}: {said!r}, {text_of(message)!r}")


def check_answers(play: Play, one: Stored) -> None:
    """Each completed message is one whole answer of the model, none is there twice, no output is there twice."""
    run_id, answers = one.run["id"], Counter[str]()
    for message in one.messages:
        pieces = re.findall(r"<(\d+)\.(\d+)/(\d+)>", text_of(message))
        require("answers-are-whole", len({piece[0] for piece in pieces}) <= 1, f"{run_id}: {text_of(message)}")
        places = [int(piece[1]) for piece in pieces]
        require("answers-are-whole", places == list(range(len(places))), f"{run_id}: {text_of(message)}")
        if message["status"] == "completed":
            require("answers-are-whole", pieces and len(places) == int(pieces[0][2]), f"{run_id}: {text_of(message)}")
            answers[pieces[0][0]] += 1
    require("answers-once", all(count == 1 for count in answers.values()), f"{run_id}: {answers}")
    if one.run["status"] == "completed":
        require("answers-once", one.messages[-1]["status"] == "completed", run_id)
    calls = [call for step in one.steps for call in step["step_details"].get("tool_calls", [])]
    given = Counter(call["id"] for call in calls)
    require("outputs-once", all(count == 1 for count in given.values()), f"{run_id}: {given}")
    for call in calls:
        told = play.acknowledged.outputs.get(call["id"])
        require("nothing-lost", told in {None, call["function"]["output"]}, f"{run_id}: the output of {call['id']}")


def check_reader(reader: Reader, one: Stored) -> None:
    """What was seen is the log up to the last number seen, but for deltas that were shown and never committed."""
    log = {number: name for number, name, _ in one.events if number <= reader.cursor}
    seen = {event.sequence: event.name for event in reader.seen}
    require("readers-miss-nothing", set(log) <= set(seen), f"{reader.run_id}: {sorted(set(log) - set(seen))}")
    extra = {number: name for number, name in seen.items() if number not in log}
    require("seen-before-commit", all(name.endswith(".delta") for name in extra.values()), f"{reader.run_id}: {extra}")
    decoded = [(event.sequence, event.name, msgspec.json.decode(event.data)) for event in reader.seen]
    for message in one.messages:
        if message["status"] == "completed" and reader.done and reader.cursor >= one.events[-1][0]:
            said = said_in(decoded, message["id"])
            require("streams-add-up", said == text_of(message), f"{message['id']}: {said!r}")


def said_in(events: list[tuple[int, str, Json]], message_id: str) -> str:
    deltas = [data for _, name, data in events if name == "thread.message.delta" and data["id"] == message_id]
    return "".join(part["text"]["value"] for delta in deltas for part in delta["delta"]["content"])


def text_of(message: Json) -> str:
    return "".join(part["text"]["value"] for part in message["content"])
