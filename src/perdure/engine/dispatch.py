"""The dispatch port: telling a worker that a run or a file of a vector store waits, or that one was cancelled.

Rule: dispatch is only a hint. A run that nobody was told of is found by the worker's own look at the store, a cancel at
the next renewal of its lease; losing a hint costs time and nothing else. The same holds for files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Listener(Protocol):
    """A worker, as dispatch sees it."""

    def run_waits(self, run_id: str) -> None:
        """Hear that a run was put into the queue."""
        ...

    def run_cancelled(self, run_id: str) -> None:
        """Hear that a run was moved to cancelling, or that its thread was deleted."""
        ...


class FileListener(Protocol):
    """Who works files, as dispatch sees it."""

    def files_wait(self) -> None:
        """Hear that files were put into the line."""
        ...

    def files_stopped(self, seqs: Sequence[int]) -> None:
        """Hear which files, by the numbers of their rows, are not to be worked on any more, or not as they were."""
        ...


class Dispatch(Protocol):
    """How the API speaks to workers."""

    def tell(self, run_id: str) -> None:
        """Say that a run waits."""
        ...

    def interrupt(self, run_id: str) -> None:
        """Say that a run was cancelled."""
        ...

    def tell_of_files(self, stopped: Sequence[int] = ()) -> None:
        """Say that files wait, and which of those that were in work are stopped."""
        ...


class LocalDispatch:
    """Dispatch within the process: a direct call."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._file_listeners: list[FileListener] = []

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

    def listen_to_files(self, listener: FileListener) -> None:
        """Add one who works files."""
        self._file_listeners.append(listener)

    def tell_of_files(self, stopped: Sequence[int] = ()) -> None:
        """Say that files wait, and which of those that were in work are stopped."""
        for listener in self._file_listeners:
            listener.files_stopped(stopped)
            listener.files_wait()
