"""Is there an order of all calls that respects real time and explains every answer? (Wing and Gong, just in time.)

The history is read from left to right. What may be true at a moment is a set of possibilities: a state of the thread,
and which of the open calls have taken effect already. When a call ends it must have taken effect, with the answer that
it got: open calls and the server's own moves are tried in every order until it has, and what can not get there is
dropped. No possibility left: no order explains the history. Possibilities are merged when they are equal, so long
histories cost no more than short ones; where no call is open there are few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from tests.history.model import Answer, State, answer, fits, move, visible
from tests.history.moves import Move, Submitted
from tests.history.record import Call, brief

MOST_POSSIBILITIES = 200_000
MOST_SHOWN = 40


class Possibility(NamedTuple):
    """A state of the thread, and the numbers of the open calls that have taken effect."""

    state: State
    done: frozenset[int]


class UnexplainedError(AssertionError):
    """No order explains the history. The text shows the window in which the search is stuck."""


class Order(NamedTuple):
    """What the last full lists say about the order: where an order contradicts it, it need not be tried."""

    messages: dict[str, int]
    runs: dict[str, int]

    def allows(self, state: State) -> bool:
        """Say whether what stands in the lists already may stand there."""
        return (
            _rises([one.id for one in state.messages], self.messages)
            and _rises([one.id for one in state.runs], self.runs)
            and all(
                _rises([one.message.id for one in state.line if one.message and one.interrupts is kind], self.messages)
                for kind in (True, False)
            )
        )


def _rises(ids: list[str], places: dict[str, int]) -> bool:
    known = [places[one] for one in ids if one in places]
    return all(left < right for left, right in itertools.pairwise(known))


NO_ORDER = Order({}, {})


def last_order(calls: list[Call]) -> Order:
    """Return the order of the last lists that were read to their end, oldest first, page after page."""
    last: dict[str, list[str]] = {"list_messages": [], "list_runs": []}
    pages: dict[str, list[str]] = {"list_messages": [], "list_runs": []}
    for call in calls:
        if call.name not in pages or call.answer[0] != "ok" or call.args["order"] != "asc":
            continue
        after, ids = call.args["after"], [row[0] for row in call.answer[1]]
        if after is None:
            pages[call.name] = ids
        elif pages[call.name][-1:] == [after]:
            pages[call.name] += ids
        if not call.answer[2] and after in {None, *pages[call.name]}:
            last[call.name] = list(pages[call.name])
    places = ({one: place for place, one in enumerate(ids)} for ids in last.values())
    return Order(*places)


class Checker:
    """Explains the history of one thread. `moves` are the server's own, by run."""

    def __init__(self, calls: list[Call], moves: dict[str, tuple[Move, ...]], order: Order = NO_ORDER) -> None:
        self._calls = {call.number: call for call in calls}
        self._moves = moves
        self._order = order
        self._open: set[int] = set()
        self.widest = 0

    def check(self, start: State | None = None) -> set[State]:
        """Return the states that the thread may be in at the end. Raises UnexplainedError."""
        now = {Possibility(start or State(), frozenset())}
        quiet = -math.inf
        for time, ends, number in self._edges():
            call = self._calls[number]
            if not ends:
                if not any(self._calls[one].is_known for one in self._open):
                    quiet = time
                self._open.add(number)
                continue
            before, now = now, self._after(call, now)
            self._open.discard(number)
            if not now:
                raise UnexplainedError(self._report(call, before, quiet))
        return {one.state for one in now}

    def _edges(self) -> list[tuple[float, bool, int]]:
        """All begins and ends by time; of the same moment begins come first, which allows more."""
        begins = [(call.begun, False, call.number) for call in self._calls.values()]
        ends = [(call.ended, True, call.number) for call in self._calls.values() if not math.isinf(call.ended)]
        return sorted([*begins, *ends])

    def _after(self, call: Call, now: set[Possibility]) -> set[Possibility]:
        """Return what may be true after a call's end: it has taken effect; without an answer, perhaps it never will."""
        reached = {one for one in self._explored(now, call) if call.number in one.done}
        if not call.is_known:
            reached |= now
        return {one._replace(done=one.done - {call.number}) for one in reached}

    def _explored(self, now: set[Possibility], until: Call) -> set[Possibility]:
        """Return all that can come of the possibilities, each only until the call has taken effect."""
        seen = {self._with_reads(one) for one in now}
        left = list(seen)
        while left:
            one = left.pop()
            if until.number in one.done:
                continue
            for after in self._next(one):
                settled = self._with_reads(after)
                if settled not in seen:
                    seen.add(settled)
                    left.append(settled)
            if len(seen) > MOST_POSSIBILITIES:
                raise RuntimeError(f"undecided: more than {MOST_POSSIBILITIES} possibilities at {until.told()}")
        self.widest = max(self.widest, len(seen))
        return seen

    def _with_reads(self, one: Possibility) -> Possibility:
        """Take in all open calls that fit here and change nothing: no order is lost by letting them go first."""
        done = {
            number
            for number in self._open - one.done
            if self._calls[number].is_known and one.state in self._states_after(one.state, self._calls[number])
        }
        return one._replace(done=one.done | done) if done else one

    def _next(self, one: Possibility) -> Iterator[Possibility]:
        for number in self._open - one.done:
            for state in self._states_after(one.state, self._calls[number]):
                if state != one.state and self._order.allows(state) and self._follows_logs(one.state, state):
                    yield Possibility(state, one.done | {number})
        for run in one.state.runs:
            moves = self._moves.get(run.id, ())
            moved = move(one.state, run, moves[run.at]) if run.at < len(moves) else None
            if moved is not None and self._order.allows(moved):
                yield one._replace(state=moved)

    def _states_after(self, state: State, call: Call) -> Iterator[State]:
        """Yield the states after a call that is answered so; a call without an answer may have had any."""
        known = {one.id for one in state.runs} | {one.id for one in visible(state)}
        for made in call.made:
            if known.isdisjoint(made):
                expected, after = answer(state, call.name, call.args, made)
                if not call.is_known or fits(expected, call.answer):
                    yield after

    def _follows_logs(self, before: State, after: State) -> bool:
        """Say whether outputs came in only where the run's log says that they did."""
        for old, new in zip(before.runs, after.runs, strict=False):
            if old.at != new.at and self._moves.get(new.id, ())[old.at : new.at] != ((Submitted(),),):
                return False
        return True

    # -- the explanation of a failure

    def _report(self, stuck: Call, before: set[Possibility], quiet: float) -> str:
        self._open.add(stuck.number)
        states = self._explored(before, stuck)
        window = [one for one in self._calls.values() if one.ended >= quiet and one.begun <= stuck.ended]
        window.sort(key=lambda one: one.begun)
        left_out = max(0, len(window) - MOST_SHOWN)
        lines = [f"No order explains this answer: {stuck.told()}", "", "The calls since all was quiet, in ms:"]
        lines += [f"  ... {left_out} calls ..."] if left_out else []
        lines += [
            f"{'>' if one is stuck else ' '} {1000 * (one.begun - quiet):9.2f} {1000 * (one.ended - quiet):9.2f} "
            f"{one.told()}"
            for one in window[left_out:]
        ]
        lines += ["", f"{len(states)} possibilities were reached; where most was explained:"]
        best = max(len(one.done) for one in states)
        nearest = [one for one in states if len(one.done) == best]
        answers = {self._said(one.state, stuck): one.state for one in nearest}
        for said, state in list(answers.items())[:4]:
            lines += [f"  the thread would have said {brief(said)}", *(f"    {line}" for line in _drawn(state))]
        return "\n".join(lines)

    def _said(self, state: State, call: Call) -> Answer:
        return answer(state, call.name, call.args, call.made[0])[0]


def _drawn(state: State) -> list[str]:
    """Return a state in a few lines, only the newest of its messages."""
    if state.there is not True:
        return ["no thread"]
    messages = [f"{one.text!r} {one.status}{' deleted' if one.deleted else ''}" for one in state.messages[-8:]]
    line = [one.run_id or (one.message.text if one.message else "") for one in state.line]
    runs = [f"{one.id} {one.status}{' waits' if one.waits else ''}" for one in state.runs[-5:]]
    return [f"messages: {', '.join(messages)}", f"line: {', '.join(line)}", f"runs: {', '.join(runs)}"]
