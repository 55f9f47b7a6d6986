"""The dispatch port: telling a worker that a run waits, or that one was cancelled.

Rule: dispatch is only a hint. A run that nobody was told of is found by the worker's own look at the store, a cancel at
the next renewal of its lease; losing a hint costs time and nothing else.
"""

from __future__ import annotations

from typing import Protocol


class Listener(Protocol):
    """A worker, as dispatch sees it."""

    def run_waits(self, run_id: str) -> None:
        """Hear that a run was put into the queue."""
        ...

    def run_cancelled(self, run_id: str) -> None:
        """Hear that a run was moved to cancelling, or that its thread was deleted."""
        ...


class Dispatch(Protocol):
    """How the API speaks to workers."""

    def tell(self, run_id: str) -> None:
        """Say that a run waits."""
        ...

    def interrupt(self, run_id: str) -> None:
        """Say that a run was cancelled."""
        ...


class LocalDispatch:
    """Dispatch within the process: a direct call."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Add a worker."""
        self._listeners.append(listener)

    def tell(self, run_id: str) -> None:
        """Say that a run waits."""
        for listener in self._listeners:
            listener.run_waits(run_id)

    def interrupt(self, run_id: str) -> None:
        """Say that a run was cancelled."""
        for listener in self._listeners:
            listener.run_cancelled(run_id)
