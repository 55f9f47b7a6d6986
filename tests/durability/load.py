"""What all programs of the load share: the model's script, and asking a server that may be dead just now.

`programs.py` runs them, `works.py` has what they do, `promises.py` what they remember, `checks.py` what must be true.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import openai

from tests.server import ServerProcess

T = TypeVar("T")

TERMINAL = {"completed", "incomplete", "failed", "cancelled", "expired"}
DEADLINE = 40.0
BROKEN = (openai.APIConnectionError, openai.InternalServerError, httpx2.HTTPError)
"""What a client sees of a server that dies."""

WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
SEOUL = {"name": "get_weather", "arguments": {"city": "Seoul"}}
PARIS = {"name": "get_weather", "arguments": {"city": "Paris"}}
ALOUD = "Let me see."
LONG_PIECES = 20
SLOW_ANSWER = " ".join(f"word{number}" for number in range(40))
LONG_ANSWER = " ".join(["on"] * LONG_PIECES * 2)
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^calls", "call": [SEOUL, PARIS, SEOUL], "delay_seconds": 0.005},
        {"when": "^call", "call": [SEOUL], "delay_seconds": 0.005},
        {"when": "^aloud", "say": ALOUD, "call": [PARIS, SEOUL], "delay_seconds": 0.005},
        {"when": "", "role": "tool", "say": "It is {output}.", "delay_seconds": 0.02},
        {"when": "^slow", "say": SLOW_ANSWER, "delay_seconds": 0.03},
        {"when": "^long", "say": LONG_ANSWER, "delay_seconds": 0.01},
        {"when": "^fail", "fail": {"status": 400, "message": "The script says no."}},
    ],
    "otherwise": {"say": "You said: {question} a b c d e f", "delay_seconds": 0.01},
}


def write_script(folder: Path) -> Path:
    path = folder / "script.json"
    path.write_text(json.dumps(SCRIPT))
    return path


def patiently(ask: Callable[[], T]) -> T:
    """Ask what may be asked twice; a dead server is asked again until it is back."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return ask()
        except BROKEN:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def poll(condition: Callable[[], T], what: str) -> T:
    """Ask until the answer is true; a dead server is asked again."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if found := patiently(condition):
            return found
        time.sleep(0.01)
    raise AssertionError(f"it took too long: {what}")


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def end_of(client: openai.OpenAI, thread_id: str, run_id: str, *, or_pause: bool = False) -> Any:
    """Poll a run to its end, or until it asks for outputs."""
    wanted = TERMINAL | {"requires_action"} if or_pause else TERMINAL

    def ended() -> Any:
        run = client.beta.threads.runs.retrieve(run_id, thread_id=thread_id)
        return run if run.status in wanted else None

    return poll(ended, f"the end of {run_id}")


def restarted(server: ServerProcess, data: Path, **settings: Any) -> ServerProcess:
    """Start again on the same data and port."""
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    return ServerProcess(data, port=port, **settings)


def check_free(client: openai.OpenAI, thread_id: str, assistant_id: str | None = None) -> None:
    """A further message and run work on the thread."""
    assistant_id = assistant_id or client.beta.assistants.create(model="gpt-4o").id
    client.beta.threads.messages.create(thread_id, role="user", content="still there?")
    run = client.beta.threads.runs.create(thread_id, assistant_id=assistant_id)
    assert end_of(client, thread_id, run.id).status == "completed"
    newest = next(iter(client.beta.threads.messages.list(thread_id, limit=1)))
    assert text_of(newest) == "You said: still there? a b c d e f"
