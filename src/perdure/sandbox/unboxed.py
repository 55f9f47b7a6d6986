"""No sandbox at all, for operators who set `code_sandbox = "unsafe-no-sandbox"`: code runs as the server's own user.

It can read and change whatever that user can, and use the network. Limits hold only as far as the code respects them.
"""

from __future__ import annotations

import logging

from perdure.sandbox.base import CheckReport, Depth, Limits, Session, WallCheck
from perdure.sandbox.environment import Environment
from perdure.sandbox.kinds import Boxes
from perdure.sandbox.landlock import make_folder, open_in_folder

log = logging.getLogger("perdure.sandbox")


class Unboxed:
    """Starts sessions without any wall."""

    name = "unsafe-no-sandbox"

    def __init__(self, environment: Environment, boxes: Boxes) -> None:
        self.environment = environment
        self.boxes = boxes
        self.about = f"Python without any sandbox, with {environment.about}"
        log.warning("code runs WITHOUT A SANDBOX, as the server's own user: code_sandbox is unsafe-no-sandbox")

    async def start(self, limits: Limits, *, preload: bool = False) -> Session:
        """Start a process. Raises SandboxFailure."""
        folder = make_folder(0)
        return await open_in_folder(self.name, self.boxes, self.environment, limits, folder, 0, {}, preload=preload)

    async def self_check(self, depth: Depth = "walls") -> CheckReport:
        """Say that there is nothing to check."""
        del depth
        seen = "there are none: the code can do what the server's user can"
        return CheckReport(kind=self.name, walls=[WallCheck(wall="any", holds=False, seen=seen)])

    async def close(self) -> None:
        """End every process of this kind."""
        await self.boxes.close()
