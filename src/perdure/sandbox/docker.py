"""The docker kind: a container for each session, for those who have an engine. Podman's `docker` command does as well.

Not run where Perdure is built (there is no engine there): its command line and its refusals are tested, the walls are
not. `perdure doctor` tries them from inside on your machine, and so does the server when it starts.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
from pathlib import Path

from perdure.sandbox.base import DATA, CheckReport, Depth, Limits, SandboxFailure, Session
from perdure.sandbox.bundle import BOOT, boot_bytes
from perdure.sandbox.environment import Environment
from perdure.sandbox.kinds import Boxes, variables
from perdure.sandbox.process import ProcessSession
from perdure.sandbox.self_check import check_walls

INSIDE_UID = 65532
LABEL = "perdure.code-session"
ENGINE_SECONDS = 20


class Docker:
    """Starts sessions in containers. `program` is the engine's command; raises SandboxFailure where there is none."""

    name = "docker"

    def __init__(self, image: str, boxes: Boxes, program: str = "docker") -> None:
        found = shutil.which(program)
        if found is None:
            raise SandboxFailure(
                "there is no `docker` command here: install Docker or Podman, or choose another sandbox"
            )
        self.program = found
        self.image = image
        self.boxes = boxes
        self.about = f"Python without network, in a container of the image {image}"

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a container. Raises SandboxFailure."""
        name = f"perdure-code-{secrets.token_hex(6)}"
        inside = Environment(python=Path("/usr/local/bin/python3"), roots=[])
        config = {
            "limits": {field: getattr(limits, field) for field in limits.__struct_fields__},
            "data": DATA,
            "environment": variables(inside, DATA, "/tmp"),  # noqa: S108  # the container's own
            "font_cache": "",
            "own_namespace": True,
            "die_with_parent": False,
            "sized": [DATA, "/tmp"],  # noqa: S108  # the container's own
            "counted": "",
            "uid": 0,
            "preload": preload,
        }
        command = ["/usr/bin/env", f"PATH={os.environ.get('PATH', '')}", *self._engine(), *self.command(name, limits)]
        return await self.boxes.open(
            self.name, command, [], limits, boot_bytes(config), gone=lambda: self._remove(name), make=ProcessSession
        )

    def command(self, name: str, limits: Limits) -> list[str]:
        """Return the command line of one container."""
        room = f"rw,nosuid,nodev,size={limits.disk_bytes},mode=1777"
        return [
            self.program, "run", "--rm", "--interactive", "--name", name, "--label", LABEL,
            "--network", "none",
            "--read-only",
            "--tmpfs", f"{DATA}:{room}",
            "--tmpfs", f"/tmp:{room}",  # noqa: S108  # the container's own
            "--shm-size", "64m",
            "--user", f"{INSIDE_UID}:{INSIDE_UID}",
            "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges",
            "--pids-limit", str(limits.processes + 2),
            "--memory", str(limits.memory_bytes + limits.disk_bytes),
            "--memory-swap", str(limits.memory_bytes + limits.disk_bytes),
            "--ulimit", "core=0",
            "--workdir", DATA,
            "--entrypoint", "python3",
            self.image, "-I", "-S", "-c", BOOT,
        ]  # fmt: skip

    def _engine(self) -> list[str]:
        """Return the variables by which the command finds its engine."""
        named = ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "HOME")
        return [f"{name}={os.environ[name]}" for name in named if name in os.environ]

    def _remove(self, name: str) -> None:
        """Remove the container, should it still be there: the engine keeps one whose command was killed."""
        subprocess.Popen(  # noqa: S603  # ours
            [self.program, "rm", "--force", name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def check_engine(self) -> None:
        """Ask the engine for its version. Raises SandboxFailure if it does not answer."""
        process = await asyncio.create_subprocess_exec(
            self.program,
            "version",
            "--format",
            "{{.Server.Version}}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(ENGINE_SECONDS):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise SandboxFailure("the docker engine does not answer: start it, or choose another sandbox") from None
        if process.returncode != 0:
            why = said.decode(errors="replace").strip().rsplit("\n", 1)[-1]
            raise SandboxFailure(f"the docker engine can not be used ({why}): start it, or choose another sandbox")

    async def sweep(self) -> None:
        """Remove the containers of servers that are gone."""
        listing = await asyncio.create_subprocess_exec(
            self.program, "ps", "--all", "--quiet", "--filter", f"label={LABEL}", stdout=asyncio.subprocess.PIPE
        )
        names, _ = await listing.communicate()
        for name in names.decode().split():
            self._remove(name)

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Try the walls from inside. Raises SandboxFailure."""
        await self.check_engine()
        return await check_walls(self, depth)

    async def close(self) -> None:
        """End every container of this kind."""
        await self.boxes.close()
