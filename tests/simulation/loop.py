"""An event loop without a clock of its own: when nothing can go on, time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class StandstillError(Exception):
    """Nothing can go on and no timer runs: everybody waits for somebody else."""


class _Jumping(selectors.SelectSelector):
    """A selector that never waits. Files do not happen here: the loop's own wake-up pipe is all that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StandstillError
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Everything happens on one thread, in an order that only the callers' own choices decide."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now
