"""The checker itself: small histories, good ones that it explains and bad ones that it must not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.history.check import Checker, UnexplainedError, last_order
from tests.history.model import Answer
from tests.history.moves import Begin, Close, Move, To, moves_of
from tests.history.record import UNKNOWN, Call, with_ids

LOGS: dict[str, tuple[Move, ...]] = {
    "r1": ((To("in_progress"),), (Begin("a1"),), (Close("a1", "completed", "yes"), To("completed"))),
    "r2": ((To("in_progress"),), (To("cancelled"),)),
}


class Story:
    """A history written by hand: each line is a call, with the moments of its begin and its end."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._numbers = itertools.count(1)
        self("create_thread", -2, -1, ("ok",), texts=[])

    def __call__(self, name: str, begun: float, ended: float, answer: Answer, **args: Any) -> None:
        args = {"thread": "t", "token": "", **args}
        self._calls.append(Call(next(self._numbers), f"c{ended}", name, args, begun, ended, answer))

    def add(self, begun: float, ended: float, message_id: str, busy: str = "reject", behind: str | None = None) -> None:
        self("add_message", begun, ended, ("ok", message_id, behind), text=f"text {message_id}", busy=busy)

    def refuse(self, begun: float, ended: float, text: str, run_id: str) -> None:
        words = f"Can't add messages to t while a run {run_id} is active."
        self("add_message", begun, ended, ("refused", 400, words), text=text, busy="reject")

    def run(self, begun: float, ended: float, run_id: str, behind: str | None = None, busy: str = "reject") -> None:
        self("create_run", begun, ended, ("ok", run_id, "queued", behind), texts=[], busy=busy)

    def see(self, begun: float, ended: float, *ids: str, order: str = "asc", after: str | None = None) -> None:
        rows = tuple(answered() if one == "a1" else said(one) for one in ids)
        self("list_messages", begun, ended, ("ok", rows, False), order=order, after=after, limit=1000)

    def check(self, *, ordered: bool = False) -> None:
        calls = with_ids(self._calls, {})
        (Checker(calls, LOGS, last_order(calls)) if ordered else Checker(calls, LOGS)).check()


def said(message_id: str) -> Answer:
    return (message_id, "user", "completed", f"text {message_id}", "")


def answered() -> Answer:
    return ("a1", "assistant", "completed", "yes", "")


def unexplained(story: Story) -> str:
    """Both ways of looking must find it; return what is said."""
    with pytest.raises(UnexplainedError):
        story.check(ordered=True)
    with pytest.raises(UnexplainedError) as caught:
        story.check()
    return str(caught.value)


def test_calls_one_after_the_other() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r1")
    story.refuse(4, 5, "no", "r1")
    story("get_run", 6, 7, ("ok", "r1", "completed"), run="r1")
    story.add(8, 9, "m2")
    story.see(10, 11, "m1", "a1", "m2")
    story.see(12, 13, "m2", "a1", "m1", order="desc")
    story.see(14, 15, "m2", after="a1")
    story.check()
    story.check(ordered=True)


def test_calls_at_once_may_have_any_order() -> None:
    for ids in itertools.permutations(["m1", "m2", "m3"]):
        story = Story()
        story.add(0, 9, "m1")
        story.add(1, 8, "m2")
        story.add(2, 7, "m3")
        story.see(10, 11, *ids)
        story.check()
        story.check(ordered=True)


def test_the_server_moves_when_it_likes() -> None:
    for ids in (["m1"], ["m1", "a1"]):
        story = Story()
        story.add(0, 1, "m1")
        story.run(2, 3, "r1")
        story.see(4, 5, *ids)
        story.check()


def test_what_was_never_answered_may_have_been_done_or_not() -> None:
    for ids in (["m1"], ["m1", "m2"]):
        story = Story()
        story.add(0, 1, "m1")
        story("add_message", 2, 5, UNKNOWN, text="text m2", busy="reject")
        story.see(6, 7, *ids)
        story.check()


def test_a_line() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r1")
    story.add(4, 5, "m2", "queue", behind="r1")
    story.add(6, 7, "m3", "interrupt", behind="r1")
    story.see(8, 9, "m1", "m3", "m2")
    story.check()


def test_a_lost_message() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.add(2, 3, "m2")
    story.see(4, 5, "m1")
    report = unexplained(story)
    assert "list_messages(" in report.splitlines()[0]
    assert "'text m1' completed, 'text m2' completed" in report


def test_a_stale_read_after_an_acknowledged_write() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story("edit_message", 2, 3, ("ok", "m1", "user", "completed", "new", ""), message="m1", text="new")
    story("get_message", 4, 5, ("ok", *said("m1")), message="m1")
    assert "the thread would have said ('ok', 'm1', 'user', 'completed', 'new', '')" in unexplained(story)


def test_a_read_that_goes_back_in_time_while_the_write_is_open() -> None:
    story = Story()
    story.add(0, 9, "m1")
    story.see(1, 2, "m1")
    story.see(3, 4)
    assert "add_message" in unexplained(story)


def test_a_message_that_was_taken_while_a_run_was_active() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r2")
    story.add(4, 5, "m2")
    assert "would have said ('refused', 400, \"Can't add messages to t while a run r2" in unexplained(story)


def test_a_refusal_on_a_free_thread() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r1")
    story("get_run", 4, 5, ("ok", "r1", "completed"), run="r1")
    story.refuse(6, 7, "why", "r1")
    unexplained(story)


def test_two_active_runs() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r2")
    story.run(4, 5, "r1")
    assert "already has an active run r2" in unexplained(story)


def test_two_orders() -> None:
    story = Story()
    story.add(0, 9, "m1")
    story.add(0, 9, "m2")
    story.see(10, 11, "m1", "m2")
    story.see(12, 13, "m1", "m2", order="desc")
    unexplained(story)


def test_a_message_that_is_there_twice() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story("add_message", 2, 3, UNKNOWN, text="text m2", busy="reject")
    story.see(4, 5, "m1", "m2", "m2")
    unexplained(story)


def test_a_deleted_message_that_is_back() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story("delete_message", 2, 3, ("ok", "m1"), message="m1")
    story.see(4, 5)
    story.see(6, 7, "m1")
    assert "'text m1' completed deleted" in unexplained(story)


def test_a_write_that_comes_after_its_server_s_death() -> None:
    story = Story()
    story("add_message", 0, 3, UNKNOWN, text="text m1", busy="reject")
    story.see(4, 5)
    story.see(6, 7, "m1")
    unexplained(story)


def test_an_interrupt_that_stands_behind_what_was_queued() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r2")
    story.add(4, 5, "m2", "queue", behind="r2")
    story.add(6, 7, "m3", "interrupt", behind="r2")
    story.see(8, 9, "m1", "m2", "m3")
    unexplained(story)


def test_a_run_that_ends_in_two_ways() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.run(2, 3, "r1")
    story("cancel_run", 4, 5, ("ok", "r1", "cancelling"), run="r1")
    story("get_run", 6, 7, ("ok", "r1", "completed"), run="r1")
    unexplained(story)


def test_a_page_that_steps_over_a_message() -> None:
    story = Story()
    for place, one in enumerate(["m1", "m2", "m3"]):
        story.add(2 * place, 2 * place + 1, one)
    story.see(6, 7, "m3", after="m1")
    unexplained(story)


def test_a_deleted_thread_that_still_answers() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story("delete_thread", 2, 3, ("ok",))
    story("get_message", 4, 5, ("refused", 404, "No thread found with id 't'."), message="m1")
    story.check()
    story.see(6, 7, "m1")
    unexplained(story)


def test_a_fork_that_has_a_half_of_something() -> None:
    story = Story()
    story.add(0, 1, "m1")
    story.add(2, 3, "m2")
    story("fork_thread", 4, 5, ("ok", (said("m1")[1:],)), message="m1")
    story.check()
    story("fork_thread", 6, 7, ("ok", (said("m2")[1:],)), message=None)
    unexplained(story)


def test_a_long_history_is_read_in_one_go() -> None:
    story = Story()
    for place in range(0, 900, 3):
        story.add(place, place + 5, f"m{place}")
    story.see(1000, 1001, *(f"m{place}" for place in range(0, 900, 3)))
    story.check(ordered=True)


def test_the_log_gives_the_server_s_moves() -> None:
    message: Any = {"id": "m", "content": [{"text": {"value": "yes"}}]}
    begun = ["thread.run.step.created", "thread.run.step.in_progress", "thread.message.created"]
    names = ["thread.run.created", "thread.run.queued", "thread.run.in_progress", *begun, "thread.message.in_progress"]
    ends: dict[str, list[Move]] = {
        "thread.message.completed thread.run.step.completed thread.run.completed": [
            (Close("m", "completed", "yes"), To("completed"))
        ],
        "thread.message.completed thread.run.step.completed thread.run.queued": [
            (Close("m", "completed", "yes"),),
            (To("queued"),),
        ],
        "thread.run.step.cancelled thread.message.incomplete thread.run.cancelling thread.run.cancelled": [
            (Close("m", "incomplete", "yes"), To("cancelled"))
        ],
    }
    for last, moves in ends.items():
        events = [(name, message) for name in [*names, *last.split()]]
        assert moves_of(events) == ((To("in_progress"),), (Begin("m"),), *moves)
