"""Readers of run logs that come back with `Last-Event-ID` after each death of the server, until the log is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from itertools import cycle
from typing import Any, NamedTuple

import httpx2

from perdure.wire.events import LAST_EVENTS
from tests.durability.promises import Promises

MOST_FOLLOWERS = 24
DEADLINE = 40.0


class Event(NamedTuple):
    number: int
    name: str
    data: str

    @property
    def body(self) -> Any:
        return json.loads(self.data)


class Reading:
    """What one reader has seen of a run, over all its connections."""

    def __init__(self, thread_id: str, run_id: str = "") -> None:
        self.thread_id = thread_id
        self.run_id = run_id
        self.events: list[Event] = []
        self.gone = False  # a 404, or the word that thread or log were deleted
        self.broken = 0

    @property
    def over(self) -> bool:
        return self.gone or (bool(self.events) and self.events[-1].name in LAST_EVENTS)

    @property
    def path(self) -> str:
        return f"/threads/{self.thread_id}/runs/{self.run_id}"

    def take(self, lines: Iterable[str]) -> None:
        """Read a stream to its end. Only whole frames count: the last one may be cut."""
        frame: dict[str, str] = {}
        for line in lines:
            if line and not line.startswith(":"):
                field, _, value = line.partition(": ")
                frame[field] = value
            elif frame and not line:
                self._frame(**frame)
                frame = {}

    def _frame(self, event: str, data: str, id: str = "") -> None:  # noqa: A002  # as the field is called
        if event == "error":
            if "deleted" not in data:
                raise httpx2.RemoteProtocolError(data)  # it shuts down, and says so
            self.gone = True
        elif event != "done":
            self.events.append(Event(int(id), event, data))
            if event == "thread.run.created":
                self.run_id = self.events[-1].body["id"]

    def follow(self, client: httpx2.Client, url: str) -> None:
        """Read on from where this reader is. Raises as the connection does, and for a refusal that nobody expects."""
        headers = {"last-event-id": str(self.events[-1].number)} if self.events else {}
        with client.stream("GET", f"{url}{self.path}/events", headers=headers) as response:
            if response.status_code == 404:
                self.gone = True
                return
            response.raise_for_status()
            self.take(response.iter_lines())


class Followers:
    """Reads runs in threads of their own, from one server after the other."""

    def __init__(self, urls: list[str], promises: Promises) -> None:
        self.readings: list[Reading] = []
        self.failures: list[BaseException] = []
        self._urls = urls
        self._promises = promises
        self._lock = threading.Lock()
        self._deadline = float("inf")
        self._threads: list[threading.Thread] = []
        self._client = httpx2.Client(
            headers={"authorization": "Bearer test-key"},
            timeout=15,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    def begin(self, reading: Reading) -> None:
        """Follow in the background, unless there are too many already."""
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            if len(self._threads) >= MOST_FOLLOWERS:
                return
            thread = threading.Thread(target=self._follow_to_its_end, args=(reading,), name="follower", daemon=True)
            self._threads.append(thread)
        thread.start()

    def _follow_to_its_end(self, reading: Reading) -> None:
        try:
            self.finish(reading)
        except BaseException as failure:  # noqa: BLE001  # handed to the test's own thread
            self.failures.append(failure)

    def finish(self, reading: Reading) -> None:
        """Follow until the log is over, whatever happens to the server, if only it comes back."""
        patience = time.monotonic() + DEADLINE
        for url in cycle(self._urls):
            if reading.over:
                break
            assert time.monotonic() < self._deadline, f"{reading.path} is never over: {reading.events[-1:]}"
            try:
                reading.follow(self._client, url)
            except httpx2.HTTPStatusError as refusal:
                if refusal.response.status_code < 500:
                    raise
            except httpx2.ConnectError:
                if time.monotonic() > patience:
                    raise
                reading.broken += 1
                time.sleep(0.02)  # dead, or starting again
                continue
            except httpx2.HTTPError:
                reading.broken += 1
            patience = time.monotonic() + DEADLINE
        with self._lock:
            self.readings.append(reading)
        self._promises.count("readings")
        if reading.broken:
            self._promises.count("readings over deaths")

    def join(self) -> None:
        """Wait for all; the runs have ended, so that their logs are over."""
        self._deadline = time.monotonic() + DEADLINE
        for thread in self._threads:
            thread.join(DEADLINE + 20)
            assert not thread.is_alive(), "a follower waits for ever"
        self._client.close()
        for failure in self.failures:
            raise failure
