"""Rounds: what is done again and again for as long as a part of the engine lives.

Rule: a round that fails ends nothing. A store that does not answer is tried again with the next one; anything else is a
bug, logged with its traceback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from perdure.errors import Unavailable
from perdure.ids import Clock

Round = tuple[Callable[[], Awaitable[object]], float]
"""What is done, and the seconds from its end to its next beginning."""


class Rounds:
    """The rounds of one part, which is called `whose` in the log."""

    def __init__(self, clock: Clock, log: logging.Logger, whose: str) -> None:
        self._clock = clock
        self._log = log
        self._whose = whose
        self._going: list[asyncio.Task[None]] = []

    def begin(self, *rounds: Round) -> None:
        """Make these rounds until `end`; each begins with one at once."""
        loop = asyncio.get_running_loop()
        self._going += [loop.create_task(self._repeat(one_round, seconds)) for one_round, seconds in rounds]

    async def end(self) -> None:
        """Make no more rounds."""
        for one in self._going:
            one.cancel()
        if self._going:
            await asyncio.wait(self._going)

    async def _repeat(self, one_round: Callable[[], Awaitable[object]], seconds: float) -> None:
        while True:
            try:
                await one_round()
            except Unavailable as error:
                self._log.warning("the store does not answer: %s", error.message)
            except Exception:  # noqa: BLE001  # logged with its traceback
                self._log.exception("a bug in a round of %s; the rounds go on", self._whose)
            await self._clock.sleep(seconds)
