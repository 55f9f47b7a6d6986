"""schemathesis over /openapi.json of the running server: good requests, bad ones, and sequences of both.

What is left out of its checks, and why: a call that fits the schema may still be refused, for what it finds (a run is
active, a cursor is nobody's), so `positive_data_acceptance` can not hold.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.api.routes import OPERATIONS
from tests.api.scenes import WEATHER, write_script
from tests.api.test_keys import create_key
from tests.server import Client, running_server

EXAMPLES = 20
MOST_SECONDS = 120
LEFT_OUT = "positive_data_acceptance"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address and a key of a server that lets nobody in without one."""
    folder = tmp_path_factory.mktemp("fuzz")
    key = create_key(folder / "data")
    with running_server(folder / "data", script=write_script(folder), embedding_model="hashing") as url:
        yield url, key


def objects(client: Client) -> dict[str, str]:
    """Make what the requests shall find."""
    assistant = client.beta.assistants.create(model="gpt-4o", tools=[WEATHER])
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "think aloud"}])
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    return {
        "assistant_id": assistant.id,
        "thread_id": thread.id,
        "run_id": run.id,
        "message_id": client.beta.threads.messages.list(thread.id).data[-1].id,
        "file_id": client.files.create(file=b"some text", purpose="assistants").id,
        "upload_id": client.uploads.create(filename="a", purpose="batch", bytes=8, mime_type="text/plain").id,
        "step_id": client.beta.threads.runs.steps.list(run.id, thread_id=thread.id).data[0].id,
        **stored(client),
    }


def stored(client: Client) -> dict[str, str]:
    """Make a vector store with a file."""
    store = client.vector_stores.create()
    file = client.files.create(file=("a.txt", b"Some words."), purpose="assistants")
    batch = client.vector_stores.file_batches.create_and_poll(store.id, file_ids=[file.id], poll_interval_ms=20)
    return {"vector_store_id": store.id, "file_id": file.id, "batch_id": batch.id}


def configuration(found: dict[str, str]) -> str:
    """Point every operation but the deletes at objects that are there; other ids come from bad data and from links."""
    parts = []
    for operation in OPERATIONS:
        names = re.findall(r"\{(\w+)\}", operation.path)
        if names and operation.method != "DELETE":
            lines = [f'"path.{name}" = "{found[name]}"' for name in names if name in found]
            parts.append(
                f'[[operations]]\ninclude-operation-id = "{operation.operation_id}"\n[operations.parameters]\n'
            )
            parts += [f"{line}\n" for line in lines]
    return "".join(parts)


def fuzz(folder: Path, url: str, key: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--url", url, "--no-color"]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(
        [
            *command,
            f"--header=Authorization: Bearer {key}",
            f"--max-examples={EXAMPLES}",
            f"--exclude-checks={LEFT_OUT}",
            "--generation-deterministic",
        ],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=MOST_SECONDS,
    )


def test_no_request_breaks_the_server_or_the_shape_of_its_answers(tmp_path: Path, served: tuple[str, str]) -> None:
    url, key = served
    with Client(url, key) as client:
        (tmp_path / "schemathesis.toml").write_text(configuration(objects(client)), encoding="utf-8")
    done = fuzz(tmp_path, url, key)
    print(done.stdout[done.stdout.rfind("= SUMMARY =") :])  # noqa: T201  # what `pytest -rP` shows
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {len(OPERATIONS)}" in done.stdout
