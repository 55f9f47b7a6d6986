"""For tests of the code interpreter: its environment, built once in a checkout, and sessions that are heard out."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from perdure.sandbox.base import Image, Output, Result, Sandbox, Session
from perdure.sandbox.choose import make_kind
from perdure.sandbox.environment import NOTE, PACKAGES
from perdure.settings import Settings

CHECKOUT = Path(__file__).parent.parent
ENVIRONMENT = CHECKOUT / ".venv-sandbox"
KINDS = ["bubblewrap", "landlock", "wasm"]


@functools.cache
def code_environment() -> Path:
    """Return the environment with numpy and its like, built by `perdure sandbox build` if it is not there yet.

    Building needs the package index; without it the test is skipped, which CI does not allow.
    """
    note = ENVIRONMENT / NOTE
    with FileLock(ENVIRONMENT.with_suffix(".lock")):  # several processes run tests side by side
        if note.exists() and json.loads(note.read_text())["packages"] == PACKAGES:
            return ENVIRONMENT
        build = [sys.executable, "-m", "perdure", "sandbox", "build", "--to", str(ENVIRONMENT)]
        built = subprocess.run(build, check=False, capture_output=True, text=True)
        if built.returncode != 0:
            pytest.skip(f"the sandbox's environment can not be built here: {built.stderr.strip()}")
    return ENVIRONMENT


def code_settings(data: Path, **others: object) -> Settings:
    """Return settings with that environment."""
    return Settings.model_validate({"data": data, "code_environment": code_environment(), **others})


def sandbox_of(kind: str, data: Path) -> Sandbox:
    """Return a kind, set up for this machine. On Linux every kind but docker works."""
    return make_kind(kind, code_settings(data))


class Heard:
    """The outputs of one call, in order, with a mark for each image, and its result."""

    def __init__(self) -> None:
        self.text = ""
        self.images: list[Image] = []
        self.result = Result("ok")

    async def tell(self, output: Output) -> None:
        if isinstance(output, Image):
            self.images.append(output)
            self.text += f"<image {len(self.images)}>\n"
        else:
            self.text += output.text


async def hear(session: Session, code: str) -> Heard:
    """Run a cell and hear it out."""
    heard = Heard()
    heard.result = await session.run(code, heard.tell)
    return heard


async def content(session: Session, name: str) -> bytes:
    """Return a file's bytes."""
    return b"".join([piece async for piece in session.get(name)])


def processes_with(mark: str) -> list[int]:
    """Return the processes whose command line has this in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:  # it ended between two looks
                continue
            if mark.encode() in line:
                found.append(int(entry.name))
    return found


async def until_gone(mark: str, seconds: float = 20) -> list[int]:
    """Wait until no process has this mark; returns those that are there at the end."""
    for _ in range(int(seconds / 0.05)):
        if not processes_with(mark):
            return []
        await asyncio.sleep(0.05)
    return processes_with(mark)
