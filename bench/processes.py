"""The processes that are measured: each on a free port, in an environment of its own, ended with its block."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0


class Server(NamedTuple):
    """A server that answers. `start_seconds`: from the process's start to its first 200 on /health."""

    url: str
    pid: int
    start_seconds: float


class Memory(NamedTuple):
    """What a process holds. Proportional: shared pages divided among those who share them."""

    resident_bytes: int
    proportional_bytes: int


@contextmanager
def perdure(folder: Path, **settings: str) -> Iterator[Server]:
    """`perdure serve`, with everything in a folder of its own."""
    given = {"builtin_model": "scripted", "port": "0", "data": str(folder), "log_level": "warning", **settings}
    folder.mkdir(parents=True, exist_ok=True)
    variables = {f"PERDURE_{name.upper()}": value for name, value in given.items()}
    with _running([sys.executable, "-m", "perdure", "serve"], folder, variables) as server:
        yield server


@contextmanager
def empty_handler(folder: Path) -> Iterator[Server]:
    """The floor of `floor.py`."""
    with _running([sys.executable, "-m", "bench.floor"], folder, {"PYTHONPATH": str(PROJECT)}) as server:
        yield server


@contextmanager
def scripted_model(folder: Path, script: str) -> Iterator[Server]:
    """The scripted model as an upstream, with a script as JSON text."""
    path = folder / "script.json"
    path.write_text(script)
    command = [sys.executable, "-m", "perdure.models.scripted", "--script", str(path)]
    with _running(command, folder, {}, health="/v1/models") as server:
        yield server


@contextmanager
def _running(command: list[str], folder: Path, variables: dict[str, str], health: str = "/health") -> Iterator[Server]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    log_path = folder / "log"
    begun = time.perf_counter()
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **variables},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        url = _announced_url(process, log_path)
        _wait_for(url.removesuffix("/v1") + health, begun)
        yield Server(url, process.pid, time.perf_counter() - begun)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _announced_url(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if (at := line.find("http://")) >= 0:
            return line[at:].split()[0]
    raise RuntimeError(f"{process.args!r} did not start: {log.read_text()}")


def _wait_for(url: str, begun: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # our own server on loopback
                if answer.status == 200:
                    return
        except (urllib.error.URLError, ConnectionError):
            if time.perf_counter() - begun > START_SECONDS:
                raise
        time.sleep(0.002)


def memory_of(pid: int) -> Memory | None:
    """Return what a process holds, None where the system does not tell (only Linux does)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    sizes = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in text.splitlines())
        if name in {"Rss", "Pss"}
    }
    return Memory(sizes["Rss"], sizes["Pss"])


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time that a process has used, zero where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
