"""Kernel and warden in one, where nothing can fork: CPython in WebAssembly.

No signals and no threads there: a cell that runs too long is ended from outside, together with the session. Prints are
frames here, since there is no second pipe. The whole process is inside the wall, so nothing is protected from the code
but what the wall protects.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from . import frames
from .cell import Shell
from .desk import Desk

TEXT_BYTES = 16 * 1024
CUT = "\n[output cut: it is longer than {} bytes]\n"


class Prints(io.TextIOBase):
    """What the code prints to; sends it on as frames, at most `limit` bytes for each cell."""

    def __init__(self, solo: Solo, limit: int) -> None:
        super().__init__()
        self.solo, self.limit = solo, limit
        self.left = limit
        self.parts: list[str] = []
        self.size = 0

    encoding = "utf-8"  # programs ask for it

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take text; beyond the limit it is counted and dropped."""
        if self.left > 0:
            self.left -= len(text)
            self.parts.append(text if self.left >= 0 else text[: self.left] + CUT.format(self.limit))
            self.size += len(text)
            if self.size > TEXT_BYTES:
                self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what there is."""
        text = "".join(self.parts)
        self.parts.clear()
        self.size = 0
        for begin in range(0, len(text), TEXT_BYTES):
            self.solo.send({"op": "logs"}, text[begin : begin + TEXT_BYTES].encode("utf-8", "replace"))


class Solo:
    """Serves the frames of the server in this process."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.prints = Prints(self, config["limits"]["output_bytes"])
        self.shell = Shell(lambda media_type, data: self.send({"op": "image", "media_type": media_type}, data))
        self.desk = Desk(config["data"], self.send)

    def serve(self) -> None:
        """Serve until the other end is closed."""
        os.chdir(self.desk.root)
        sys.stdout = sys.stderr = self.prints  # a text stream as the code needs it
        self.shell.install()
        self.send({"op": "ready", "python": sys.version.split()[0], "packages": []})
        while True:
            frame = self._next()
            if frame is None:
                return
            self._serve(*frame)

    def _serve(self, head: dict[str, Any], body: bytes) -> None:
        op = head["op"]
        if op == "run":
            self.prints.left = self.prints.limit
            answer = self.shell.run(body.decode("utf-8", "replace"))
            self.prints.flush()
            cut = self.prints.left < 0
            self.send({"op": "done", **answer, "reason": "", "kept": True, "cut": cut})
        else:
            self.desk.serve(head, body)

    def _next(self) -> frames.Frame | None:
        lengths = _read(frames.LENGTHS.size)
        if not lengths:
            return None
        head, body = frames.check_lengths(lengths)
        return frames.parse_head(_read(head)), _read(body)

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame to the server."""
        packed = frames.pack(head, body)
        while packed:
            packed = packed[os.write(1, packed) :]


def _read(size: int) -> bytes:
    whole = b""
    while len(whole) < size:
        piece = os.read(0, min(size - len(whole), frames.CHUNK_BYTES))
        if not piece:
            return b""
        whole += piece
    return whole
