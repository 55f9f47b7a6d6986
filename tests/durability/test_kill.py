"""kill -9 of the real server: nothing acknowledged is lost, every run ends, no thread stays locked.

`PERDURE_KILLS` sets how often the server is killed at random moments, `PERDURE_SEED` repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.durability.load import (
    BROKEN,
    SLOW_ANSWER,
    Load,
    check_free,
    check_promises,
    end_of,
    poll,
    restarted,
    text_of,
    write_script,
)
from tests.server import Client, ServerProcess

KILLS = int(os.environ.get("PERDURE_KILLS", "6"))
SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)
SETTINGS: dict[str, Any] = {"poll_hold_seconds": 0}


class Servers:
    """One server after the other on the same data and the same port."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._settings = {"script": write_script(folder), **SETTINGS}
        self.now = ServerProcess(self._data, **self._settings)

    @property
    def url(self) -> str:
        return self.now.url

    def kill(self) -> None:
        self.now.kill()
        self.now = restarted(self.now, self._data, **self._settings)


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    one = Servers(folder)
    try:
        yield one
    finally:
        one.now.stop()


def test_three_running_runs_survive_a_kill(tmp_path: Path) -> None:
    with servers(tmp_path) as server, Client(server.url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o")
        threads = [client.beta.threads.create(messages=[{"role": "user", "content": "slow"}]) for _ in range(3)]
        streams = [
            client.beta.threads.runs.create(thread.id, assistant_id=assistant.id, stream=True) for thread in threads
        ]
        run_ids: list[str] = []
        for stream in streams:
            deltas = 0
            for event in stream:
                if event.event == "thread.run.created":
                    run_ids.append(event.data.id)
                deltas += event.event == "thread.message.delta"
                if deltas == 8:
                    break
        before = [client.get(f"/threads/{thread.id}", cast_to=object) for thread in threads]
        server.kill()
        for stream in streams:
            with pytest.raises(BROKEN):
                list(stream)
            stream.close()
        assert [client.get(f"/threads/{thread.id}", cast_to=object) for thread in threads] == before
        for thread, run_id in zip(threads, run_ids, strict=True):
            assert end_of(client, thread.id, run_id).status == "completed"
            messages = list(client.beta.threads.messages.list(thread.id, run_id=run_id, order="asc"))
            assert [message.status for message in messages] == ["incomplete", "completed"]
            assert SLOW_ANSWER.startswith(text_of(messages[0]))
            assert text_of(messages[1]) == SLOW_ANSWER
            check_free(client, thread.id)


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    print(f"PERDURE_KILLS={KILLS} PERDURE_SEED={SEED}")  # noqa: T201  # pytest shows it when the test fails
    dice = random.Random(SEED)  # noqa: S311  # a game, no secret
    with servers(tmp_path) as server:
        with Load(6, SEED, server.url) as promises:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.05, 1.2))  # the moment is the point
                server.kill()
            poll(lambda: promises.counts["ends"], "a run to end")
        with Client(server.url) as client:
            check_promises(client, promises)
        print(dict(promises.counts))  # noqa: T201  # shows what the load was


def test_a_run_that_was_cancelled_just_before_the_kill_ends_cancelled(tmp_path: Path) -> None:
    with servers(tmp_path) as server, Client(server.url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        assert client.beta.threads.runs.cancel(run.id, thread_id=thread.id).status == "cancelling"
        server.kill()
        assert end_of(client, thread.id, run.id).status == "cancelled"
        check_free(client, thread.id)
