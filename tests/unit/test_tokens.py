"""Counting tokens."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.models.base import ModelRequest
from perdure.models.tokens import (
    CALL_TOKENS,
    IMAGE_TOKENS,
    MESSAGE_TOKENS,
    REPLY_TOKENS,
    SMALL_IMAGE_TOKENS,
    TOOL_TOKENS,
    TOOLS_TOKENS,
    TokenCounter,
)

COUNTER = TokenCounter()

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Words:
    """A tokenizer that counts words, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts: list[str]) -> list[int]:
        self.asked += texts
        return [len(text.split()) for text in texts]


def says(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("hello world", 2),
        ("tiktoken is great!", 6),
        ("お誕生日おめでとう", 8),
        ("안녕하세요", 2),
        ("antidisestablishmentarianism", 6),
        ("2 + 2 = 4", 7),
        ("<|endoftext|>", 7),
    ],
)
def test_counts_as_o200k_base_does(text: str, tokens: int) -> None:
    assert COUNTER.count_text(text) == tokens


def test_a_lone_surrogate_is_counted_too() -> None:
    assert COUNTER.count_text("a\ud800b") > 0


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "가" * 300_000, "!?" * 300_000])
def test_long_runs_of_one_character_are_no_trap(text: str) -> None:
    # A tokenizer that is quadratic here would need hours.
    assert 0 < COUNTER.count_text(text) <= len(text.encode())


def test_no_connection_is_ever_made() -> None:
    script = """
import sys
from perdure.models.tokens import TokenCounter

def refuse(event, _):
    if event.startswith(("socket.", "urllib.", "http.")):
        raise SystemExit(event)

sys.addaudithook(refuse)  # an audit hook can not be taken back: hence a process of its own
print(TokenCounter().count_text("hello world"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("2\n", "", 0)


def test_a_message_costs_its_frame_and_its_text() -> None:
    assert COUNTER.count_each([says("hello world"), says("", "system")]) == [MESSAGE_TOKENS + 2, MESSAGE_TOKENS]
    assert COUNTER.count_messages([says("hello world")]) == MESSAGE_TOKENS + 2 + REPLY_TOKENS
    assert COUNTER.count_messages([]) == REPLY_TOKENS


def test_the_cookbooks_example() -> None:
    # "How to count tokens with tiktoken": the API counted 124 for gpt-4o. Four of its messages have a name, which
    # Perdure never sends: the name's text and one token each.
    chat = [
        says(
            "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
            "system",
        ),
        says("New synergies will help drive top-line growth.", "system"),
        says("Things working well together will increase revenue.", "system"),
        says(
            "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
            "system",
        ),
        says("Let's talk later when we're less busy about how to do better.", "system"),
        says(
            "This late pivot means we don't have time to boil the ocean for the client deliverable.",
        ),
    ]
    names = ["example_user", "example_assistant", "example_user", "example_assistant"]
    named = sum(COUNTER.count_text(name) + 1 for name in names)
    assert COUNTER.count_messages(chat) + named == 124


def test_parts_calls_and_outputs_are_counted() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000, "detail": "auto"}}
    small = {"type": "image_url", "image_url": {"url": "https://host.example/a.png", "detail": "low"}}
    text = {"type": "text", "text": "hello world"}
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Seoul"}'}}
    assert COUNTER.count_each(
        [
            {"role": "user", "content": [text, image, small, {"type": "refusal", "refusal": "hello world"}]},
            {"role": "assistant", "content": None, "tool_calls": [call, call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "hello world"},
        ]
    ) == [
        MESSAGE_TOKENS + 2 + IMAGE_TOKENS + SMALL_IMAGE_TOKENS + 2,
        MESSAGE_TOKENS + 2 * (CALL_TOKENS + COUNTER.count_text("get_weather") + COUNTER.count_text('{"city":"Seoul"}')),
        MESSAGE_TOKENS + 2,
    ]


def test_a_request_is_its_messages_and_what_stands_beside_them() -> None:
    plain = ModelRequest(model="m", messages=[says("hello world")])
    full = ModelRequest(
        model="m",
        messages=[says("hello world")],
        tools=[WEATHER],
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}},
    )
    assert COUNTER.count_request(plain) == COUNTER.count_messages(plain.messages)
    assert COUNTER.count_overhead(plain) == REPLY_TOKENS
    assert COUNTER.count_tools([WEATHER]) > TOOLS_TOKENS + TOOL_TOKENS + 20
    assert COUNTER.count_tools(None) == 0
    assert COUNTER.count_request(full) > COUNTER.count_request(plain) + COUNTER.count_tools([WEATHER])


def test_a_thread_is_not_counted_anew_on_each_turn() -> None:
    words = Words()
    counter = TokenCounter(words)
    thread = [says(f"message number {n}") for n in range(400)]
    first = counter.count_each(thread)
    assert len(words.asked) == 400
    assert counter.count_each([*thread, says("and one more")]) == [*first, MESSAGE_TOKENS + 3]
    assert words.asked[400:] == ["and one more"]


def test_the_cache_is_bounded_and_forgets_what_was_not_asked_for_the_longest() -> None:
    words = Words()
    counter = TokenCounter(words, cached_texts=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        counter.count_text(text)
    assert words.asked == ["one", "two", "three", "two"]
    assert counter.count_each([says(f"n {n}") for n in range(10)]) == [MESSAGE_TOKENS + 2] * 10


def test_threads_share_a_counter() -> None:
    counter = TokenCounter()
    thread = [says(f"message number {n}") for n in range(200)]
    found: list[int] = []

    def count(counter: Callable[[], int]) -> None:
        found.append(counter())

    threads = [threading.Thread(target=count, args=(lambda: counter.count_messages(thread),)) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [COUNTER.count_messages(thread)] * 8


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(codec=None), max_size=60), max_size=20))
def test_any_text_is_counted_the_same_alone_and_among_others(texts: list[str]) -> None:
    chat = [says(text) for text in texts]
    alone = [TokenCounter(COUNTER._count).count_each([message])[0] for message in chat]
    assert COUNTER.count_each(chat) == alone
    assert all(
        count - MESSAGE_TOKENS <= len(text.encode(errors="surrogatepass"))
        for count, text in zip(alone, texts, strict=True)
    )
