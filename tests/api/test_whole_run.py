"""Whole runs over an upstream that speaks real HTTP: what the official client hears, and what the upstream was asked.

`pytest -s` shows each stream's events beside the order that was recorded from the hosted server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import openai
import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler
from openai.types.beta.threads import Message, Run

from perdure.models.scripted import Received, Script, ScriptedServer
from tests.api.scenes import PLAIN_EVENTS, WEATHER, collapsed, outputs_for, reached, refused, settled, text_of
from tests.server import Client, running_server, upstream_of

KEY = "sk-upstream-secret-0123456789"
TICK_SECONDS = 0.1


def function(name: str, *parameters: str) -> Any:
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TIME = function("get_time", "city")
TABLE = function("book_table", "place", "hour")
TOOLS = [WEATHER, TIME, TABLE]
OUTPUTS = {"get_weather": "sunny", "get_time": "noon", "book_table": "booked for one"}

PLAN: list[dict[str, Any]] = [
    {
        "when": "^plan$",
        "call": [
            {"name": "get_weather", "arguments": {"city": "Seoul"}},
            {"name": "get_time", "arguments": {"city": "Seoul"}},
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "cached_tokens": 64, "reasoning_tokens": 8},
    },
    {
        "when": "^noon$",
        "role": "tool",
        "call": [{"name": "book_table", "arguments": {"place": "terrace", "hour": "13"}}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 15, "cached_tokens": 100},
    },
    {
        "when": "^booked",
        "role": "tool",
        "say": "Your table is {output}.",
        "usage": {"prompt_tokens": 180, "completion_tokens": 9, "cached_tokens": 150, "reasoning_tokens": 1},
    },
]
SCRIPT: dict[str, Any] = {
    "models": ["gpt-4o", "gpt-4o-mini"],
    "rules": [
        *PLAN,
        {
            "when": "^tick$",
            "pieces": [f"{number} " for number in range(12)],
            "first_delay_seconds": TICK_SECONDS,
            "delay_seconds": TICK_SECONDS,
        },
        {"when": "^talk$", "pieces": [f"{number} " for number in range(600)], "delay_seconds": 0.05},
        {"when": "^think$", "say": "never said", "hang_after": 0},
        {"when": "^later$", "fail": {"status": 429, "message": "Slow down.", "retry_after": 20}},
        {
            "when": "^call slowly$",
            "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}],
            "delay_seconds": 0.2,
            "hang_after": 4,
        },
        {"when": "^slowly$", "say": "at last it speaks", "first_delay_seconds": 0.7, "delay_seconds": 0.5},
        {"when": "^filter$", "say": "one two", "finish": "content_filter"},
        {"when": "^refuse$", "refuse": "I would rather not."},
        {"when": "^weather$", "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}]},
        {"when": "^break$", "say": "one two three", "break_after": 2},
        {"when": "", "role": "tool", "say": "It is {output}."},
    ],
    "otherwise": {"say": "You said: {question}"},
}

CALL_EVENTS = [*PLAIN_EVENTS[:5], "thread.run.step.delta", "thread.run.requires_action"]
SUBMIT_EVENTS = ["thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"]
RECORDED = [
    CALL_EVENTS,
    [*SUBMIT_EVENTS, *CALL_EVENTS[3:]],
    [*SUBMIT_EVENTS, *PLAIN_EVENTS[3:]],
]
"""The three streams of two rounds of calls and an answer; one delta stands for many."""


class Stage(NamedTuple):
    """A server over a scripted upstream, and a client of it."""

    client: Client
    upstream: ScriptedServer
    url: str

    @property
    def asked(self) -> list[Received]:
        """The model calls that reached the upstream."""
        return [one for one in self.upstream.requests if one.path == "/v1/chat/completions"]

    def begin(self, question: str, **options: Any) -> Run:
        """Begin a run on a new thread, and forget what the upstream was asked before."""
        self.upstream.requests.clear()
        assistant = self.client.beta.assistants.create(model="gpt-4o", tools=options.pop("tools", []))
        thread = self.client.beta.threads.create(messages=[{"role": "user", "content": question}])
        run: Run = self.client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, **options)
        return run

    def run(self, question: str, **options: Any) -> Run:
        """Begin a run and wait until it pauses or ends."""
        return settled(self.client, self.begin(question, **options))

    def streamed(self, question: str, **options: Any) -> list[Any]:
        """Stream a run on a new thread."""
        self.upstream.requests.clear()
        assistant = self.client.beta.assistants.create(model="gpt-4o", tools=options.pop("tools", []))
        thread = self.client.beta.threads.create(messages=[{"role": "user", "content": question}])
        with self.client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id, **options) as stream:
            return list(stream)

    def newest(self, run: Run) -> Message:
        """The newest message of the run's thread."""
        return self.client.beta.threads.messages.list(run.thread_id, limit=1).data[0]


@contextlib.contextmanager
def staged(data: Path, script: dict[str, Any], **settings: Any) -> Iterator[Stage]:
    """Serve over an upstream that plays a script."""
    upstream = ScriptedServer(msgspec.convert(script, Script), key=KEY)
    given = {"builtin_model": "none", "upstream_key": KEY, "shutdown_grace_seconds": 0, **settings}
    with (
        upstream_of(upstream) as address,
        running_server(data, **{"upstream_url": address, **given}) as url,
        Client(url) as client,
    ):
        yield Stage(client, upstream, url)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("whole") / "data", SCRIPT) as one:
        yield one


def show(title: str, *lines: str) -> None:
    sys.stdout.write("\n".join([f"\n{title}", *(f"  {line}" for line in lines)]) + "\n")


def beside(title: str, seen: Iterable[str], recorded: list[str]) -> None:
    """Print the events seen beside the recorded order, repetitions counted; they must be the same."""
    counted = [(name, len(list(same))) for name, same in groupby(seen)]
    shown = [name if times == 1 else f"{name} x {times}" for name, times in counted]
    rows = zip_longest(shown, recorded, fillvalue="-")
    show(title, f"{'seen':<36} recorded", *(f"{mine:<36} {theirs}" for mine, theirs in rows))
    assert [name for name, _ in counted] == recorded


# -- two rounds of calls


class Heard:
    """What a program's handlers heard, over all its streams."""

    def __init__(self) -> None:
        self.streams: list[list[str]] = []
        self.created: dict[str, str] = {}
        self.arguments: dict[str, str] = {}
        self.done: dict[str, str] = {}
        self.text = ""
        self.said: list[str] = []

    def delta(self, delta: Any, call: Any) -> None:
        if delta.function and delta.function.arguments:
            self.arguments[call.id] = self.arguments.get(call.id, "") + delta.function.arguments

    def check(self) -> None:
        for number, (seen, recorded) in enumerate(zip(self.streams, RECORDED, strict=True), 1):
            beside(f"stream {number}", seen, recorded)
        assert list(self.created.values()) == ["get_weather", "get_time", "book_table"]
        assert self.arguments == self.done
        assert [json.loads(self.done[call_id]) for call_id in self.created] == [
            {"city": "Seoul"},
            {"city": "Seoul"},
            {"place": "terrace", "hour": "13"},
        ]
        assert self.text == "Your table is booked for one."
        assert self.said == [self.text]


def answers(run: Run) -> Any:
    """Call the functions; the outputs go back in another order than the calls came."""
    assert run.required_action is not None
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [{"tool_call_id": call.id, "output": OUTPUTS[call.function.name]} for call in reversed(calls)]


class Program(AssistantEventHandler):
    """A program as the documentation has it: it submits outputs from inside its handler, with a new one."""

    def __init__(self, client: openai.OpenAI, heard: Heard) -> None:
        super().__init__()
        self.client = client
        self.heard = heard
        self.events: list[str] = []
        heard.streams.append(self.events)

    def on_event(self, event: Any) -> None:
        self.events.append(event.event)
        if event.event == "thread.run.requires_action":
            run: Run = event.data
            with self.client.beta.threads.runs.submit_tool_outputs_stream(
                run_id=run.id,
                thread_id=run.thread_id,
                tool_outputs=answers(run),
                event_handler=Program(self.client, self.heard),
            ) as stream:
                stream.until_done()

    def on_tool_call_created(self, tool_call: Any) -> None:
        self.heard.created[tool_call.id] = tool_call.function.name

    def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.delta(delta, snapshot)

    def on_tool_call_done(self, tool_call: Any) -> None:
        self.heard.done[tool_call.id] = tool_call.function.arguments

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        del snapshot
        self.heard.text += delta.value

    def on_message_done(self, message: Message) -> None:
        self.heard.said.append(text_of(message))


class AsyncProgram(AsyncAssistantEventHandler):
    """The same program on the asynchronous client."""

    def __init__(self, client: openai.AsyncOpenAI, heard: Heard) -> None:
        super().__init__()
        self.client = client
        self.heard = heard
        self.events: list[str] = []
        heard.streams.append(self.events)

    async def on_event(self, event: Any) -> None:
        self.events.append(event.event)
        if event.event == "thread.run.requires_action":
            run: Run = event.data
            async with self.client.beta.threads.runs.submit_tool_outputs_stream(
                run_id=run.id,
                thread_id=run.thread_id,
                tool_outputs=answers(run),
                event_handler=AsyncProgram(self.client, self.heard),
            ) as stream:
                await stream.until_done()

    async def on_tool_call_created(self, tool_call: Any) -> None:
        self.heard.created[tool_call.id] = tool_call.function.name

    async def on_tool_call_delta(self, delta: Any, snapshot: Any) -> None:
        self.heard.delta(delta, snapshot)

    async def on_tool_call_done(self, tool_call: Any) -> None:
        self.heard.done[tool_call.id] = tool_call.function.arguments

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        del snapshot
        self.heard.text += delta.value

    async def on_message_done(self, message: Message) -> None:
        self.heard.said.append(text_of(message))


def test_two_rounds_of_calls_through_the_event_handler(stage: Stage) -> None:
    stage.upstream.requests.clear()
    client, heard = stage.client, Heard()
    assistant = client.beta.assistants.create(model="gpt-4o", instructions="Plan.", tools=TOOLS)
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "plan"}])
    with client.beta.threads.runs.stream(
        thread_id=thread.id,
        assistant_id=assistant.id,
        parallel_tool_calls=False,
        event_handler=Program(client, heard),
    ) as stream:
        stream.until_done()
    heard.check()
    assert_the_upstream_saw_the_rounds(stage, heard)
    assert_usage_is_summed(client, thread.id)


def test_two_rounds_of_calls_through_the_asynchronous_event_handler(stage: Stage) -> None:
    stage.upstream.requests.clear()
    heard = Heard()

    async def program() -> str:
        async with openai.AsyncOpenAI(
            base_url=stage.url, api_key="k", max_retries=0, _strict_response_validation=True
        ) as client:
            assistant = await client.beta.assistants.create(model="gpt-4o", instructions="Plan.", tools=TOOLS)
            thread = await client.beta.threads.create(messages=[{"role": "user", "content": "plan"}])
            async with client.beta.threads.runs.stream(
                thread_id=thread.id,
                assistant_id=assistant.id,
                parallel_tool_calls=False,
                event_handler=AsyncProgram(client, heard),
            ) as stream:
                await stream.until_done()
            return thread.id

    thread_id = asyncio.run(program())
    heard.check()
    assert_the_upstream_saw_the_rounds(stage, heard)
    assert_usage_is_summed(stage.client, thread_id)


def assert_the_upstream_saw_the_rounds(stage: Stage, heard: Heard) -> None:
    bodies = [one.body for one in stage.asked]
    weather, hour, table = heard.created
    asked = [{"role": "system", "content": "Plan."}, {"role": "user", "content": "plan"}]

    def calls(*made: tuple[str, str]) -> dict[str, Any]:
        shown = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": heard.done[call_id]}}
            for call_id, name in made
        ]
        return {"role": "assistant", "content": None, "tool_calls": shown}

    first = [
        calls((weather, "get_weather"), (hour, "get_time")),
        {"role": "tool", "tool_call_id": weather, "content": "sunny"},
        {"role": "tool", "tool_call_id": hour, "content": "noon"},
    ]
    second = [calls((table, "book_table")), {"role": "tool", "tool_call_id": table, "content": "booked for one"}]
    assert [body["messages"] for body in bodies] == [asked, asked + first, asked + first + second]
    for body in bodies:
        assert (body["model"], body["parallel_tool_calls"], body["stream"]) == ("gpt-4o", False, True)
        assert [tool["function"]["name"] for tool in body["tools"]] == ["get_weather", "get_time", "book_table"]
        assert "tool_choice" not in body


def assert_usage_is_summed(client: Client, thread_id: str) -> None:
    run = client.beta.threads.runs.list(thread_id).data[0]
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=thread_id, order="asc").data
    assert [step.type for step in steps] == ["tool_calls", "tool_calls", "message_creation"]

    def usage(prompt: int, completion: int, cached: int, reasoning: int) -> dict[str, Any]:
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_token_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    per_step = [usage(100, 20, 64, 8), usage(150, 15, 100, 0), usage(180, 9, 150, 1)]
    assert [step.usage and step.usage.to_dict() for step in steps] == per_step
    assert run.usage is not None
    assert run.usage.to_dict() == usage(430, 44, 314, 9)


FORCED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["required", FORCED], ids=["required", "function"])
def test_a_forced_tool_choice_holds_for_the_first_turn_only(stage: Stage, choice: Any) -> None:
    run = stage.run("weather", tools=TOOLS, tool_choice=choice)
    ended = stage.client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "sunny")
    )
    assert (ended.status, ended.to_dict()["tool_choice"]) == ("completed", choice)
    first, second = (one.body for one in stage.asked)
    assert first["tool_choice"] == choice
    assert "tool_choice" not in second
    assert first["tools"] == second["tools"]


@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_a_tool_choice_that_forces_nothing(stage: Stage, choice: Any) -> None:
    run = stage.run("hello", tools=TOOLS, tool_choice=choice)
    assert (run.status, run.tool_choice) == ("completed", choice or "auto")
    [asked] = stage.asked
    assert asked.body.get("tool_choice") == ("none" if choice == "none" else None)
    assert len(asked.body["tools"]) == 3


def test_parallel_tool_calls_is_said_only_where_it_was_set(stage: Stage) -> None:
    stage.run("hello", tools=TOOLS)
    assert "parallel_tool_calls" not in stage.asked[0].body
    stage.run("hello", tools=TOOLS, parallel_tool_calls=True)
    assert stage.asked[0].body["parallel_tool_calls"] is True
    stage.run("hello", parallel_tool_calls=False, tool_choice="none")
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(stage.asked[0].body)


# -- time


def test_each_token_comes_when_the_model_sends_it(stage: Stage) -> None:
    client = stage.client
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "tick"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        arrived = [time.monotonic() for event in stream if event.event == "thread.message.delta"]
    gaps = [f"{(after - before) * 1000:.0f}" for before, after in pairwise(arrived)]
    show(f"milliseconds between tokens, sent each {TICK_SECONDS * 1000:.0f}", " ".join(gaps))
    expected = TICK_SECONDS * (len(arrived) - 1)
    assert len(arrived) == 12
    assert arrived[-1] - arrived[0] >= 0.6 * expected
    assert not any(arrived[start + 7] - arrived[start] < 0.2 * expected for start in range(5)), "a clump"


def test_comments_in_a_silence_do_not_disturb_the_helper(data: Path) -> None:
    with staged(data, SCRIPT, keepalive_seconds=0.1) as stage:
        names = [event.event for event in stage.streamed("slowly")]
        assert collapsed(names) == PLAIN_EVENTS
        assert names.count("thread.message.delta") == 4
        run = stage.client.beta.threads.runs
        assistant = stage.client.beta.assistants.create(model="gpt-4o")
        thread = stage.client.beta.threads.create(messages=[{"role": "user", "content": "slowly"}])
        raw = run.with_raw_response.create(thread.id, assistant_id=assistant.id, stream=True)
        lines = list(raw.http_response.iter_lines())
    comments = [place for place, line in enumerate(lines) if line.startswith(":")]
    assert len(comments) >= 8
    assert comments[0] < lines.index("event: thread.message.created") < comments[-1]
    assert [line for line in lines if line][-2:] == ["event: done", "data: [DONE]"]


# -- cancel


def closed_early(received: Received) -> bool:
    """Wait for the upstream to notice; twenty seconds are for a busy machine."""
    deadline = time.monotonic() + 20
    while not received.closed_early and time.monotonic() < deadline:
        time.sleep(0.01)
    return received.closed_early


def test_a_cancel_in_mid_stream(stage: Stage) -> None:
    client, names, said, begun = stage.client, [], "", 0.0
    stage.upstream.requests.clear()
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "talk"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        for event in stream:
            names.append(event.event)
            if event.event == "thread.message.delta":
                delta: Any = event.data.delta
                said += delta.content[0].text.value
                if names.count("thread.message.delta") == 5:
                    assert stream.current_run is not None
                    begun = time.monotonic()
                    answer = client.beta.threads.runs.cancel(stream.current_run.id, thread_id=thread.id)
                    assert answer.status == "cancelling"
        run = stream.get_final_run()
    seconds = time.monotonic() - begun
    [asked] = stage.asked
    upstream_closed = closed_early(asked)
    show(
        "a cancel in mid-stream",
        f"from the request to `cancelled`: {seconds * 1000:.0f} ms",
        f"the upstream's log: {asked.method} {asked.path}, connection closed early: {upstream_closed}",
    )
    broken_off = ["thread.run.step.cancelled", "thread.message.incomplete"]
    beside("its events", names, [*PLAIN_EVENTS[:8], *broken_off, "thread.run.cancelling", "thread.run.cancelled"])
    assert upstream_closed
    assert seconds < 5
    assert (run.status, run.cancelled_at is None, run.expires_at) == ("cancelled", False, None)
    message = stage.newest(run)
    assert message.incomplete_details is not None
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "run_cancelled")
    assert text_of(message) == said
    assert said.startswith("0 1 2 3 4 ")
    assert stage.client.beta.threads.messages.create(thread.id, role="user", content="free").id


@pytest.mark.parametrize("question", ["think", "later"], ids=["before the first token", "between two tries"])
def test_a_cancel_while_nothing_comes(stage: Stage, question: str) -> None:
    run = stage.begin(question)
    reached(stage.client, run, "in_progress")
    deadline = time.monotonic() + 20
    while not stage.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    begun = time.monotonic()
    stage.client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    reached(stage.client, run, "cancelled")
    assert time.monotonic() - begun < 5
    [asked] = stage.asked
    assert question == "later" or closed_early(asked)
    assert [one.role for one in stage.client.beta.threads.messages.list(run.thread_id)] == ["user"]


def test_a_cancel_in_the_middle_of_a_call(stage: Stage) -> None:
    client, names = stage.client, []
    stage.upstream.requests.clear()
    assistant = client.beta.assistants.create(model="gpt-4o", tools=TOOLS)
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "call slowly"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        for event in stream:
            names.append(event.event)
            if names.count("thread.run.step.delta") == 2 and names[-1] == "thread.run.step.delta":
                assert stream.current_run is not None
                client.beta.threads.runs.cancel(stream.current_run.id, thread_id=thread.id)
    ends = ["thread.run.step.cancelled", "thread.run.cancelling", "thread.run.cancelled"]
    assert collapsed(names) == [*CALL_EVENTS[:6], *ends]
    assert closed_early(stage.asked[0])


# -- cancel and modify, from every status


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server with one place for runs."""
    with staged(tmp_path_factory.mktemp("narrow") / "data", SCRIPT, concurrency=1) as one:
        yield one


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A server whose runs expire after three seconds."""
    with staged(tmp_path_factory.mktemp("brief") / "data", SCRIPT, run_expiry_seconds=3) as one:
        yield one


def refusals(stage: Stage, run: Run) -> tuple[str, str]:
    """What a modify and outputs are told while the run is active or over."""
    runs: Any = stage.client.beta.threads.runs
    submitted = refused(runs.submit_tool_outputs, run.id, thread_id=run.thread_id, tool_outputs=[])
    assert (submitted.status, submitted.param, submitted.code) == (400, None, None)
    with contextlib.suppress(openai.BadRequestError):
        changed = runs.update(run.id, thread_id=run.thread_id, metadata={"seen": "yes"})
        assert changed.metadata == {"seen": "yes"}
        return "changed", submitted.message
    modified = refused(runs.update, run.id, thread_id=run.thread_id, metadata={})
    assert (modified.status, modified.param, modified.code) == (400, None, None)
    return modified.message, submitted.message


def test_active_runs_can_be_cancelled_and_not_modified(narrow: Stage) -> None:
    runs = narrow.client.beta.threads.runs
    waiting = narrow.run("weather", tools=TOOLS)
    speaking = reached(narrow.client, narrow.begin("talk"), "in_progress")
    queued = narrow.begin("hello")
    for run, status in ((queued, "queued"), (speaking, "in_progress")):
        assert refusals(narrow, run) == (
            f"Cannot update run with status '{status}'.",
            f'Runs in status "{status}" do not accept tool outputs.',
        )
    busy = refused(runs.update, waiting.id, thread_id=waiting.thread_id, metadata={})
    assert busy == (400, "Cannot update run with status 'requires_action'.", None, None)
    for run in (queued, waiting, speaking):
        assert runs.cancel(run.id, thread_id=run.thread_id).status == "cancelling"
        reached(narrow.client, run, "cancelled")


@pytest.mark.parametrize(
    ("question", "status"),
    [("hello", "completed"), ("break", "failed"), ("long", "incomplete"), ("think", "cancelled")],
)
def test_ended_runs_can_be_modified_and_not_cancelled(stage: Stage, question: str, status: str) -> None:
    options: dict[str, Any] = {"max_completion_tokens": 2} if status == "incomplete" else {}
    run = stage.begin(question, **options)
    if status == "cancelled":
        stage.client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert_over(stage, reached(stage.client, run, status))


def assert_over(stage: Stage, run: Run) -> None:
    assert refusals(stage, run) == ("changed", f'Runs in status "{run.status}" do not accept tool outputs.')
    cancel = refused(stage.client.beta.threads.runs.cancel, run.id, thread_id=run.thread_id)
    assert cancel == (400, f"Cannot cancel run with status '{run.status}'.", None, None)
    assert run.expires_at is None
    stage.client.beta.threads.messages.create(run.thread_id, role="user", content="free")


def test_expiry_while_outputs_are_waited_for(brief: Stage) -> None:
    waiting = brief.run("weather", tools=TOOLS)
    assert (waiting.status, waiting.expires_at) == ("requires_action", waiting.created_at + 3)
    late = outputs_for(waiting, "sunny")
    ended = reached(brief.client, waiting, "expired")
    assert (ended.required_action, ended.last_error, ended.completed_at) == (None, None, None)
    [step] = brief.client.beta.threads.runs.steps.list(ended.id, thread_id=ended.thread_id).data
    assert (step.status, step.expired_at is None) == ("expired", False)
    submit = brief.client.beta.threads.runs.submit_tool_outputs
    for stream in (False, True):
        options: Any = {"thread_id": ended.thread_id, "tool_outputs": late, "stream": stream}
        text = 'Runs in status "expired" do not accept tool outputs.'
        assert refused(submit, ended.id, **options) == (400, text, None, None)
    assert_over(brief, ended)


def test_expiry_in_mid_stream_closes_the_upstream(brief: Stage) -> None:
    names = [event.event for event in brief.streamed("talk")]
    broken_off = ["thread.run.step.expired", "thread.message.incomplete", "thread.run.expired"]
    beside("the stream of a run that expires", names, [*PLAIN_EVENTS[:8], *broken_off])
    assert closed_early(brief.asked[0])


# -- cut short


def test_a_cap_on_completion_tokens(stage: Stage) -> None:
    events = stage.streamed("a b c d e f g", max_completion_tokens=3)
    cut = ["thread.message.incomplete", "thread.run.step.completed", "thread.run.incomplete"]
    beside("the stream of an incomplete run", (event.event for event in events), [*PLAIN_EVENTS[:8], *cut])
    message, step, run = (event.data for event in events[-3:])
    assert stage.asked[0].body["max_completion_tokens"] == 3
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")
    assert (run.last_error, run.expires_at, run.completed_at is None) == (None, None, False)
    assert (run.usage.completion_tokens, step.usage.completion_tokens, step.status) == (3, 3, "completed")
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "max_tokens")
    assert (text_of(message), message.completed_at, message.incomplete_at is None) == ("You said: a", None, False)
    client = stage.client
    assert client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id) == run
    assert client.beta.threads.messages.retrieve(message.id, thread_id=run.thread_id) == message
    assert client.beta.threads.runs.steps.retrieve(step.id, run_id=run.id, thread_id=run.thread_id) == step


def test_the_cap_counts_over_all_model_calls(stage: Stage) -> None:
    run = stage.run("plan", tools=TOOLS, max_completion_tokens=256)
    submit = stage.client.beta.threads.runs.submit_tool_outputs_and_poll
    while run.status == "requires_action":
        run = submit(run_id=run.id, thread_id=run.thread_id, tool_outputs=answers(run))
    assert run.status == "completed"
    assert [one.body["max_completion_tokens"] for one in stage.asked] == [256, 236, 221]


def test_a_content_filter(stage: Stage) -> None:
    events = stage.streamed("filter")
    message, run = next(one.data for one in events if one.event == "thread.message.incomplete"), events[-1].data
    assert (events[-1].event, run.status, run.last_error.code) == ("thread.run.failed", "failed", "invalid_prompt")
    assert "content filter" in run.last_error.message
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "content_filter")
    assert text_of(message) == "one two"
    assert stage.newest(run) == message


def test_a_refusal(stage: Stage) -> None:
    events = stage.streamed("refuse")
    assert collapsed(event.event for event in events) == PLAIN_EVENTS
    deltas = [event.data.delta.content[0] for event in events if event.event == "thread.message.delta"]
    assert {(delta.index, delta.type) for delta in deltas} == {(0, "refusal")}
    assert "".join(delta.refusal for delta in deltas) == "I would rather not."
    [part] = stage.newest(events[-1].data).content
    assert part.to_dict() == {"type": "refusal", "refusal": "I would rather not."}
    stage.client.beta.threads.messages.create(events[-1].data.thread_id, role="user", content="why?")
    stage.upstream.requests.clear()
    run: Any = events[-1].data
    settled(stage.client, stage.client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id))
    assert [one["content"] for one in stage.asked[0].body["messages"]] == ["refuse", "I would rather not.", "why?"]


# -- what a run adds and overrides


def test_what_a_run_adds_and_overrides(stage: Stage) -> None:
    client = stage.client
    stage.upstream.requests.clear()
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}}
    bare = {"type": "image_url", "image_url": {"url": "https://example.com/dog.png"}}
    talk: Any = [
        {"role": "user", "content": "one", "metadata": {"n": "1"}},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}, image, bare, {"type": "text", "text": "or"}]},
    ]
    more: Any = [
        {"role": "assistant", "content": [{"type": "text", "text": "four"}, {"type": "text", "text": "five"}]},
        {"role": "user", "content": "six", "metadata": {"n": "6"}},
    ]
    assistant = client.beta.assistants.create(
        model="gpt-4o", instructions="Old.", tools=[WEATHER], metadata={"of": "assistant"}
    )
    thread = client.beta.threads.create(messages=talk, metadata={"of": "thread"})
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id,
        assistant_id=assistant.id,
        model="gpt-4o-mini",
        instructions="New.",
        additional_instructions="And more.",
        additional_messages=more,
        tools=[TIME],
        metadata={"of": "run"},
    )
    assert (run.status, run.model, run.instructions) == ("completed", "gpt-4o-mini", "New.\n\nAnd more.")
    body = stage.asked[0].body
    assert body["messages"] == [
        {"role": "system", "content": "New.\n\nAnd more."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "three"},
                image,
                {"type": "image_url", "image_url": {"url": "https://example.com/dog.png", "detail": "auto"}},
                {"type": "text", "text": "or"},
            ],
        },
        {"role": "assistant", "content": "four\nfive"},
        {"role": "user", "content": "six"},
    ]
    assert body["model"] == "gpt-4o-mini"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["get_time"]
    stored = client.beta.threads.messages.list(thread.id, order="asc").data
    assert [one.role for one in stored] == ["user", "assistant", "user", "assistant", "user", "assistant"]
    assert [one.metadata for one in stored] == [{"n": "1"}, {}, {}, {}, {"n": "6"}, {}]
    assert (stored[1].assistant_id, stored[1].run_id, stored[-1].run_id) == (None, None, run.id)
    assert run.metadata == {"of": "run"}
    assert client.beta.assistants.retrieve(assistant.id).metadata == {"of": "assistant"}
    assert client.beta.threads.retrieve(thread.id).metadata == {"of": "thread"}
    changed = client.beta.threads.messages.update(stored[-1].id, thread_id=thread.id, metadata={"k": "v"})
    assert changed.metadata == {"k": "v"}


PERSON = {
    "name": "person",
    "description": "Somebody.",
    "schema": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "nothing": {"type": ["null"], "default": None}},
        "required": ["name", "nothing"],
        "additionalProperties": False,
    },
    "strict": True,
}
ASKED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"response_format": "auto"}, {}),
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_object"}},) * 2,
    ({"response_format": {"type": "json_schema", "json_schema": PERSON}},) * 2,
    ({"temperature": 0.0},) * 2,
    ({"temperature": 1.0, "top_p": 1.0},) * 2,
    ({"top_p": 0.25},) * 2,
    ({"reasoning_effort": "low"},) * 2,
]
"""What a run or its assistant sets, and what of it the upstream is sent. Text is what it answers anyway."""


@pytest.mark.parametrize("where", ["run", "assistant"])
@pytest.mark.parametrize(("given", "sent"), ASKED, ids=[json.dumps(given)[:40] for given, _ in ASKED])
def test_what_is_set_is_sent_and_nothing_else(
    stage: Stage, where: str, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    client = stage.client
    stage.upstream.requests.clear()
    assistant = client.beta.assistants.create(model="gpt-4o", **(given if where == "assistant" else {}))
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant.id, **(given if where == "run" else {})
    )
    assert run.status == "completed"
    assert stage.asked[0].body == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **sent,
    }
    shown: Any = run.to_dict()
    assert {name: shown[name] for name in given} == given
