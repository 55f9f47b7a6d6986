"""What the server has answered, and what it was asked: the truth that is held against it after its deaths.

Rules. An answer that arrived whole is a promise: its object is there, byte for byte. What was asked and not answered
may be there or not, but never half and never twice. So whoever changes or deletes something says so before it asks.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]


class Promises:
    """Paths are those of the API, without the mount."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fixed: dict[str, bytes] = {}
        self._changing: dict[str, Json] = {}  # asked and not answered: what would be different
        self._deleting: set[str] = set()
        self.deleted: set[str] = set()
        self.runs: dict[str, str] = {}  # id and thread
        self.stopping: set[str] = set()  # runs that somebody asked to cancel, threads whose runs were interrupted
        self.cancelled: set[str] = set()  # runs
        self.retries: Counter[str] = Counter()  # by the tag of the run that is tried again
        self.outputs: dict[str, str] = {}  # call and the output that was submitted for it
        self.taken: set[str] = set()  # calls whose outputs the server has taken
        self.threads: defaultdict[int, list[str]] = defaultdict(list)  # of each program, oldest first
        self.said: defaultdict[str, list[str]] = defaultdict(list)  # in each thread
        self.order: defaultdict[str, list[str]] = defaultdict(list)  # messages of a thread, as they were added
        self.rewritten: set[str] = set()  # threads where questions were changed or deleted
        self.counts: Counter[str] = Counter()

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def keep(self, kind: str, path: str, body: bytes) -> None:
        """From now on GET `path` answers so."""
        with self._lock:
            self._fixed[path] = body
            self.counts[kind] += 1

    def keep_run(self, kind: str, run: Any) -> None:
        with self._lock:
            self.runs[run.id] = run.thread_id
            self.counts[kind] += 1

    def keep_thread(self, number: int, thread_id: str, *texts: str) -> None:
        """The thread of a program, and what was said in it at first."""
        with self._lock:
            self.threads[number].append(thread_id)
            self.said[thread_id] += texts

    def keep_said(self, thread_id: str, text: str) -> None:
        with self._lock:
            self.said[thread_id].append(text)

    def submit(self, outputs: list[dict[str, str]]) -> None:
        """Somebody is about to submit."""
        with self._lock:
            self.outputs |= {output["tool_call_id"]: output["output"] for output in outputs}

    def keep_taken(self, outputs: list[dict[str, str]]) -> None:
        with self._lock:
            self.taken |= {output["tool_call_id"] for output in outputs}
            self.counts["outputs"] += len(outputs)

    def keep_place(self, thread_id: str, message_id: str) -> None:
        """Messages that nobody lets in before others stand in the order in which they were added."""
        with self._lock:
            self.order[thread_id].append(message_id)

    def stop(self, run_or_thread: str) -> None:
        """Somebody is about to cancel or interrupt."""
        with self._lock:
            self.stopping.add(run_or_thread)

    def keep_cancelled(self, run_id: str) -> None:
        with self._lock:
            self.cancelled.add(run_id)
            self.counts["cancels"] += 1

    def retry(self, tag: str) -> None:
        """Somebody is about to try a run again."""
        with self._lock:
            self.retries[tag] += 1

    @contextmanager
    def change(self, path: str, change: Json) -> Iterator[None]:
        """Ask for the change inside, and keep the answer there."""
        with self._lock:
            self._changing[path] = change
        yield
        with self._lock:
            del self._changing[path]

    @contextmanager
    def delete(self, kind: str, path: str) -> Iterator[None]:
        """Ask for the deletion inside."""
        with self._lock:
            self._deleting.add(path)
        yield
        with self._lock:
            self.deleted.add(path)
            self.counts[kind] += 1

    def may_be_gone(self, path: str) -> bool:
        """Say whether somebody has asked to delete this or what it hangs on."""
        with self._lock:
            return any(path == one or path.startswith(f"{one}/") for one in self._deleting)

    def is_changing(self, path: str) -> bool:
        with self._lock:
            return path in self._changing

    def paths(self) -> list[str]:
        with self._lock:
            return list(self._fixed)

    def is_kept(self, path: str, body: bytes | None) -> bool:
        """Say whether a promise is kept by what is there now, None for a 404."""
        if body is None:
            return self.may_be_gone(path)
        if any(path == one or path.startswith(f"{one}/") for one in self.deleted):
            return False
        fixed, change = self._fixed[path], self._changing.get(path)
        return body == fixed or (change is not None and json.loads(body) == {**json.loads(fixed), **change})
