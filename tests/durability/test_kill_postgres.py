"""Two servers on one Postgres, either of which is killed with kill -9: the other recovers its runs by their leases.

`PERDURE_KILLS` sets how often, here a third of it and two, `PERDURE_SEED` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import time
from pathlib import Path
from typing import Any

import asyncpg

from tests.durability.checks import check_promises
from tests.durability.load import SLOW_ANSWER, check_free, end_of, poll, text_of
from tests.durability.programs import Load
from tests.durability.servers import servers
from tests.durability.store_checks import check_rows
from tests.postgres_server import postgres_server
from tests.server import Client

KILLS = int(os.environ.get("PERDURE_KILLS", "6")) // 3 + 2
SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)


def rows_of(url: str, sql: str) -> list[Any]:
    async def main() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(main())


def test_another_server_takes_up_what_a_dead_one_held(tmp_path: Path) -> None:
    with (
        postgres_server() as database,
        servers(tmp_path, "one", database_url=database) as one,
        servers(tmp_path, "two", database_url=database) as two,
        Client(one.url) as first,
        Client(two.url) as second,
    ):
        assistant = first.beta.assistants.create(model="gpt-4o")
        thread = first.beta.threads.create(messages=[{"role": "user", "content": "slow"}])
        run = first.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        poll(lambda: list(second.beta.threads.messages.list(thread.id, run_id=run.id)), "a message to begin")
        one.now.kill()
        assert end_of(second, thread.id, run.id).status == "completed"
        messages = list(second.beta.threads.messages.list(thread.id, run_id=run.id, order="asc"))
        assert [message.status for message in messages] == ["incomplete", "completed"]
        assert text_of(messages[1]) == SLOW_ANSWER
        check_free(second, thread.id)


def test_kills_of_either_server_lose_nothing(tmp_path: Path) -> None:
    print(f"PERDURE_KILLS={KILLS} of PERDURE_SEED={SEED}")  # noqa: T201  # pytest shows it when the test fails
    dice = random.Random(SEED)  # noqa: S311  # a game, no secret
    with (
        postgres_server() as database,
        servers(tmp_path, "one", database_url=database) as one,
        servers(tmp_path, "two", database_url=database) as two,
    ):
        with Load(6, SEED, one.url, two.url) as load:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.1, 1.5))  # the moment is the point
                dead = dice.choice([one, two])
                dead.now.kill()
                time.sleep(dice.choice([0, 2.5]))  # long enough for the other one to recover its runs, or not
                dead.start()
                load.raise_failures()
            poll(lambda: load.promises.counts["ends"], "a run to end")
        with Client(two.url) as client:
            listed = check_promises(client, load)
        one.now.stop()
        two.now.stop()
        rows = check_rows(lambda sql: rows_of(database, sql), listed)
    print(dict(load.promises.counts), dict(rows))  # noqa: T201  # shows what the load was
