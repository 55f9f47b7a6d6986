"""A run, plain and streamed, through the official client."""

from __future__ import annotations

from tests.server import Client

PLAIN_EVENTS = [
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]


def test_the_first_answer_of_a_run_is_queued(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o", instructions="Be brief.")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
    assert (run.status, run.started_at, run.usage) == ("queued", None, None)
    assert run.expires_at == run.created_at + 600


def test_a_plain_answer_is_streamed_in_the_recorded_order(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "안녕 하세요"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        events = [event.event for event in stream]
        messages = stream.get_final_messages()
    seen = [name for index, name in enumerate(events) if index == 0 or name != events[index - 1]]
    assert seen == PLAIN_EVENTS
    assert messages[0].content[0].to_dict()["text"] == {"annotations": [], "value": "You said: 안녕 하세요"}
