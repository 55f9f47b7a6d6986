"""What of a thread fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.domain.budget import ANSWER_TOKENS, ContextExceeded, Limits, Prompt, PromptCapReached, Shown, fit
from perdure.domain.transcript import ChatMessage


def says(role: str, tokens: int, **fields: Any) -> ChatMessage:
    return {"role": role, "content": "x" * tokens, **fields}


def cost(message: ChatMessage) -> int:
    return len(message["content"] or "")


def each(messages: Sequence[ChatMessage]) -> list[int]:
    return [cost(message) for message in messages]


def total(messages: Sequence[ChatMessage]) -> int:
    return sum(each(messages))


def prompt(thread: list[ChatMessage], own: Sequence[ChatMessage] = (), overhead: int = 0) -> Prompt:
    return Prompt(instructions=[says("system", 10)], thread=thread, own=list(own), overhead_tokens=overhead)


def talk(pairs: int, tokens: int = 10) -> list[ChatMessage]:
    return [says(role, tokens, name=f"{n}") for n in range(pairs) for role in ("user", "assistant")]


def shown(given: Prompt, **limits: int) -> Shown:
    fitting = fit(given, Limits(**limits), each)
    assert isinstance(fitting, Shown), fitting
    return fitting


def test_without_limits_all_is_shown_and_nothing_counted() -> None:
    def refuse(_: Sequence[ChatMessage]) -> list[int]:
        raise AssertionError("somebody counts")

    given = prompt(talk(3), own=[says("assistant", 5)])
    fitting = fit(given, Limits(), refuse)
    assert fitting == Shown([*given.instructions, *given.thread, *given.own], dropped=0, tokens=None)


def test_oldest_messages_go_first() -> None:
    given = prompt(talk(10))
    fitting = shown(given, max_prompt_tokens=10 + 45)
    assert fitting.messages == [*given.instructions, *given.thread[-4:]]
    assert (fitting.dropped, fitting.tokens) == (16, 50)


def test_the_run_cap_is_a_total_over_its_model_calls() -> None:
    given = prompt(talk(100))
    assert shown(given, max_prompt_tokens=500).tokens == 500
    assert shown(given, max_prompt_tokens=500, spent_tokens=200).tokens == 300
    over = fit(given, Limits(max_prompt_tokens=500, spent_tokens=490), each)
    assert over == PromptCapReached(needed=20, left=10)
    assert fit(given, Limits(max_prompt_tokens=500, spent_tokens=900), each) == PromptCapReached(needed=20, left=0)


def test_the_last_user_message_stays_even_behind_what_was_dropped() -> None:
    thread = [says("user", 10), says("user", 20), *(says("assistant", 10) for _ in range(5))]
    given = prompt(thread)
    fitting = shown(given, max_prompt_tokens=55)
    assert fitting.messages == [*given.instructions, thread[1], *thread[-2:]]
    assert fitting.dropped == 4
    assert shown(given, max_prompt_tokens=30).messages == [*given.instructions, thread[1]]


def test_a_thread_without_user_messages_may_be_dropped_whole() -> None:
    given = prompt([says("assistant", 50)])
    assert shown(given, max_prompt_tokens=20).messages == given.instructions
    assert shown(prompt([]), max_prompt_tokens=20).dropped == 0


def test_calls_and_outputs_stay_together() -> None:
    calls = says("assistant", 10, tool_calls=[{"id": "a"}, {"id": "b"}])
    thread = [says("user", 1), calls, says("tool", 10), says("tool", 10), says("user", 10)]
    assert shown(prompt(thread), max_prompt_tokens=49).messages[1:] == thread[4:]
    assert shown(prompt(thread), max_prompt_tokens=50).messages[1:] == thread[1:]


def test_the_runs_own_steps_are_never_dropped() -> None:
    own = [says("assistant", 10, tool_calls=[{"id": "a"}]), says("tool", 30)]
    given = prompt(talk(5), own=own)
    assert shown(given, max_prompt_tokens=75).messages == [*given.instructions, *given.thread[-2:], *own]
    assert fit(given, Limits(max_prompt_tokens=55), each) == PromptCapReached(needed=60, left=55)


def test_the_context_keeps_room_for_the_answer() -> None:
    given = prompt(talk(5000))
    assert shown(given, context_tokens=20_000).tokens == (20_000 - ANSWER_TOKENS) // 10 * 10
    assert shown(given, context_tokens=20_000, answer_tokens=5000).tokens == 15_000
    assert shown(given, context_tokens=20_000, answer_tokens=50_000).tokens == 10_000
    assert shown(given, context_tokens=1000).tokens == 500


def test_what_can_not_be_dropped_may_use_the_answers_room() -> None:
    given = prompt([*talk(5), says("user", 80)])
    assert shown(given, context_tokens=100).messages == [*given.instructions, given.thread[-1]]
    assert fit(given, Limits(context_tokens=90), each) == ContextExceeded(needed=90, context_tokens=90)


def test_too_much_for_the_model_is_a_failure_with_numbers() -> None:
    verdict = fit(prompt([says("user", 500)], overhead=7), Limits(context_tokens=300), each)
    assert isinstance(verdict, ContextExceeded)
    failure = verdict.failure("tiny")
    assert failure.code == "invalid_prompt"
    assert "517 tokens" in failure.message
    assert "model 'tiny' takes 300" in failure.message


def test_where_both_limits_are_too_small_the_runs_own_is_named() -> None:
    given = prompt([says("user", 500)])
    assert isinstance(fit(given, Limits(context_tokens=300, max_prompt_tokens=256), each), PromptCapReached)
    assert isinstance(fit(given, Limits(context_tokens=300, max_prompt_tokens=600), each), ContextExceeded)


@pytest.mark.parametrize("shown_messages", [10, 100, 1000])
def test_of_a_long_thread_only_the_end_is_counted(shown_messages: int) -> None:
    counted = 0

    def count(messages: Sequence[ChatMessage]) -> list[int]:
        nonlocal counted
        counted += len(messages)
        return each(messages)

    given = prompt(talk(50_000))
    fitting = fit(given, Limits(max_prompt_tokens=10 + 10 * shown_messages), count)
    assert isinstance(fitting, Shown)
    assert len(fitting.messages) == shown_messages + 1
    assert counted <= 2 * shown_messages + 32


# -- properties

sizes = st.integers(0, 40)


@st.composite
def bundles(draw: st.DrawFn) -> list[ChatMessage]:
    """One message, or tool calls with their outputs."""
    role = draw(st.sampled_from(["user", "assistant", "calls"]))
    if role != "calls":
        return [says(role, draw(sizes))]
    outputs = draw(st.lists(sizes, min_size=1, max_size=3))
    calls = [{"id": f"call_{n}"} for n in range(len(outputs))]
    return [
        says("assistant", draw(sizes), tool_calls=calls),
        *(says("tool", size, tool_call_id=f"call_{n}") for n, size in enumerate(outputs)),
    ]


def chain(parts: list[list[ChatMessage]]) -> list[ChatMessage]:
    return [{**message, "place": place} for place, message in enumerate(sum(parts, []))]  # noqa: RUF017  # short lists


chats = st.lists(bundles(), max_size=40).map(chain)
prompts = st.builds(
    prompt,
    chats,
    st.lists(bundles(), max_size=2).map(chain),
    sizes,
)
caps = st.none() | st.integers(1, 1500)
all_limits = st.builds(
    Limits, context_tokens=caps, answer_tokens=caps, max_prompt_tokens=caps, spent_tokens=st.integers(0, 200)
)


def split(given: Prompt, fitting: Shown) -> tuple[list[ChatMessage], list[ChatMessage], list[ChatMessage]]:
    head, tail = len(given.instructions), len(fitting.messages) - len(given.own)
    return fitting.messages[:head], fitting.messages[head:tail], fitting.messages[tail:]


def last_asked(given: Prompt) -> list[ChatMessage]:
    return [message for message in given.thread if message["role"] == "user"][-1:]


def least(given: Prompt) -> int:
    return total([*given.instructions, *last_asked(given), *given.own]) + given.overhead_tokens


@settings(max_examples=500, deadline=None)
@given(prompts, all_limits)
def test_what_is_shown_obeys_every_rule(given: Prompt, limits: Limits) -> None:
    fitting = fit(given, limits, each)
    if not isinstance(fitting, Shown):
        assert fitting.needed == least(given)
        return
    instructions, thread, own = split(given, fitting)
    assert instructions == given.instructions
    assert own == given.own
    asked = last_asked(given)
    assert all(message in thread for message in asked)
    suffix = thread[1:] if asked and thread[0] == asked[0] else thread
    assert suffix == given.thread[len(given.thread) - len(suffix) :]
    assert fitting.dropped == len(given.thread) - len(thread)
    for message in thread:  # whole bundles: an output has its call before it, a call all its outputs behind it
        at = thread.index(message)
        if message["role"] == "tool":
            assert thread[at - 1]["place"] == message["place"] - 1
            assert at > 0
        for n in range(1, len(message.get("tool_calls", ())) + 1):
            assert thread[at + n]["role"] == "tool"


@settings(max_examples=500, deadline=None)
@given(prompts, all_limits)
def test_no_limit_is_ever_exceeded(given: Prompt, limits: Limits) -> None:
    fitting = fit(given, limits, each)
    if not isinstance(fitting, Shown):
        return
    tokens = total(fitting.messages) + given.overhead_tokens
    assert fitting.tokens == (None if limits.thread_room is None else tokens)
    assert limits.prompt_left is None or tokens <= limits.prompt_left
    assert limits.context_tokens is None or tokens < limits.context_tokens
    assert limits.thread_room is None or tokens <= max(limits.thread_room, least(given))


@settings(max_examples=500, deadline=None)
@given(prompts, all_limits)
def test_the_verdict_is_right(given: Prompt, limits: Limits) -> None:
    over_cap = limits.prompt_left is not None and least(given) > limits.prompt_left
    over_context = limits.context_tokens is not None and least(given) >= limits.context_tokens
    wanted = PromptCapReached if over_cap else ContextExceeded if over_context else Shown
    assert type(fit(given, limits, each)) is wanted


@settings(max_examples=500, deadline=None)
@given(prompts, all_limits)
def test_nothing_is_dropped_that_fits(given: Prompt, limits: Limits) -> None:
    fitting = fit(given, limits, each)
    if not isinstance(fitting, Shown) or not fitting.dropped:
        return
    _, thread, _ = split(given, fitting)
    places = {message["place"] for message in thread}
    newest = max(message["place"] for message in given.thread if message["place"] not in places)
    first = newest
    while given.thread[first]["role"] == "tool":
        first -= 1
    assert limits.thread_room is not None
    assert fitting.tokens is not None
    assert fitting.tokens + total(given.thread[first : newest + 1]) > limits.thread_room


@settings(max_examples=500, deadline=None)
@given(prompts, st.integers(1, 1500), st.integers(0, 500), st.sampled_from(["context_tokens", "max_prompt_tokens"]))
def test_more_room_never_shows_less(given: Prompt, room: int, more: int, limit: str) -> None:
    small = fit(given, Limits(**{limit: room}), each)
    if isinstance(small, Shown):
        large = fit(given, Limits(**{limit: room + more}), each)
        assert isinstance(large, Shown)
        assert all(message in large.messages for message in small.messages)
