"""Programs that use the official client, again and again, and remember every answer; some at once are a load."""

from __future__ import annotations

import random
import threading
import time
from typing import Self

from tests.durability.load import BROKEN, DEADLINE
from tests.durability.promises import Promises
from tests.durability.readings import Followers
from tests.durability.works import WORKS, Scene
from tests.server import Client


class Wish:
    """What the programs are to do more often than other things: the test waits for it."""

    def __init__(self) -> None:
        self.work: str | None = None


class Program(threading.Thread):
    """One user's program: mixed work on its own threads, again and again, whatever happens to the server."""

    def __init__(self, number: int, seed: str, load: Load) -> None:
        super().__init__(name=f"program-{number}", daemon=True)
        self.failure: BaseException | None = None
        self._number = number
        self._dice = random.Random(f"{seed}/{number}")  # noqa: S311  # a game, no secret
        self._load = load
        self._said = 0

    def run(self) -> None:
        urls = self._load.urls
        with Client(urls[self._number % len(urls)], timeout=15) as client:
            while not self._load.over.is_set():
                try:
                    self._session(client)
                except BROKEN:
                    time.sleep(0.02)  # dead, or starting again
                except BaseException as failure:  # noqa: BLE001  # handed to the test's own thread
                    self.failure = failure
                    return

    def tag(self, kind: str) -> str:
        """Return words that nobody else says."""
        self._said += 1
        return f"{kind} {self._number}.{self._said}"

    def _session(self, client: Client) -> None:
        load = self._load
        scene = Scene(client, load.promises, load.followers, self._dice, self._number, self.tag)
        for _ in range(self._dice.randrange(1, 5)):
            if load.over.is_set():
                return
            wish = load.wish.work
            work = wish if wish is not None and self._dice.random() < 0.6 else self._dice.choice(sorted(WORKS))
            WORKS[work](scene)


class Load:
    """Some programs at once, and who follows their runs."""

    def __init__(self, programs: int, seed: str, *urls: str) -> None:
        self.promises = Promises()
        self.followers = Followers(list(urls), self.promises)
        self.urls = urls
        self.wish = Wish()
        self.over = threading.Event()
        self._programs = [Program(number, seed, self) for number in range(programs)]

    def __enter__(self) -> Self:
        for program in self._programs:
            program.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Let the programs end what they do; the server must be there for it."""
        self.over.set()
        if failure is not None:
            return
        for program in self._programs:
            program.join(DEADLINE + 15)
            assert not program.is_alive(), "a program waits for ever"
        self.raise_failures()

    def raise_failures(self) -> None:
        """Raise what a program or a follower has stumbled over."""
        for program in self._programs:
            if program.failure is not None:
                raise program.failure
        for failure in self.followers.failures:
            raise failure
