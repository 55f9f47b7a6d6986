"""What the histories have found, each told again by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.server import Client, running_server

SCRIPT = {"otherwise": {"pieces": ["one ", "two ", "three"], "delay_seconds": 0.2}}


def test_metadata_that_is_given_to_a_half_written_message_stays(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with running_server(tmp_path / "data", script=script) as url, Client(url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
        messages, shown = client.beta.threads.messages, dict[str, Any]()
        with client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True) as stream:
            for event in stream:
                if event.event == "thread.message.created":
                    messages.update(event.data.id, thread_id=thread.id, metadata={"k": "v"})
                if event.event == "thread.message.completed":
                    shown = event.data.to_dict()
        assert shown["metadata"] == {"k": "v"}
        assert messages.retrieve(shown["id"], thread_id=thread.id).to_dict() == shown
