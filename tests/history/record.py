"""Recording what clients ask and what they are answered, with the times of one clock around each call.

An answer is one of: what came, as a tuple; the refusal, word for word; or UNKNOWN, when the connection broke. Such a
call may have taken effect at any moment until `until`, or never; `forget` sets that when the server is gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import httpx2
import openai

from tests.history.model import Answer, Args, Ids

UNKNOWN: Answer = ("unknown",)
MOST_ROWS = 12
MAKES_RUNS = frozenset({"create_run", "retry_run"})


class Call(NamedTuple):
    """One call on one thread. `made`: the ids that the server may have made up for it, several if that is unclear."""

    number: int
    client: str
    name: str
    args: Args
    begun: float
    ended: float
    answer: Answer
    made: tuple[Ids, ...] = ((),)

    @property
    def is_known(self) -> bool:
        return self.answer != UNKNOWN

    def told(self) -> str:
        """Return the call in one line."""
        args = ", ".join(f"{name}={value}" for name, value in self.args.items() if name not in {"thread", "token"})
        return f"{self.client} {self.name}({args}) -> {brief(self.answer)}"


def brief(answer: Answer) -> str:
    """Return an answer as text; of long lists the ends."""
    return repr(tuple(_ends(part) if isinstance(part, tuple) else part for part in answer))


def _ends(rows: tuple[Any, ...]) -> Any:
    return rows if len(rows) <= MOST_ROWS else (*rows[:3], f"... {len(rows)} in all ...", *rows[-6:])


class NeverArrivedError(Exception):
    """Nobody listened: the call can not have had an effect."""


class Recorder:
    """The calls on one thread, in the order in which they were begun."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._calls: dict[int, Call] = {}
        self._numbers = 0

    async def ask(self, client: str, name: str, args: Args, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Make a call and remember it. Raises NeverArrivedError, and InternalServerError for a 500."""
        self._numbers += 1
        number, begun = self._numbers, self._clock()
        self._calls[number] = Call(number, client, name, args, begun, math.inf, UNKNOWN)
        try:
            answer = await _answer_of(work)
        except NeverArrivedError:
            del self._calls[number]
            raise
        if answer != UNKNOWN:
            self._calls[number] = self._calls[number]._replace(ended=self._clock(), answer=answer)
        return answer

    @property
    def open(self) -> list[int]:
        """The numbers of the calls that have no answer yet, or never will."""
        return [number for number, call in self._calls.items() if math.isinf(call.ended)]

    def forget(self, numbers: list[int]) -> None:
        """The server that had these calls is dead: those without an answer take no effect any more from now on."""
        now = self._clock()
        for number in numbers:
            call = self._calls.get(number)
            if call is not None and math.isinf(call.ended):
                self._calls[number] = call._replace(ended=now)

    @property
    def calls(self) -> list[Call]:
        return list(self._calls.values())


async def _answer_of(work: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        return await work()
    except openai.InternalServerError as failure:
        if failure.status_code == httpx2.codes.INTERNAL_SERVER_ERROR:
            raise  # a bug of the server, and not an outcome
        return UNKNOWN
    except openai.APIStatusError as refusal:
        return ("refused", refusal.status_code, refusal.response.json()["error"]["message"])
    except openai.APIConnectionError as failure:
        if isinstance(failure.__cause__, httpx2.ConnectError):
            raise NeverArrivedError from failure
        return UNKNOWN
    except httpx2.HTTPError:
        return UNKNOWN


def seen_texts(calls: list[Call]) -> dict[str, str]:
    """Return the ids of all messages that some answer has shown, by the text that they had: no text is there twice."""
    found: dict[str, str] = {}
    for call in calls:
        for row in _shown_messages(call):
            found.setdefault(row[3], row[0])
    return found


def _shown_messages(call: Call) -> list[Any]:
    if call.answer[0] != "ok":
        return []
    if call.name == "list_messages":
        return list(call.answer[1])
    if call.name in {"get_message", "mark_message", "edit_message"}:
        return [call.answer[1:]]
    return []


def with_ids(calls: list[Call], run_tokens: dict[str, str]) -> list[Call]:
    """Return the calls with the ids that the server made up for each: from its answer, or from what was seen later.

    `run_tokens` are the runs that are there at the end, with the token that was sent along when they were made.
    """
    texts = seen_texts(calls)
    claimed = {call.answer[1] for call in calls if call.name in MAKES_RUNS and call.answer[0] == "ok"}
    unclaimed = {run_id: token for run_id, token in run_tokens.items() if run_id not in claimed}
    return [call._replace(made=_made(call, texts, unclaimed)) for call in calls]


def _made(call: Call, texts: dict[str, str], unclaimed: dict[str, str]) -> tuple[Ids, ...]:
    """What nobody ever saw has an id that nobody has."""
    said = [call.args["text"]] if call.name == "add_message" else call.args.get("texts", [])
    messages = tuple(texts.get(text, f"unseen {call.number}.{place}") for place, text in enumerate(said))
    if call.name not in MAKES_RUNS:
        return ((call.answer[1],) if call.name == "add_message" and call.answer[0] == "ok" else messages,)
    if call.answer[0] == "ok":
        return ((call.answer[1], *messages),)
    found = [run_id for run_id, token in unclaimed.items() if token == call.args["token"] and not call.is_known]
    return tuple((run_id, *messages) for run_id in [*found, f"unseen {call.number}"])
