"""Clients at once on the real server, which is killed in between: every answer is explained by one order of all calls.

`PERDURE_HISTORY` sets the number of rounds on each store, `PERDURE_SEED` repeats what the clients choose.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.history.clients import SCRIPT
from tests.history.play import Scene, Size, play
from tests.postgres_server import postgres_server
from tests.server import ServerProcess, server_process

ROUNDS = int(os.environ.get("PERDURE_HISTORY", "1"))
SEED = os.environ.get("PERDURE_SEED") or secrets.token_hex(4)
KILLS = 2
SETTINGS: dict[str, Any] = {"poll_hold_seconds": 0, "lease_seconds": 1}


def settings_in(folder: Path, **more: Any) -> dict[str, Any]:
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    return {"script": script, **SETTINGS, **more}


def explain(scenes: list[Scene], seed: str) -> None:
    """Check each thread, and say how much that was."""
    for scene in scenes:
        checker = scene.check()
        kinds = Counter(call.answer[0] for call in scene.recorder.calls)
        print(f"seed {seed} thread {scene.name}: {dict(kinds)}, at most {checker.widest} possibilities")  # noqa: T201


class Killer:
    """Kills the server at moments of the dice's choice, and starts it again on its data and port."""

    def __init__(self, server: ServerProcess, data: Path, settings: dict[str, Any], seed: str) -> None:
        self.server = server
        self._data = data
        self._settings = {**settings, "port": int(server.url.rpartition(":")[2].partition("/")[0])}
        self._dice = random.Random(seed)  # noqa: S311  # a game, no secret

    def begin(self, scenes: list[Scene]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self._kill_again_and_again(scenes))

    async def _kill_again_and_again(self, scenes: list[Scene]) -> None:
        for _ in range(KILLS):
            await asyncio.sleep(self._dice.uniform(0.1, 0.6))  # the moment is the point
            self.server.kill()
            lost = [scene.recorder.open for scene in scenes]
            self.server = await asyncio.to_thread(ServerProcess, self._data, **self._settings)
            for scene, numbers in zip(scenes, lost, strict=True):
                scene.recorder.forget(numbers)


def play_calmly(folder: Path, seed: str, **more: Any) -> None:
    settings = settings_in(folder, **more)
    with server_process(folder / "data", **settings) as server:
        scenes = asyncio.run(play(server.url, seed, Size()))
    explain(scenes, seed)


def play_with_kills(folder: Path, seed: str, **more: Any) -> None:
    settings = settings_in(folder, **more)
    killer = Killer(ServerProcess(folder / "data", **settings), folder / "data", settings, seed)
    try:
        scenes = asyncio.run(play(killer.server.url, seed, Size(), killer.begin))
    finally:
        killer.server.stop()
    explain(scenes, seed)


@pytest.mark.parametrize("how", [play_calmly, play_with_kills])
def test_every_answer_is_explained_on_sqlite(tmp_path: Path, how: Callable[..., None]) -> None:
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        how(folder, f"{SEED}.{number}")


def test_every_answer_is_explained_on_postgres(tmp_path: Path) -> None:
    with postgres_server() as url:
        for number in range(ROUNDS):
            for how in (play_calmly, play_with_kills):
                folder = tmp_path / f"{number}-{how.__name__}"
                folder.mkdir()
                how(folder, f"{SEED}.{number}", database_url=url)
