"""What must be true of a run's event log, and of whoever has read it while servers died."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from perdure.domain.lifecycle import RUN_MOVES
from perdure.wire.events import ATTEMPT_STRIDE, LAST_EVENTS, RUN_EVENTS
from tests.durability.promises import Json
from tests.durability.readings import Event, Reading

STATUSES = {name: status for status, name in RUN_EVENTS.items()}
DELTAS = {"thread.message.delta", "thread.run.step.delta"}


def check_log(log: list[Event], run: Json | None, messages: list[Json], steps: list[Json]) -> None:
    """Check a log that is over against what is stored; None for a run that was changed since."""
    numbers = [event.number for event in log]
    assert numbers == sorted(set(numbers)), "numbers rise and do not repeat"
    check_moves(log)
    assert [event.name for event in log if event.name in LAST_EVENTS] == [log[-1].name]
    if run is not None:
        assert log[-1].body == run
    check_objects(log, "thread.message", {"completed", "incomplete"}, messages)
    check_objects(log, "thread.run.step", {"completed", "failed", "cancelled", "expired"}, steps)
    check_deltas(log)


def check_moves(log: list[Event]) -> None:
    statuses = [STATUSES.get(event.name, "queued") for event in log if event.name in STATUSES]
    for old, new in pairwise(statuses):
        assert new in RUN_MOVES[old], f"{old} to {new}"


def check_objects(log: list[Event], kind: str, ends: set[str], stored: list[Json]) -> None:
    """Each object is created once, ended once, before the next one begins, and is stored as its end shows it."""
    last: dict[str, Any] = {}
    open_id: str | None = None
    for event in log:
        name = event.name.removeprefix(f"{kind}.")
        if name == event.name or "." in name or name == "delta":
            continue
        body = event.body
        if name == "created":
            assert open_id is None, f"{open_id} is half-written, and {body['id']} is begun"
            assert body["id"] not in last
            open_id = body["id"]
        assert open_id == body["id"]
        last[body["id"]] = body
        if name in ends:
            open_id = None
    assert open_id is None
    assert list(last) == [one["id"] for one in stored]
    assert list(last.values()) == stored


def check_deltas(log: list[Event]) -> None:
    """The deltas of a message concatenate to it."""
    texts: dict[str, str] = {}
    for event in log:
        if event.name == "thread.message.delta":
            body = event.body
            texts[body["id"]] = texts.get(body["id"], "") + text_of_parts(body["delta"]["content"])
        if event.name in {"thread.message.completed", "thread.message.incomplete"}:
            body = event.body
            assert text_of_parts(body["content"]) == texts.pop(body["id"], "")
    assert not texts


def text_of_parts(parts: Iterable[Json]) -> str:
    return "".join(part["text"]["value"] for part in parts if part["type"] == "text")


def check_reading(reading: Reading, log: list[Event]) -> None:
    """A reader has seen just the log, and perhaps deltas that a death took from it."""
    assert not reading.gone
    numbers = [event.number for event in reading.events]
    assert numbers == sorted(set(numbers)), "nothing is seen twice"
    in_log = set(log)
    extra = [event for event in reading.events if event not in in_log]
    assert [event for event in reading.events if event in in_log] == log, f"{reading.path}: something was not seen"
    last_of_attempt: dict[int, int] = {}
    for event in log:
        last_of_attempt[event.number // ATTEMPT_STRIDE] = event.number
    for event in extra:
        attempt = event.number // ATTEMPT_STRIDE
        assert event.name in DELTAS, f"{event.name} was shown and is not in the log"
        assert event.number > last_of_attempt[attempt]
        assert attempt < max(last_of_attempt), "the attempt died"
