"""A conversation as a program of the hosted API's time would hold it; runs under any openai-python from 1.30 on.

    python converse.py openai|azure

`openai` reads OPENAI_BASE_URL and OPENAI_API_KEY, `azure` reads AZURE_OPENAI_ENDPOINT and AZURE_OPENAI_API_KEY. Prints
one JSON object: what was seen.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import openai


class Listener(openai.AssistantEventHandler):
    """Writes down what the streaming helper tells."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.deltas: list[str] = []
        self.done: list[str] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event.event)

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        del snapshot
        self.deltas.append(delta.value or "")

    def on_message_done(self, message: Any) -> None:
        self.done.append(message.content[0].text.value)


def make_client(kind: str) -> openai.OpenAI:
    if kind == "azure":
        return openai.AzureOpenAI(api_version="2024-05-01-preview", max_retries=0)
    return openai.OpenAI(max_retries=0)


def converse(client: openai.OpenAI) -> dict[str, object]:
    assistant = client.beta.assistants.create(
        name="Math Tutor", instructions="Be brief.", model="gpt-4-turbo-preview", metadata={"kind": "tutor"}
    )
    thread = client.beta.threads.create()
    question = client.beta.threads.messages.create(thread_id=thread.id, role="user", content="3x + 11 = 14?")
    polled = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    answers = client.beta.threads.messages.list(thread_id=thread.id, order="asc", after=question.id)
    answer: Any = answers.data[0].content[0]

    client.beta.threads.messages.create(thread_id=thread.id, role="user", content="천천히 다시요")
    listener = Listener()
    with client.beta.threads.runs.stream(
        thread_id=thread.id, assistant_id=assistant.id, event_handler=listener
    ) as stream:
        stream.until_done()
        streamed = stream.get_final_run()
    roles = [message.role for message in client.beta.threads.messages.list(thread_id=thread.id, order="asc", limit=3)]
    steps = client.beta.threads.runs.steps.list(run_id=streamed.id, thread_id=thread.id)
    client.beta.assistants.delete(assistant.id)
    return {
        "version": openai.__version__,
        "assistant": assistant.id,
        "metadata": assistant.metadata,
        "polled": polled.status,
        "answer": answer.text.value,
        "streamed": streamed.status,
        "tokens": streamed.usage.total_tokens if streamed.usage else None,
        "events": listener.events,
        "deltas": listener.deltas,
        "done": listener.done,
        "roles": roles,
        "steps": [step.type for step in steps.data],
        "missing": _missing(client),
    }


def _missing(client: openai.OpenAI) -> str:
    try:
        client.beta.threads.retrieve("thread_nowhere")
    except openai.NotFoundError as error:
        body: Any = error.body
        return str(body["message"])
    return ""


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    with make_client(sys.argv[1]) as client:
        sys.stdout.write(json.dumps(converse(client)))
