"""What programs do on a server that gets killed. Each work keeps what was answered, and ends what it has begun.

A work is broken off by the death of the server wherever a real program could not know what had become of its request;
where it can look, it looks and goes on.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import httpx2
import openai

from tests.durability.load import BROKEN, LONG_PIECES, WEATHER, end_of, patiently, poll, text_of
from tests.durability.promises import Json, Promises
from tests.durability.readings import Followers, Reading
from tests.server import Client

QUEUE: Json = {"x_when_busy": "queue"}
INTERRUPT: Json = {"x_when_busy": "interrupt"}


class Scene:
    """A program's thread and assistant, and short ways to what all works do."""

    def __init__(
        self,
        client: Client,
        promises: Promises,
        followers: Followers,
        dice: random.Random,
        number: int,
        tag: Callable[[str], str],
    ) -> None:
        self.client = client
        self.dice = dice
        self.number = number
        self.tag = tag
        self.promises = promises
        self.followers = followers
        self.runs = client.beta.threads.runs
        self.assistant_id = self.new_assistant()
        self.thread_id = self.new_thread()

    # -- objects

    def new_assistant(self) -> str:
        made = self.client.beta.assistants.with_raw_response.create(
            model="gpt-4o", tools=[WEATHER], name=self.tag("name")
        )
        assistant_id: str = made.parse().id
        self.promises.keep("assistants", f"/assistants/{assistant_id}", made.http_response.content)
        return assistant_id

    def new_thread(self, question: str = "hello") -> str:
        text = self.tag(question)
        first: Any = {"role": "user", "content": text}
        made = self.client.beta.threads.with_raw_response.create(messages=[first], metadata=self.metadata())
        thread_id: str = made.parse().id
        self.promises.keep("threads", f"/threads/{thread_id}", made.http_response.content)
        self.promises.keep_thread(self.number, thread_id, text)
        return thread_id

    def on(self, thread_id: str) -> Scene:
        """Return the same scene on another thread."""
        other = copy.copy(self)
        other.thread_id = thread_id
        return other

    def metadata(self) -> dict[str, str]:
        return {"program": str(self.number), "tag": self.tag("tag")}

    def ask(self, kind: str, how: Json | None = None) -> str:
        text = self.tag(kind)
        made = self.client.beta.threads.messages.with_raw_response.create(
            self.thread_id, role="user", content=text, extra_body=how
        )
        message_id: str = made.parse().id
        self.promises.keep("messages", f"/threads/{self.thread_id}/messages/{message_id}", made.http_response.content)
        self.promises.keep_said(self.thread_id, text)
        if how is not INTERRUPT:
            self.promises.keep_place(self.thread_id, message_id)
        return message_id

    # -- runs

    def options(self, how: Json | None = None) -> Any:
        return {
            "thread_id": self.thread_id,
            "assistant_id": self.assistant_id,
            "metadata": {"tag": self.tag("run")},
            "extra_body": how,
        }

    def begin(self, kind: str, how: Json | None = None, say: str | None = None, **more: Any) -> Any:
        """Create a run, with an additional message if there is something to say."""
        if say:
            more["additional_messages"] = [{"role": "user", "content": say}]
        run = self.runs.create(**self.options(how), **more)
        if say:
            self.promises.keep_said(self.thread_id, say)
        self.promises.keep_run(kind, run)
        self.follow(run)
        return run

    def follow(self, run: Any, most: int = 3) -> None:
        for _ in range(self.dice.randrange(most + 1)):
            self.followers.begin(Reading(run.thread_id, run.id))

    def end(self, run: Any) -> Any:
        """Wait for a run's end. It, its messages and its steps never change again."""
        ended = end_of(self.client, run.thread_id, run.id)
        path = f"/threads/{run.thread_id}/runs/{run.id}"
        self.keep_now("ends", path)
        self.keep_now("step lists", f"{path}/steps")
        for message in patiently(lambda: list(self.client.beta.threads.messages.list(run.thread_id, run_id=run.id))):
            self.keep_now("answers", f"/threads/{run.thread_id}/messages/{message.id}")
        return ended

    def keep_now(self, kind: str, path: str) -> bytes:
        body = patiently(lambda: self.client.get(path, cast_to=httpx2.Response).content)
        self.promises.keep(kind, path, body)
        return body

    def stream(self, reading: Reading, opened: AbstractContextManager[Any]) -> None:
        """Read a stream of the official client by its frames, and follow the run to the stream's end or its own.

        A stream that was cut before it named the run leaves nobody to follow; the work is broken off.
        """
        try:
            with opened as response:
                reading.take(response.iter_lines())
        except BROKEN:
            if not reading.run_id:
                raise
            reading.broken += 1

    def answer_calls(self, run: Any) -> Any:
        """Wait for a run to pause or end, and submit outputs until that was answered; return it ended or running."""
        waiting = end_of(self.client, run.thread_id, run.id, or_pause=True)
        if waiting.required_action is None:
            return waiting
        calls = waiting.required_action.submit_tool_outputs.tool_calls
        outputs: Any = [{"tool_call_id": call.id, "output": self.tag("warm")} for call in calls]
        self.promises.submit(outputs)
        self._submit(waiting, outputs)
        return waiting

    def _submit(self, run: Any, outputs: Any) -> None:
        options: Any = {"thread_id": run.thread_id, "tool_outputs": outputs}
        streamed = self.dice.random() < 0.5

        def submitted() -> bool:
            try:
                if not streamed:
                    self.runs.submit_tool_outputs(run.id, **options)
                else:
                    with self.runs.submit_tool_outputs(run.id, stream=True, **options) as stream:
                        check_stream(stream)
                self.promises.keep_taken(outputs)
            except openai.BadRequestError as refusal:
                if "do not accept tool outputs" not in refusal.message:
                    raise  # else they were stored, and the answer was lost
            return True

        poll(submitted, f"outputs for {run.id} to be taken")


def check_stream(stream: Any) -> Any:
    """Read a stream of the official client; return the run as it was last shown. Raises HTTPError at a shutdown."""
    try:
        return read_stream(stream)
    except openai.APIError as failure:
        if type(failure) is not openai.APIError:
            raise
        raise httpx2.RemoteProtocolError(failure.message) from failure  # an event `error`


def read_stream(stream: Any) -> Any:
    texts: dict[str, str] = {}
    run: Any = None
    for event in stream:
        if event.event == "thread.message.delta":
            delta = "".join(part.text.value for part in event.data.delta.content or [])
            texts[event.data.id] = texts.get(event.data.id, "") + delta
        if event.event in {"thread.message.completed", "thread.message.incomplete"}:
            assert text_of(event.data) == texts.get(event.data.id, ""), "deltas concatenate to the message"
        if event.event.startswith("thread.run.") and ".step." not in event.event:
            run = event.data
    return run


def plain(scene: Scene) -> None:
    scene.ask(scene.dice.choice(["plain", "slow"]))
    scene.end(scene.begin("plain runs"))


def streamed(scene: Scene) -> None:
    """The official stream, which knows no way back: after a death the run is looked for and followed from its start."""
    scene.ask(scene.dice.choice(["streamed", "slow"]))
    options = scene.options()
    try:
        with scene.runs.create(stream=True, **options) as stream:
            run = check_stream(stream)
    except BROKEN:
        found = patiently(lambda: list(scene.runs.list(scene.thread_id)))
        run = next((one for one in found if one.metadata == options["metadata"]), None)
        if run is None:
            return  # never stored
    scene.promises.keep_run("streamed runs", run)
    scene.follow(run, 1)
    scene.end(run)


def resumed(scene: Scene) -> None:
    """A stream that is taken up again where it was cut, until the log is over."""
    scene.ask(scene.dice.choice(["resumed", "slow", "slow"]))
    reading = Reading(scene.thread_id)
    scene.stream(reading, scene.runs.with_streaming_response.create(stream=True, **scene.options()))
    run = Named(reading)
    scene.promises.keep_run("resumed runs", run)
    scene.follow(run)
    scene.followers.finish(reading)
    scene.end(run)


class Named:
    """A run that is known by a stream only."""

    def __init__(self, reading: Reading) -> None:
        self.id = reading.run_id
        self.thread_id = reading.thread_id


def calling(scene: Scene) -> None:
    scene.ask(scene.dice.choice(["call", "calls", "aloud"]))
    run = scene.begin("calling runs")
    scene.answer_calls(run)
    scene.end(run)


def calling_resumed(scene: Scene) -> None:
    """Two streams, of the run's creation and of the submission, read as one log."""
    scene.ask(scene.dice.choice(["call", "calls"]))
    reading = Reading(scene.thread_id)
    scene.stream(reading, scene.runs.with_streaming_response.create(stream=True, **scene.options()))
    run: Any = Named(reading)
    scene.promises.keep_run("calling runs", run)
    paused = end_of(scene.client, run.thread_id, run.id, or_pause=True)
    last = reading.events[-1].name
    if paused.required_action is not None and last == "thread.run.requires_action":
        calls = paused.required_action.submit_tool_outputs.tool_calls
        outputs: Any = [{"tool_call_id": call.id, "output": scene.tag("warm")} for call in calls]
        scene.promises.submit(outputs)
        before = len(reading.events)
        submitting = scene.runs.with_streaming_response.submit_tool_outputs(
            run.id, thread_id=run.thread_id, tool_outputs=outputs, stream=True
        )
        scene.stream(reading, submitting)
        if len(reading.events) > before:
            scene.promises.keep_taken(outputs)
    scene.answer_calls(run)
    scene.followers.finish(reading)
    scene.end(run)


def cancelled(scene: Scene) -> None:
    """Cancel a run at any moment, or one that waits for outputs."""
    scene.ask(scene.dice.choice(["slow", "call"]))
    run = scene.begin("cancelled runs")
    if scene.dice.random() < 0.5:
        end_of(scene.client, run.thread_id, run.id, or_pause=True)
    else:
        time.sleep(scene.dice.uniform(0, 0.2))  # any moment is fine
    cancel(scene, run)
    scene.answer_calls(run)
    scene.end(run)


def cancel(scene: Scene, run: Any) -> None:
    scene.promises.stop(run.id)
    try:
        scene.runs.cancel(run.id, thread_id=run.thread_id)
    except openai.BadRequestError as refusal:
        if "Cannot cancel run" not in refusal.message:
            raise  # else it has ended meanwhile
    else:
        scene.promises.keep_cancelled(run.id)


def queued(scene: Scene) -> None:
    """Messages and runs behind an active run; sometimes one is cancelled in the line."""
    scene.ask(scene.dice.choice(["slow", "call", "plain"]))
    runs = [scene.begin("runs with a line")]
    for _ in range(scene.dice.randrange(1, 4)):
        if scene.dice.random() < 0.7:
            scene.ask("behind", QUEUE)
        more = scene.tag("more") if scene.dice.random() < 0.5 else None
        runs.append(scene.begin("queued runs", QUEUE, more))
    if scene.dice.random() < 0.3:
        cancel(scene, scene.dice.choice(runs))
    if scene.dice.random() < 0.3:
        scene.ask("left alone", QUEUE)
    for run in runs:
        scene.answer_calls(run)
        scene.end(run)


def interrupting(scene: Scene) -> None:
    scene.ask(scene.dice.choice(["slow", "call"]))
    runs = [scene.begin("interrupted runs")]
    if scene.dice.random() < 0.5:
        runs.append(scene.begin("queued runs", QUEUE))
    time.sleep(scene.dice.uniform(0, 0.15))  # any moment is fine
    scene.promises.stop(scene.thread_id)
    if scene.dice.random() < 0.7:
        scene.ask("stop", INTERRUPT)
    runs.insert(1, scene.begin("interrupting runs", INTERRUPT, scene.tag("stop now")))
    for run in runs:
        scene.answer_calls(run)
        scene.end(run)


def retried(scene: Scene) -> None:
    """A run that fails or is cut short, and the same again."""
    cut = scene.dice.random() < 0.5
    scene.ask("long" if cut else "fail")
    run = scene.begin("cut runs", max_completion_tokens=LONG_PIECES) if cut else scene.begin("failing runs")
    ended = scene.end(run)
    scene.promises.retry(ended.metadata["tag"])
    made = scene.client.post(
        f"/threads/{run.thread_id}/runs/{run.id}/retry", body=QUEUE, cast_to=httpx2.Response
    ).json()
    reading = Reading(made["thread_id"], made["id"])
    scene.promises.keep_run("retries", Named(reading))
    scene.followers.finish(reading)
    scene.end(Named(reading))


def edited(scene: Scene) -> None:
    """Change and delete what stands still: messages, the thread, an ended run."""
    thread_id = scene.thread_id
    scene.promises.rewritten.add(thread_id)
    first, second, third = (scene.ask("edited") for _ in range(3))
    rewrite(scene, first)
    path = f"/threads/{thread_id}/messages/{second}"
    with scene.promises.delete("deleted messages", path):
        scene.client.beta.threads.messages.delete(second, thread_id=thread_id)
    metadata = scene.metadata()
    with scene.promises.change(f"/threads/{thread_id}", {"metadata": metadata}):
        thread = scene.client.beta.threads.with_raw_response.update(thread_id, metadata=metadata)
        scene.promises.keep("changed threads", f"/threads/{thread_id}", thread.http_response.content)
    run = scene.begin("plain runs")
    scene.end(run)
    path = f"/threads/{thread_id}/runs/{run.id}"
    metadata = {"tag": run.metadata["tag"], "changed": "yes"}
    with scene.promises.change(path, {"metadata": metadata}):
        changed = scene.runs.with_raw_response.update(run.id, thread_id=thread_id, metadata=metadata)
        scene.promises.keep("changed runs", path, changed.http_response.content)
    rewrite(scene, third)


def rewrite(scene: Scene, message_id: str) -> None:
    path, text, mark = f"/threads/{scene.thread_id}/messages/{message_id}", scene.tag("rewritten"), {"k": "v"}
    change = {"content": [{"type": "text", "text": {"value": text, "annotations": []}}], "metadata": mark}
    with scene.promises.change(path, change):
        changed = scene.client.beta.threads.messages.with_raw_response.update(
            message_id, thread_id=scene.thread_id, metadata=mark, extra_body={"x_content": text}
        )
        scene.promises.keep("changed messages", path, changed.http_response.content)


def assistants(scene: Scene) -> None:
    """An assistant that is made, changed and deleted."""
    assistant_id, made = scene.new_assistant(), scene.client.beta.assistants
    path, name = f"/assistants/{assistant_id}", scene.tag("name")
    with scene.promises.change(path, {"name": name}):
        changed = made.with_raw_response.update(assistant_id, name=name)
        scene.promises.keep("changed assistants", path, changed.http_response.content)
    if scene.dice.random() < 0.7:
        with scene.promises.delete("deleted assistants", path):
            made.delete(assistant_id)


def forked(scene: Scene) -> None:
    """A copy of the thread up to some message; the program goes on there."""
    messages = scene.client.beta.threads.messages
    told = list(messages.list(scene.thread_id, order="asc"))
    place = scene.dice.randrange(len(told))
    made = scene.client.post(
        f"/threads/{scene.thread_id}/fork",
        body={"message_id": told[place].id, "metadata": scene.metadata()},
        cast_to=httpx2.Response,
    )
    fork_id = made.json()["id"]
    scene.promises.keep("forks", f"/threads/{fork_id}", made.content)
    copies = list(messages.list(fork_id, order="asc"))
    texts = [text_of(one) for one in copies]
    assert texts == [text_of(one) for one in told[: place + 1]]
    scene.promises.keep_thread(scene.number, fork_id, *(text_of(one) for one in copies if one.role == "user"))
    for one in copies:
        scene.keep_now("copies", f"/threads/{fork_id}/messages/{one.id}")
    if scene.thread_id in scene.promises.rewritten:
        scene.promises.rewritten.add(fork_id)
    scene.thread_id = fork_id


def both(scene: Scene) -> None:
    """A thread and its run in one request, plain or streamed."""
    text = scene.tag("both")
    thread: Any = {"messages": [{"role": "user", "content": text}], "metadata": scene.metadata()}
    options: Any = {"assistant_id": scene.assistant_id, "thread": thread, "metadata": {"tag": scene.tag("run")}}
    if scene.dice.random() < 0.5:
        run: Any = scene.client.beta.threads.create_and_run(**options)
        scene.promises.keep_run("runs with threads", run)
        scene.follow(run)
    else:
        reading = Reading("")
        scene.stream(reading, scene.client.beta.threads.with_streaming_response.create_and_run(stream=True, **options))
        reading.thread_id = reading.events[0].body["id"]
        run = Named(reading)
        scene.promises.keep_run("runs with threads", run)
        scene.followers.finish(reading)
    scene.promises.keep_thread(scene.number, run.thread_id, text)
    scene.keep_now("threads", f"/threads/{run.thread_id}")
    scene.end(run)


def dropped(scene: Scene) -> None:
    """A thread that is deleted with a run at work on it, or behind it."""
    gone = scene.on(scene.new_thread(scene.dice.choice(["slow", "call", "hello"])))
    run = gone.begin("dropped runs")
    if scene.dice.random() < 0.5:
        gone.ask("behind", QUEUE)
        gone.begin("dropped runs", QUEUE)
    if scene.dice.random() < 0.3:
        end_of(scene.client, run.thread_id, run.id, or_pause=True)
    else:
        time.sleep(scene.dice.uniform(0, 0.2))  # any moment is fine
    with scene.promises.delete("deleted threads", f"/threads/{gone.thread_id}"):
        scene.client.beta.threads.delete(gone.thread_id)


def listed(scene: Scene) -> None:
    """The program's threads are all in its list, newest first."""
    path = f"/threads?limit=100&metadata[program]={scene.number}"
    page: Json = json.loads(scene.client.get(path, cast_to=httpx2.Response).content)
    shown = [thread["id"] for thread in page["data"]]
    made = scene.promises.threads[scene.number]
    expected = [one for one in reversed(made) if not scene.promises.may_be_gone(f"/threads/{one}")]
    found = [one for one in shown if one in expected]
    assert found == (expected[: len(found)] if page["has_more"] else expected)
    assert len(shown) == len(set(shown))
    assert not scene.promises.deleted & {f"/threads/{one}" for one in shown}
    scene.promises.count("lists of threads")


class Work(Protocol):
    def __call__(self, scene: Scene, /) -> None: ...


WORKS: dict[str, Work] = {
    work.__name__: work
    for work in (
        plain,
        streamed,
        resumed,
        calling,
        calling_resumed,
        cancelled,
        queued,
        interrupting,
        retried,
        edited,
        assistants,
        forked,
        both,
        dropped,
        listed,
    )
}
