"""kill -9 of the real server: nothing acknowledged is lost, every run ends, no thread stays locked.

`PERDURE_KILLS` sets how often the server is killed at random moments, `PERDURE_SEED` repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from pathlib import Path

import pytest

from tests.durability.checks import check_promises
from tests.durability.load import BROKEN, SLOW_ANSWER, check_free, end_of, poll, text_of
from tests.durability.programs import Load
from tests.durability.servers import servers
from tests.durability.store_checks import check_file
from tests.server import Client

KILLS = int(os.environ.get("PERDURE_KILLS", "6"))
SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)


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
        with Load(6, SEED, server.url) as load:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.05, 1.2))  # the moment is the point
                server.kill(dice.uniform(0, 0.3) if dice.random() < 0.2 else None)
                load.raise_failures()
            poll(lambda: load.promises.counts["ends"], "a run to end")
        with Client(server.url) as client:
            listed = check_promises(client, load)
        server.now.stop()
        print(dict(load.promises.counts), dict(check_file(server.data / "perdure.db", listed)))  # noqa: T201


def test_a_run_that_was_cancelled_just_before_the_kill_ends_cancelled(tmp_path: Path) -> None:
    with servers(tmp_path) as server, Client(server.url) as client:
        assistant = client.beta.assistants.create(model="gpt-4o")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        assert client.beta.threads.runs.cancel(run.id, thread_id=thread.id).status == "cancelling"
        server.kill()
        assert end_of(client, thread.id, run.id).status == "cancelled"
        check_free(client, thread.id)
