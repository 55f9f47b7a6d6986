"""Load for a server that gets killed: official clients that remember every answer, and the check of what is left.

Rule: an answer that arrived is a promise. What was asked and not answered may be there or not, but never twice and
never half.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai

from tests.server import Client, ServerProcess

TERMINAL = {"completed", "incomplete", "failed", "cancelled", "expired"}
DEADLINE = 40.0
BROKEN = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)
"""What a client sees of a server that dies."""

WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^call", "call": [{"name": "get_weather", "arguments": {"city": "Seoul"}}], "delay_seconds": 0.005},
        {"when": "", "role": "tool", "say": "It is {output}.", "delay_seconds": 0.02},
        {"when": "^slow", "say": " ".join(f"word{number}" for number in range(40)), "delay_seconds": 0.03},
    ],
    "otherwise": {"say": "You said: {question} a b c d e f", "delay_seconds": 0.01},
}
SLOW_ANSWER = SCRIPT["rules"][2]["say"]


def write_script(folder: Path) -> Path:
    path = folder / "script.json"
    path.write_text(json.dumps(SCRIPT))
    return path


def poll(condition: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"it took too long: {what}")


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def end_of(client: openai.OpenAI, thread_id: str, run_id: str) -> Any:
    """Poll a run to its end."""

    def ended() -> Any:
        run = client.beta.threads.runs.retrieve(run_id, thread_id=thread_id)
        return run if run.status in TERMINAL else None

    return poll(ended, f"the end of {run_id}")


class Promises:
    """What the server has answered: path and bytes of each object that never changes again, and ids of the rest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.fixed: dict[str, bytes] = {}
        self.runs: dict[str, str] = {}  # id and thread
        self.outputs: dict[str, str] = {}  # call and its submitted output
        self.counts: Counter[str] = Counter()

    def keep(self, kind: str, path: str, body: bytes) -> None:
        with self._lock:
            self.fixed[path] = body
            self.counts[kind] += 1

    def keep_run(self, kind: str, run: Any) -> None:
        with self._lock:
            self.runs[run.id] = run.thread_id
            self.counts[kind] += 1

    def keep_output(self, call_id: str, output: str) -> None:
        with self._lock:
            self.outputs[call_id] = output
            self.counts["outputs"] += 1

    @property
    def threads(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.fixed if path.count("/") == 2 and "/thread_" in path]


class Program(threading.Thread):
    """One user's program: mixed work on its own threads, again and again, whatever happens to the server."""

    def __init__(self, number: int, seed: str, url: str, promises: Promises, over: threading.Event) -> None:
        super().__init__(name=f"program-{number}")
        self.failure: BaseException | None = None
        self._number = number
        self._dice = random.Random(f"{seed}/{number}")  # noqa: S311  # a game, no secret
        self._url = url
        self._promises = promises
        self._over = over
        self._said = 0

    def run(self) -> None:
        with Client(self._url, timeout=15) as client:
            while not self._over.is_set():
                try:
                    self._session(client)
                except BROKEN:
                    time.sleep(0.02)  # dead, or starting again
                except openai.BadRequestError as refusal:
                    if "active" not in refusal.message:  # an unanswered request may have begun a run
                        self.failure = refusal
                        return
                except BaseException as failure:  # noqa: BLE001  # handed to the test's own thread
                    self.failure = failure
                    return

    def _text(self, kind: str) -> str:
        self._said += 1
        return f"{kind} {self._number}.{self._said}"

    def _session(self, client: Client) -> None:
        made = client.beta.assistants.with_raw_response.create(model="gpt-4o", tools=[WEATHER], name=self._text("name"))
        assistant = made.parse()
        self._promises.keep("assistants", f"/assistants/{assistant.id}", made.http_response.content)
        first: Any = {"role": "user", "content": self._text("hello")}
        made_thread = client.beta.threads.with_raw_response.create(messages=[first])
        thread = made_thread.parse()
        self._promises.keep("threads", f"/threads/{thread.id}", made_thread.http_response.content)
        works = [self._plain, self._streamed, self._calling]
        for _ in range(self._dice.randrange(1, 5)):
            if self._over.is_set():
                return
            self._dice.choice(works)(client, thread.id, assistant.id)

    def _ask(self, client: Client, thread_id: str, kind: str) -> None:
        made = client.beta.threads.messages.with_raw_response.create(thread_id, role="user", content=self._text(kind))
        message = made.parse()
        self._promises.keep("messages", f"/threads/{thread_id}/messages/{message.id}", made.http_response.content)

    def _plain(self, client: Client, thread_id: str, assistant_id: str) -> None:
        self._ask(client, thread_id, self._dice.choice(["plain", "slow"]))
        run = client.beta.threads.runs.create(thread_id, assistant_id=assistant_id)
        self._promises.keep_run("plain runs", run)
        self._keep_end(client, end_of(client, thread_id, run.id))

    def _keep_end(self, client: Client, run: Any) -> None:
        """An ended run, its messages and its steps never change again."""
        path = f"/threads/{run.thread_id}/runs/{run.id}"
        raw = client.beta.threads.runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id)
        self._promises.keep("ends", path, raw.http_response.content)
        for message in client.beta.threads.messages.list(run.thread_id, run_id=run.id):
            raw_message = client.beta.threads.messages.with_raw_response.retrieve(message.id, thread_id=run.thread_id)
            self._promises.keep(
                "answers", f"/threads/{run.thread_id}/messages/{message.id}", raw_message.http_response.content
            )

    def _streamed(self, client: Client, thread_id: str, assistant_id: str) -> None:
        self._ask(client, thread_id, self._dice.choice(["streamed", "slow"]))
        with client.beta.threads.runs.create(thread_id, assistant_id=assistant_id, stream=True) as stream:
            texts: dict[str, str] = {}
            run: Any = None
            for event in stream:
                if event.event == "thread.run.created":
                    self._promises.keep_run("streamed runs", event.data)
                if event.event == "thread.message.delta":
                    delta = "".join(part.text.value for part in event.data.delta.content or [])  # type: ignore[union-attr,misc]
                    texts[event.data.id] = texts.get(event.data.id, "") + delta
                if event.event in {"thread.message.completed", "thread.message.incomplete"}:
                    assert text_of(event.data) == texts[event.data.id], "deltas concatenate to the message"
                if event.event.startswith("thread.run.") and ".step." not in event.event:
                    run = event.data
        if run is not None and run.status in TERMINAL:
            self._keep_end(client, run)

    def _calling(self, client: Client, thread_id: str, assistant_id: str) -> None:
        self._ask(client, thread_id, "call")
        run = client.beta.threads.runs.create(thread_id, assistant_id=assistant_id)
        self._promises.keep_run("calling runs", run)

        def waits() -> Any:
            now = client.beta.threads.runs.retrieve(run.id, thread_id=thread_id)
            return now if now.status in TERMINAL | {"requires_action"} else None

        waiting = poll(waits, f"{run.id} to call")
        if waiting.required_action is not None:
            call = waiting.required_action.submit_tool_outputs.tool_calls[0]
            output = {"tool_call_id": call.id, "output": self._text("warm")}
            client.beta.threads.runs.submit_tool_outputs(run.id, thread_id=thread_id, tool_outputs=[output])  # type: ignore[list-item]
            self._promises.keep_output(call.id, output["output"])
        self._keep_end(client, end_of(client, thread_id, run.id))


class Load:
    """Some programs at once."""

    def __init__(self, programs: int, seed: str, url: str) -> None:
        self.promises = Promises()
        self._over = threading.Event()
        self._programs = [Program(number, seed, url, self.promises, self._over) for number in range(programs)]

    def __enter__(self) -> Promises:
        for program in self._programs:
            program.start()
        return self.promises

    def __exit__(self, *_: object) -> None:
        """Let the programs end what they do; the server must be there for it."""
        self._over.set()
        for program in self._programs:
            program.join(DEADLINE + 15)
            assert not program.is_alive(), "a program waits for ever"
        for program in self._programs:
            if program.failure is not None:
                raise program.failure


def restarted(server: ServerProcess, data: Path, **settings: Any) -> ServerProcess:
    """Start again on the same data and port."""
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    return ServerProcess(data, port=port, **settings)


def check_promises(client: Client, promises: Promises) -> None:
    """Nothing that was acknowledged is missing or changed, every run ends, every thread is free."""
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda thread_id: check_thread(client, thread_id, promises), promises.threads))
    known = [run_id for thread_id in promises.threads for run_id in all_runs(client, thread_id)]
    assert set(promises.runs) <= set(known)
    for path, body in promises.fixed.items():
        assert client.get(path, cast_to=httpx2.Response).content == body, path


def all_runs(client: Client, thread_id: str) -> Iterator[str]:
    for run in client.beta.threads.runs.list(thread_id, order="asc"):
        yield run.id


def check_thread(client: Client, thread_id: str, promises: Promises) -> None:
    for run_id in all_runs(client, thread_id):
        run = client.beta.threads.runs.retrieve(run_id, thread_id=thread_id)
        if run.required_action is not None:  # its program's submission was never answered
            outputs = [
                {"tool_call_id": call.id, "output": "late"}
                for call in run.required_action.submit_tool_outputs.tool_calls
            ]
            client.beta.threads.runs.submit_tool_outputs(run.id, thread_id=thread_id, tool_outputs=outputs)  # type: ignore[arg-type]
        check_run(client, end_of(client, thread_id, run_id), promises)
    texts = [text_of(one) for one in client.beta.threads.messages.list(thread_id) if one.role == "user"]
    assert len(texts) == len(set(texts)), "no message is there twice"
    check_free(client, thread_id)


def check_run(client: Client, run: Any, promises: Promises) -> None:
    assert run.status == "completed" or (run.status == "failed" and "interrupted 3 times" in run.last_error.message)
    steps = list(client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id))
    messages = list(client.beta.threads.messages.list(run.thread_id, run_id=run.id))
    assert "in_progress" not in {*(step.status for step in steps), *(message.status for message in messages)}
    assert [one.status for one in messages].count("completed") == (run.status == "completed")
    calls = [call for step in steps if step.step_details.type == "tool_calls" for call in step.step_details.tool_calls]
    done: Any = [call for call in calls if getattr(call, "function", None) and call.function.output is not None]  # type: ignore[union-attr]
    assert len(done) <= 1, "no tool output is there twice"
    for call in done:
        assert promises.outputs.get(call.id, call.function.output) == call.function.output
        if run.status == "completed":
            assert text_of(messages[0]) == f"It is {call.function.output}."


def check_free(client: Client, thread_id: str) -> None:
    """A further message and run work on the thread."""
    assistant = client.beta.assistants.create(model="gpt-4o")
    client.beta.threads.messages.create(thread_id, role="user", content="still there?")
    run = client.beta.threads.runs.create(thread_id, assistant_id=assistant.id)
    assert end_of(client, thread_id, run.id).status == "completed"
    newest = next(iter(client.beta.threads.messages.list(thread_id, limit=1)))
    assert text_of(newest) == "You said: still there? a b c d e f"
