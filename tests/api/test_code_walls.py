"""Hostile code through the real server: each attack is tried from inside a run, printed, and leaves everybody at work.

`tests/contract/test_sandbox.py` tries every wall of every kind by itself; here the server is what is attacked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai.types.beta import Assistant

from tests.api.scenes import settled
from tests.durability.servers import free_port
from tests.sandboxes import code_environment
from tests.server import Client, ServerProcess, server_process

SECRET = "a-secret-of-the-server"
REACHED = "REACHED"
"""What an attack prints where a wall does not hold."""

TRY = """
def attempt(what, call):
    try:
        print(what, '->', call())
    except BaseException as error:
        print(what, '->', type(error).__name__, error)
"""
PORT_OF_SERVER = """
import socket
attempt('connect', lambda: socket.create_connection(('127.0.0.1', PORT), 2) and 'REACHED')
"""
NETWORK = """
import socket
attempt('send', lambda: socket.socket(2, 2).sendto(b'x', ('10.0.0.1', 53)) and 'REACHED')
"""
FILES = """
import glob
for place in [DATA + '/perdure.db', DATA + '/perdure.pid', '/etc/shadow']:
    attempt(place, lambda: 'REACHED' + open(place, 'rb').read(4).hex())
attempt('files', lambda: 'REACHED' if glob.glob(DATA + '/*') else 'nothing there')
"""
ENVIRONMENT = """
import os, glob
attempt('own', lambda: 'REACHED' if SECRET in str(os.environ) else sorted(os.environ))
for place in glob.glob('/proc/[0-9]*/environ'):
    attempt(place, lambda: 'REACHED' if SECRET.encode() in open(place, 'rb').read() else 'nothing in it')
"""
FORKS = """
import os, time
def bomb():
    for _ in range(100_000):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    return 'REACHED'
attempt('fork', bomb)
"""
MEMORY = """
attempt('allocate', lambda: len(bytearray(10 * 1024**3)) and 'REACHED')
"""
DISK = """
import os
def fill():
    with open('/mnt/data/big', 'wb') as file:
        for _ in range(100_000):
            file.write(b'x' * 2**20)
    return 'REACHED'
attempt('fill', fill)
attempt('delete', lambda: os.remove('/mnt/data/big'))
"""
PTRACE = """
import ctypes
attempt('attach', lambda: 'REACHED' if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else 'refused')
"""
MOUNT = """
import ctypes
done = lambda: ctypes.CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, 0)
attempt('mount', lambda: 'REACHED' if done() == 0 else 'refused')
"""
DEVICES = """
import os
for place in ['/dev/sda', '/dev/mem', '/dev/kmsg', '/dev/vda']:
    attempt(place, lambda: os.open(place, os.O_RDONLY) and 'REACHED')
attempt('mknod', lambda: os.mknod('/mnt/data/disk', 0o60600, os.makedev(8, 0)) or 'REACHED')
"""
SIGNALS = """
import os
attempt('signal', lambda: os.kill(OUTSIDE, 0) or 'REACHED')
"""
SYMLINKS = """
import os
os.symlink('/etc/passwd', '/mnt/data/out.txt')
os.symlink('/', '/mnt/data/root')
print('made')
"""
NEWLINES = """
open('/mnt/data/a\\nb', 'w').write('x')
print('made')
"""
ATTACKS = {
    "the server's own port": PORT_OF_SERVER,
    "the network": NETWORK,
    "the server's files": FILES,
    "the server's environment": ENVIRONMENT,
    "a fork bomb": FORKS,
    "ten gigabytes": MEMORY,
    "a full disk": DISK,
    "an endless loop": "while True: pass",
    "endless output": "while True: print('x' * 1000)",
    "ptrace": PTRACE,
    "mounting": MOUNT,
    "device files": DEVICES,
    "signals to outside": SIGNALS,
    "a symlink out of /mnt/data": SYMLINKS,
    "a name with newlines": NEWLINES,
}
LINKS = "See sandbox:/mnt/data/out.txt, sandbox:/mnt/data/root/etc/passwd and sandbox:/mnt/data/../../etc/passwd."


def script_for(port: int, data: Path) -> dict[str, Any]:
    """Return a script whose model runs the attack that it is asked for."""
    secret = f"{SECRET[:10]!r} + {SECRET[10:]!r}"  # not as a whole: it would be found in the code itself
    head = f"PORT, OUTSIDE, DATA, SECRET = {port}, {os.getpid()}, {str(data)!r}, {secret}\n{TRY}"
    rules: list[dict[str, Any]] = [
        {"when": f"^{what}$", "call": [{"name": "code_interpreter", "arguments": {"code": head + code}}]}
        for what, code in {**ATTACKS, "again": "print(6 * 7)"}.items()
    ]
    rules.append({"when": "^made", "role": "tool", "say": LINKS})
    rules.append({"when": "", "role": "tool", "say": "{output}"})
    return {"rules": rules}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("walls")
    script, port = folder / "script.json", free_port()
    script.write_text(json.dumps(script_for(port, folder / "data")))
    limits = {"code_wall_seconds": 5, "code_memory_mib": 512, "code_disk_mib": 32, "code_processes": 32}
    settings = {
        "script": script,
        "code_environment": code_environment(),
        "port": port,
        **limits,
    }
    with server_process(folder / "data", upstream_key=SECRET, **settings) as one:
        yield one


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.url) as one:
        yield one


@pytest.fixture(scope="module")
def thread_id(server: ServerProcess) -> str:
    with Client(server.url) as one:
        return one.beta.threads.create().id


@pytest.fixture(scope="module")
def coder(server: ServerProcess) -> Assistant:
    with Client(server.url) as one:
        return one.beta.assistants.create(model="gpt-4o", tools=[{"type": "code_interpreter"}])


def told(client: Client, coder: Assistant, thread_id: str, question: str) -> tuple[str, Any]:
    client.beta.threads.messages.create(thread_id, role="user", content=question)
    run = settled(client, client.beta.threads.runs.create(thread_id, assistant_id=coder.id))
    assert run.status == "completed", run.last_error
    part: Any = client.beta.threads.messages.list(thread_id, run_id=run.id).data[0].content[-1]
    return part.text.value, part.text.annotations


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_server_and_the_next_call_are_unharmed(
    server: ServerProcess, client: Client, coder: Assistant, thread_id: str, attack: str
) -> None:
    seen, annotations = told(client, coder, thread_id, attack)
    print(f"\n{attack}:\n{seen[:1500]}")  # noqa: T201  # what the walls said, shown by pytest -s
    assert REACHED not in seen.replace("'REACHED'", "")  # but for the code itself, in a traceback
    assert SECRET not in seen
    assert annotations == [], "nothing outside /mnt/data, and no link out of it, becomes a file"
    assert httpx2.get(server.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
    assert server.process.poll() is None
    assert told(client, coder, thread_id, "again")[0].endswith("42")
