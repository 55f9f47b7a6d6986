"""Starting the real server for tests: in a thread of this process, or as a process of its own.

Both bind a free loopback port and are ended by whoever started them. Settings come as keyword arguments; the
environment of the test run never leaks in.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

from perdure.app import open_server, run_loop
from perdure.models.scripted import serving
from perdure.settings import Settings, read_settings


class Client(openai.OpenAI):
    """The official client, unmodified but for strict parsing of what it gets."""

    def __init__(self, url: str, key: str = "test-key", **options: Any) -> None:
        super().__init__(base_url=url, api_key=key, _strict_response_validation=True, max_retries=0, **options)


@contextmanager
def running_server(data: Path, **settings: Any) -> Iterator[str]:
    """Serve from a thread of this process; yields the base URL. The built-in model is the scripted one."""
    assert set(settings) <= set(Settings.model_fields), "a test names an unknown setting"
    given = read_settings(**{"builtin_model": "scripted", "port": 0, "data": data, **settings})
    started = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        state["end"] = lambda: loop.call_soon_threadsafe(stop.set)
        async with open_server(given) as running:
            state["url"] = running.url
            started.set()
            await stop.wait()

    def target() -> None:
        try:
            run_loop(main)
        except BaseException as failure:  # noqa: BLE001  # handed to the test's own thread
            state["failure"] = failure
        finally:
            started.set()

    thread = threading.Thread(target=target, name="perdure-test-server")
    thread.start()
    started.wait(30)
    try:
        if "failure" in state:
            raise state["failure"]
        yield state["url"]
    finally:
        if thread.is_alive():
            state["end"]()
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"
        if "failure" in state:
            raise state["failure"]


class ServerProcess:
    """`perdure serve` as a process of its own; `url` is its base URL, `process` its handle."""

    program: Sequence[str] = ("-m", "perdure", "serve")
    before: Sequence[str] = ()
    """A program that starts the server: `nsenter`, say."""

    def __init__(self, data: Path, **settings: Any) -> None:
        given = {"builtin_model": "scripted", "port": 0, "data": data, **settings}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        for name, value in given.items():
            text = json.dumps(value) if isinstance(value, dict) else str(value)
            environment[f"PERDURE_{name.upper()}"] = text
        assert set(given) <= set(Settings.model_fields), "a test names an unknown setting"
        data.mkdir(parents=True, exist_ok=True)
        self.log = data.parent / f"{data.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, sys.executable, *self.program],
                cwd=data,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.url = self._wait_for_url()

    def _wait_for_url(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "OPENAI_BASE_URL=" in line:
                return line.partition("OPENAI_BASE_URL=")[2].strip()
        self._reap()
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        self.process.kill()
        self._reap()

    def stop(self) -> None:
        """End it as an operator would: SIGTERM."""
        if self.process.poll() is None:
            self.process.terminate()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def server_process(data: Path, **settings: Any) -> Iterator[ServerProcess]:
    """`perdure serve` for the length of a block."""
    server = ServerProcess(data, **settings)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def upstream_of(app: Any) -> Iterator[str]:
    """Serve an application, a `ScriptedServer` say, from a thread; yields the base URL, ending in /v1."""
    started = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        state["end"] = lambda: loop.call_soon_threadsafe(stop.set)
        async with serving(app) as url:
            state["url"] = url
            started.set()
            await stop.wait()

    thread = threading.Thread(target=run_loop, args=(main,))
    thread.start()
    assert started.wait(30)
    try:
        yield state["url"]
    finally:
        state["end"]()
        thread.join(30)
