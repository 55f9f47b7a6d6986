"""The server's own moves on a thread, read from the event log of each run.

The log gives them in their order, so that the checker need not guess what a run did, only when: claimed, message begun,
message closed, moved on. One move is what one transaction of the server writes. What clients do to a run (create it,
cancel it, submit outputs) are calls and not moves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class To(NamedTuple):
    """The run's status changes."""

    status: str


class Begin(NamedTuple):
    """A message is begun, empty."""

    message_id: str


class Close(NamedTuple):
    """A message has its text and its last status."""

    message_id: str
    status: str
    text: str


class Submitted(NamedTuple):
    """Here a client's outputs came in."""


Effect = To | Begin | Close | Submitted
Move = tuple[Effect, ...]
Event = tuple[str, dict[str, Any]]


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"]["value"] for part in message["content"])


def moves_of(events: Iterable[Event]) -> tuple[Move, ...]:  # noqa: C901  # one branch for each kind of event
    """Return a run's own moves, out of the names and data of its events."""
    moves: list[Move] = []
    together: list[Effect] = []
    status = ""

    def end_move() -> None:
        if together:
            moves.append(tuple(together))
            together.clear()

    for name, data in events:
        kind, _, word = name.rpartition(".")
        if name == "thread.message.created":
            together.append(Begin(data["id"]))
            end_move()
        elif name in {"thread.message.completed", "thread.message.incomplete"}:
            together.append(Close(data["id"], word, text_of(data)))
        elif name == "thread.run.step.created":
            end_move()
        elif kind == "thread.run" and word not in {"created", "cancelling"}:
            if any(isinstance(one, Close) and one.status == "completed" for one in together) and word != "completed":
                end_move()  # a message that was whole before its run was broken off
            if status == "requires_action" and word == "queued":
                together.append(Submitted())
            elif status:
                together.append(To(word))
            status = word
            end_move()
    return tuple(moves)
